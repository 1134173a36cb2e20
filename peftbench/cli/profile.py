"""`peftbench profile`: what methods cost on backbones, without training and without data."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from peftbench.cli.exit import OK, UNSUPPORTED, USAGE
from peftbench.cli.hydra import run_with_hydra
from peftbench.cli.listing import columns
from peftbench.errors import ConfigError
from peftbench.untrusted import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from peftbench.run.profile import Profile, UnsupportedPair
    from peftbench.spec import RunSpec

HELP = """\
usage: peftbench profile [--meta] [--json] OVERRIDES...

What methods cost on backbones: parameters, stored bytes, operations, memory, and how long a step
and an answer take. Trains nothing and reads no images; the weights are random.

  peftbench profile method=lora backbone=vit_small_patch16_224
  peftbench profile method=lora,ssf,full backbone=vit_b16 recipe.batch_size=32
  peftbench profile 'method=*' backbone=vit_huge_patch14_224 --meta

  backbone=NAME     of `peftbench list backbones`, or any timm architecture
  dataset=NAME      for its number of classes; 100 unless given
  --meta            count and estimate only: needs neither memory nor time for the model
  --json            every number, unrounded, as a list of mappings

PEAK is the estimate of what training takes at most: weights, gradients, state of the optimiser,
activations. MEASURED is what it took on this device.
"""
CLASSES = 100
FLAGS = ("--meta", "--json", "-m", "--multirun")


def profile(arguments: Sequence[str]) -> int:
    """Print the costs that `arguments` ask for; the exit status says whether there are any."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return OK if arguments else USAGE
    overrides = [argument for argument in arguments if argument not in FLAGS]
    specs: list[tuple[RunSpec, int]] = []
    settings: list[DictConfig] = []

    def take(cfg: DictConfig) -> int:
        specs.append(_declared(cfg, named=any(o.startswith("dataset") for o in overrides)))
        settings.append(cfg)
        return OK

    for job in _jobs(overrides):
        run_with_hydra(take, job)
    rows = list(_profiles(specs, settings[0], measuring="--meta" not in arguments))
    if "--json" in arguments:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(_text(rows), end="")
    return OK if any(not hasattr(row, "reason") for row in rows) else UNSUPPORTED


def _jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each row: the product of all lists and globs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from peftbench.config.choices import choices
    from peftbench.config.globs import written_out

    parser = OverridesParser.create()
    texts = ["method=glob(*)" if text == "method=*" else text for text in overrides]
    values: list[list[list[str]]] = []
    for text in texts:
        if text.startswith("-"):
            raise ConfigError(f"{text} is no option of `peftbench profile`. It has --meta, --json.")
        try:
            (override,) = parser.parse_overrides([text])
            (override,) = parser.parse_overrides([written_out(override)])
        except OverrideParseException:
            values.append([[text]])  # as it is, for the error of a run
            continue
        found = [text]
        if override.is_sweep_override():
            key = override.get_key_element()
            found = [f"{key}={value}" for value in override.sweep_string_iterator()]
        values.append([_architecture(one, choices("backbone")) for one in found])
    for job in itertools.product(*values):
        yield [override for part in job for override in part]


def _architecture(override: str, known: Collection[str]) -> list[str]:
    """`backbone=NAME` as the architecture of that name where no configuration has it."""
    key, _, name = override.partition("=")
    if key != "backbone" or name in known:
        return [override]
    return [f"backbone.name={name}", "backbone.pretrained=false"]


def _declared(cfg: DictConfig, *, named: bool) -> tuple[RunSpec, int]:
    """The run of a configuration, whose data are not looked at, and its number of classes."""
    from peftbench.config.build import build
    from peftbench.run.experiment import check

    spec = build(cfg, lambda dataset: dataset)
    check(spec, cfg.device, cfg.threads)
    return spec, _classes(spec) if named else CLASSES


