"""How much longer a forward pass takes with each method than that of the plain backbone.

    python benchmarks/atlas_latency.py [METHOD ...] [--again] [--repeats 7]

One image, float32, one thread, random weights; the model is not folded. It takes turns in one
process with the same backbone that has a linear head alone (see `pairs.py`). Each method is written
as soon as it is measured: what is there is left out the next time, unless the method has changed
since, or with `--again`. Writes `results/benchmarks/atlas_<device>.json`; `make docs` reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import atlas_counts  # noqa: E402 - in the tools
from methods import slug  # noqa: E402 - beside this file
from pairs import CLASSES, batch, paired  # noqa: E402

from peftbench.backbones.copies import full_copy  # noqa: E402
from peftbench.backbones.kernels import choose_layout  # noqa: E402
from peftbench.backbones.load import load  # noqa: E402
from peftbench.cli.method_pages import anatomy_of  # noqa: E402
from peftbench.errors import PeftbenchError  # noqa: E402
from peftbench.methods import METHODS, Method, apply, discover  # noqa: E402
from peftbench.results.atomic import write_atomic  # noqa: E402
from peftbench.run import cost, provenance  # noqa: E402
from peftbench.spec import BackboneSpec  # noqa: E402

CPU = torch.device("cpu")
OUTPUT = ROOT / "results" / "benchmarks"
PLAIN = "linear"  # leaves the backbone as it is


@cache
def plain(home: str) -> nn.Module:
    """The backbone with random weights, of which speed does not depend."""
    loaded = load(BackboneSpec(atlas_counts.BACKBONES[home], pretrained=False), CLASSES)
    choose_layout(loaded.model)
    return loaded.model


def tuned(method: Method, home: str) -> nn.Module:
    """A copy of the plain backbone with `method` attached, ready to predict."""
    generator = torch.Generator().manual_seed(0)
    anatomy = anatomy_of(atlas_counts.BACKBONES[home])
    made = apply(method.offline(), full_copy(plain(home)), anatomy, CLASSES, generator)
    return made.model.eval()


def passing(model: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    """A forward pass of an image (1, 3, S, S)."""

    def forward() -> object:
        with torch.inference_mode():
            return model(image)

    return forward


def measured(method: Method, home: str, repeats: int) -> dict[str, Any]:
    """One row of the file; of a method that cannot be measured the reason."""
    row = {"method": method.name, "key": atlas_counts.key_of(method), "backbone": home}
    row["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
    image, _ = batch(1, anatomy_of(atlas_counts.BACKBONES[home]).image_size, CPU)
    try:
        first = passing(tuned(method, home), image)
        second = passing(tuned(METHODS[PLAIN](), home), image)
        pair = paired(method.name, first, second, CPU, repeats)
    except (PeftbenchError, RuntimeError, NotImplementedError) as e:
        return {**row, "absent": (str(e).strip() or type(e).__name__).splitlines()[0]}
    return {**row, **{k: v for k, v in dataclasses.asdict(pair).items() if k != "name"}}


def is_known(row: dict[str, Any] | None, method: Method, home: str) -> bool:
    """Whether a row of the file is of the method as it is now."""
    wanted = (atlas_counts.key_of(method), home)
    return row is not None and (row["key"], row["backbone"]) == wanted


def main(arguments: list[str] | None = None) -> Path:
    """Measure what `arguments` ask for; the file that was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help="all unless given")
    parser.add_argument("--again", action="store_true", help="also what the file has")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    discover()
    device = cost.device_name(CPU)
    path = options.output / f"atlas_{slug(device)}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else {}
    rows = {name: row for name, row in rows.items() if name in METHODS}
    for name in options.methods or METHODS:
        method = METHODS[name]()
        home, _ = atlas_counts.home_of(method)
        if not home or (is_known(rows.get(name), method, home) and not options.again):
            continue
        rows[name] = row = measured(method, home, options.repeats)
        span = f"{row['low']:.2f} to {row['high']:.2f}" if "ratio" in row else row["absent"]
        print(f"{row.get('ratio', float('nan')):6.2f}  {name} on {home} ({span})", flush=True)
        gc.collect()
        content = {
            "device": device,
            "dtype": "float32",
            "threads": 1,
            "versions": provenance.versions(),
            "rows": dict(sorted(rows.items())),
        }
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1) + "\n"
        write_atomic(path, lambda file, text=text: file.write(text.encode()))
    return path


if __name__ == "__main__":
    print(main())
