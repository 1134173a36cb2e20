"""The file of one tuned task: safetensors of what the pretrained backbone lacks, and a card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftbench.errors import WeightsError
from peftbench.methods.base import Tuned
from peftbench.results.disk import writing
from peftbench.results.store import write_atomic

TASK = "tuned.safetensors"  # what one task needs besides the backbone
MERGED = "model.safetensors"  # a whole model
CARD = "card.json"


def save(tuned: Tuned, folder: Path, card: dict[str, Any]) -> int:
    """Write `tuned.safetensors` and `card.json` into `folder`; returns the bytes of the tensors."""
    path = folder / TASK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".tuned.{os.getpid()}.part"
        try:
            state = {name: tensor.cpu().contiguous() for name, tensor in tuned.state().items()}
            save_file(state, part, metadata={"run_id": str(card.get("run_id", ""))})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / CARD, lambda file: file.write(text.encode()))
    return path.stat().st_size


def load(tuned: Tuned, folder: Path) -> None:
    """Fill a freshly attached model from `folder`.

    Raises:
        WeightsError: the file is missing, corrupt or belongs to another method or backbone.
    """
    path = folder / TASK
    try:
        tuned.load_state(load_file(path))
    except FileNotFoundError as e:
        raise WeightsError(f"{path} does not exist. Run the task again.") from e
    except (SafetensorError, ValueError) as e:
        raise WeightsError(f"{path} does not fit this method and backbone: {e}.") from e


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a run or of an exported folder.

    Raises:
        WeightsError: there is none, or it is not one of ours.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        missing = {"spec", "classes", "provenance"} - card.keys()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsError(
            f"{path} does not exist. Give a folder that `peftbench export` wrote."
        ) from e
    except (OSError, ValueError, AttributeError) as e:
        raise WeightsError(f"{path} is not a readable card: {e}. Export the run again.") from e
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(sorted(missing))}. Export the run again.")
    return dict(card)