def _classes(spec: RunSpec) -> int:
    """Of the data set: as published, or as its files say where it is small or one's own."""
    from peftbench import data

    if spec.dataset.facts.classes is not None:
        return spec.dataset.facts.classes
    if spec.dataset.reader not in ("mini", "folder"):
        raise ConfigError(
            f"dataset={spec.dataset.name} does not say how many classes it has before it is read. "
            "Leave it out; a head of 100 classes is counted then."
        )
    return len(data.READERS[spec.dataset.reader](spec.dataset).class_names)


def _profiles(
    specs: Sequence[tuple[RunSpec, int]], cfg: DictConfig, *, measuring: bool
) -> Iterator[Profile | UnsupportedPair]:
    import torch

    from peftbench.cli.libraries import load_libraries
    from peftbench.run.profile import Profiler
    from peftbench.training.device import Compute, choose_device, choose_dtype

    load_libraries()
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg.device)
    profilers: dict[torch.dtype, Profiler] = {}
    for spec, classes in specs:
        dtype = choose_dtype(spec.precision, device)
        profiler = profilers.setdefault(dtype, Profiler(Compute(device, dtype), measuring))
        yield profiler(spec, classes)


def _text(rows: Sequence[Profile | UnsupportedPair]) -> str:
    """A table of what is known, the reasons of what is refused, and what the numbers are of."""
    from peftbench.run.profile import UnsupportedPair

    known = [row for row in rows if not isinstance(row, UnsupportedPair)]
    measured = any(row.step_ms is not None for row in known)
    several = len({row.hyperparameters for row in known}) > len({row.method for row in known})
    lines: list[list[object]] = [[*HEADINGS, *(MEASURED_HEADINGS if measured else ())]]
    for row in known:
        name = f"{row.method} {row.hyperparameters}" if several else row.method
        lines.append([name, row.backbone, *_counts(row), *(_times(row) if measured else ())])
    text = columns(lines) if known else ""
    for each in rows:
        if isinstance(each, UnsupportedPair):
            text += printable(f"{each.method} on {each.backbone}: {each.reason}") + "\n"
    for about in dict.fromkeys(map(_about, known)):
        text += printable(about) + "\n"
    return text


HEADINGS = (
    *("METHOD", "BACKBONE", "ADDED", "UNFROZEN", "HEAD", "STORED"),
    *("FORWARD GMAC", "TRAINING GFLOP", "KEPT", "PEAK"),
)
MEASURED_HEADINGS = (
    *("MEASURED", "STEP MS", "OF FULL", "LATENCY 1", "MERGED 1", "LATENCY N", "MERGED N"),
)


def _counts(row: Profile) -> list[str]:
    return [
        f"{row.params_method:,}",
        f"{row.params_unfrozen:,}",
        f"{row.params_head:,}",
        _size(row.stored_bytes),
        f"{row.forward_gmacs:.4g}",
        f"{row.training_gflops:.4g}",
        _size(row.kept_bytes),
        _size(row.estimated_peak_bytes),
    ]


def _times(row: Profile) -> list[str]:
    full = row.step_over_full
    return [
        "-" if row.measured_peak_bytes is None else _size(row.measured_peak_bytes),
        _spread(row.step_ms, row.step_ms_iqr),
        "-" if full is None else f"{full:.2f}",
        _spread(row.latency_ms_batch1, row.latency_ms_batch1_iqr),
        _spread(row.merged_latency_ms_batch1, row.merged_latency_ms_batch1_iqr),
        _spread(row.latency_ms_batch, row.latency_ms_batch_iqr),
        _spread(row.merged_latency_ms_batch, row.merged_latency_ms_batch_iqr),
    ]


def _about(row: Profile) -> str:
    """What the numbers of a row are of."""
    text = (
        f"{row.backbone}: images of {row.image_size} pixels, batch of {row.batch_size}, "
        f"head of {row.classes} classes, {row.dtype}, {row.device}"
    )
    if row.latency_batch_size is None:
        return text
    return (
        f"{text}; latency in ms of 1 and of N={row.latency_batch_size} images; "
        "behind ± half of what lies between the quartiles"
    )


def _spread(median: float | None, iqr: float | None) -> str:
    if median is None:
        return "-"
    return f"{median:.4g}" if iqr is None else f"{median:.4g} ±{iqr / 2:.2g}"


def _size(count: float) -> str:
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} GB"
