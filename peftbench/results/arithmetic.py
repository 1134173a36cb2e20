"""What a run was computed in: one run id may stand for several, and no table hides which."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# words in what PyTorch and processors call themselves; "Radeon" also names the graphics of a Ryzen
PROCESSOR = re.compile(r"\b(cpu|processor|xeon|epyc|ryzen|threadripper)\b|core\(tm\)", re.I)
ACCELERATOR = re.compile(
    r"nvidia|geforce|tesla|quadro|titan|radeon|instinct|gpu|cuda"
    r"|\b[rg]tx\b|\b[abhlv]\d{2,3}s?\b",  # RTX 4090; A100, B200, H200, L40S, V100
    re.I,
)


def arithmetic(dtype: str, device: str) -> str:
    """As "float32 on a CPU", from a record's `cost.dtype` and `cost.device`; empty if unknown."""
    if not dtype:
        return ""
    if not device:
        return dtype
    gpu = ACCELERATOR.search(device) and not PROCESSOR.search(device)
    return f"{dtype} on a {'GPU' if gpu else 'CPU'}"


def several(kinds: Iterable[str]) -> list[str]:
    """Each known arithmetic with its number of runs, the commonest first; empty if all are alike.

    A run that does not say where it ran is unlike none that has its type of numbers.
    """
    counts = Counter(text for text in kinds if text)
    named = {text.partition(" ")[0] for text in counts if " " in text}
    known = {text: n for text, n in counts.items() if " " in text or text not in named}
    if len(known) < 2:
        return []
    return [f"{text} ({n})" for text, n in sorted(known.items(), key=lambda x: (-x[1], x[0]))]
