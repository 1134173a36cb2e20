"""Write docs/every-module.md: what methods do on the smallest model of every module of timm.

Each method is put on a copy with random weights and run: which of its tensors the output depends
on, whether statistics of frozen layers stay, and what merging changes. By default these are methods
that stand in every kind of place; `--methods` names others, or `all`. It takes a quarter of an hour
on two cores; `--workers` says on how many. A model that fails is told on stderr. A call that was
stopped goes on where it was: what is done stands in `.every-module.jsonl` until the page is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from in_general import general  # noqa: E402
from support.sites_tried import Tried, random_copy, tried, tried_again  # noqa: E402
from support.timm_modules import LARGE, SMALLEST, build, side_of  # noqa: E402

from peftbench.backbones.describe import describe  # noqa: E402
from peftbench.methods import METHODS, discover  # noqa: E402

FILE = ROOT / "docs" / "every-module.md"
KEPT = ROOT / ".every-module.jsonl"
SHORT = {"described": "d", "inferred": "i", "": "-"}


@dataclass(frozen=True)
class Module:
    """One module of timm: its smallest model, how its layers are known, what each method did."""

    name: str
    architecture: str
    side: int = 0
    known_by: str = ""
    depth: int = 0
    outcomes: Mapping[str, Tried] = field(default_factory=dict)


# in weights, on outputs, inputs and the stream, behind every layer, as tokens, and what is unfrozen
KINDS = (
    *("lora", "fact_tt", "adapter", "adapter_plus", "repadapter", "convpass", "ssf"),
    *("vpt_deep", "bias", "norm", "partial", "sidetune", "full"),
)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The methods of those names; of `all`, those of our own that train by steps."""
    discover()
    if list(names) == ["all"]:
        return tuple(n for n in METHODS if not METHODS[n].card.solved and not n.startswith("hf_"))
    return tuple(METHODS[name].name for name in names)


def look(name: str, methods: Sequence[str]) -> Module:
    """Try the methods on the smallest model of a module."""
    discover()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    architecture = SMALLEST[name]
    side = side_of(architecture)
    model = build(architecture, side)
    anatomy = describe(model, side)
    random = random_copy(model, anatomy.channels, side)
    outcomes = {
        method: tried_again(method, model, anatomy, tried(method, random, anatomy))
        for method in methods
    }
    return Module(name, architecture, side, anatomy.known_by, anatomy.depth, outcomes)


def page(modules: Iterable[Module], left_out: Iterable[str], methods: Sequence[str]) -> str:
    """The text of the page."""
    rows = sorted(modules, key=lambda module: module.name)
    sited = ("lora", "ssf", "adapter_plus")
    taking = [
        m for m in rows if any(m.outcomes[name].is_right for name in sited if name in methods)
    ]
    wrong = [f"{m.architecture}: {n}" for m in rows for n, o in m.outcomes.items() if not _fine(o)]
    reasons: dict[str, int] = {}
    lines = []
    for module in rows:
        cells = [_cell(name, module.outcomes[name], reasons) for name in methods]
        known = SHORT[module.known_by]
        head = f"| {module.name} | `{module.architecture}` | {module.side} | {known} |"
        lines.append(f"{head} {module.depth} | {' | '.join(cells)} |")
    notes = [f"{number}. {text}" for text, number in reasons.items()]
    titles = " | ".join(f"`{name}`" for name in methods)
    return "\n".join(
        (
            "<!-- written by `python tools/every_module.py`; do not edit -->",
            "# Every module of timm",
            "",
            "What methods do on the smallest model of each module of timm 1.0.31, at the",
            "least image size that it takes, with random weights of which none is zero. ● works, ◐",
            "works and does not merge here, – is refused; numbers lead to the reason below. Layers",
            "are (d)escribed or (i)nferred, see [anatomy.md](anatomy.md). Works means: the output",
            "depends on every tensor that the method added, statistics of frozen layers stay, and",
            "merging moves the logits by at most 1e-4 of the largest, in float64.",
            "",
            f"{len(taking)} of {len(rows)} modules take `lora`, `ssf` or `adapter_plus`.",
            *([f"Wrong: {', '.join(wrong)}."] if wrong else ["Nothing that is taken is wrong."]),
            *([f"Too large to run here: {', '.join(sorted(left_out))}."] if left_out else []),
            "",
            f"| module | model | pixels | layers | blocks | {titles} |",
            f"| --- | --- | ---: | :---: | ---: | {' | '.join(':---:' for _ in methods)} |",
            *lines,
            "",
            "## Reasons",
            "",
            *notes,
            "",
        )
    )


def _fine(outcome: Tried) -> bool:
    return bool(outcome.refusal) or outcome.is_right


def _cell(method: str, outcome: Tried, reasons: dict[str, int]) -> str:
    """A mark, with the number of its reason: the same for models that differ in names alone."""
    text = outcome.refusal or outcome.unmerged
    if not text:
        return "●" if outcome.is_right else "✗"
    text = text.partition(" Use method=")[0].partition(" Or tell ")[0]
    number = reasons.setdefault(f"`{method}`: {general(text, method)}", len(reasons) + 1)
    return f"{'–' if outcome.refusal else '◐'}<sup>{number}</sup>"


def source() -> str:
    """Of the package, whose changes may change what a method does."""
    files = sorted((ROOT / "peftbench").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def kept(methods: Sequence[str]) -> list[Module]:
    """Modules on which an earlier call of the same source tried the same methods."""
    found = []
    for line in KEPT.read_text(encoding="utf-8").splitlines() if KEPT.is_file() else ():
        values = json.loads(line)
        is_current = values.pop("source") == source()
        outcomes = {
            method: Tried(**{k: tuple(v) if isinstance(v, list) else v for k, v in tried.items()})
            for method, tried in values.pop("outcomes").items()
        }
        if is_current and tuple(outcomes) == tuple(methods):
            found.append(Module(**values, outcomes=outcomes))
    return found


def main() -> int:
    """Look at all modules, or at those that are named, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="of timm; all by default")
    parser.add_argument("--methods", nargs="+", default=KINDS, help="names of methods, or all")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    names = options.modules or [name for name in SMALLEST if name not in LARGE]
    methods = chosen(options.methods)
    done = [module for module in kept(methods) if module.name in names]
    left = [name for name in names if name not in {module.name for module in done}]
    failed = False
    with ProcessPoolExecutor(options.workers) as pool:
        waiting = {pool.submit(look, name, methods): name for name in left}
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                done.append(future.result())
                with KEPT.open("a", encoding="utf-8") as file:
                    line = {**dataclasses.asdict(done[-1]), "source": source()}
                    file.write(json.dumps(line) + "\n")
            except Exception as e:
                failed = True
                print(f"{name}: {type(e).__name__} {e}", file=sys.stderr)
            print(f"{len(done)} of {len(names)}: {name}", flush=True)
    text = page(done, LARGE - {module.name for module in done}, methods)
    options.out.write_text(text, encoding="utf-8")
    if not options.modules and not failed:
        KEPT.unlink(missing_ok=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
