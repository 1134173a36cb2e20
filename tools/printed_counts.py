"""Parameter counts as papers print them, and the conventions under which ours are the same.

Values are in millions unless they are multiples of the backbone. Prompt lengths and ranks by task
are those of the released configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods import METHODS

# task -> classes, in the order of the three groups of VTAB-1k
NATURAL = {
    "CIFAR-100": 100,
    "Caltech101": 102,
    "DTD": 47,
    "Flowers102": 102,
    "Pets": 37,
    "SVHN": 10,
    "SUN397": 397,
}
SPECIALIZED = {"Camelyon": 2, "EuroSAT": 10, "RESISC45": 45, "Retinopathy": 5}
STRUCTURED = {
    "Clevr count": 8,
    "Clevr distance": 6,
    "DMLab": 6,
    "KITTI": 4,
    "dSprites location": 16,
    "dSprites orientation": 16,
    "sNORB azimuth": 18,
    "sNORB elevation": 9,
}
VTAB_GROUPS = (NATURAL, SPECIALIZED, STRUCTURED)
VTAB = {**NATURAL, **SPECIALIZED, **STRUCTURED}
FGVC = {"CUB-200": 200, "NABirds": 555, "Flowers": 102, "Stanford Dogs": 120, "Stanford Cars": 196}

Chosen = Mapping[str, Sequence[int]]  # by suite, in the order of its tasks

# VPT on ViT-B/16: prompt lengths. Shallow: arXiv 2401.12902, tables 16-18. Deep: each row "Tuned /
# Total" of VPT fits one value of its grid; FGVC as configured by visinf/adapter_plus.
DEEP: Chosen = {
    "VTAB": (10, 10, 10, 1, 1, 50, 5, 100, 100, 10, 1, 50, 200, 100, 50, 10, 50, 200, 200),
    "FGVC": (10, 50, 5, 100, 200),
}
SHALLOW: Chosen = {
    "VTAB": (100, 5, 1, 200, 50, 200, 1, 5, 50, 50, 10, 100, 200, 100, 100, 100, 100, 200, 200),
}
# FacT: ranks of the released configurations
TT: Chosen = {"VTAB": (8, 16, 8, 16, 8, 16, 8, 8, 8, 8, 8, 16, 4, 16, 16, 16, 16, 16, 8)}
TK: Chosen = {"VTAB": (32, 32, 16, 32, 16, 32, 16, 32, 32, 32, 16, 32, 16, 32, 32, 32, 32, 32, 16)}


@dataclass(frozen=True)
class Row:
    """One printed number."""

    title: str
    method: str
    backbone: str
    tasks: str  # VTAB, FGVC or both
    convention: str
    printed: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    by_task: tuple[str, Chosen] | None = None  # option that differs between tasks


CONVENTIONS: Mapping[str, str] = {
    "C1": "head excluded; mean of the tasks of each VTAB group, then of the three groups",
    "C2": "head included; plain mean over the tasks",
    "C3": "head excluded; plain mean over the tasks",
    "C4": "what 24 tasks (VTAB and FGVC) need together, heads included, as a multiple of the "
    "backbone: one shared backbone and what each task adds, or 24 copies for full fine-tuning",
}


def conventions() -> list[str]:
    """The conventions as a Markdown list."""
    lines = ["Papers count under different conventions, which explain every number below:", ""]
    return lines + [f"* {name}: {text}." for name, text in CONVENTIONS.items()]


def ours(row: Row, anatomy: Anatomy) -> str:
    """Our count for the row under its convention, with as many decimals as the paper prints."""
    decimals = len(row.printed.rstrip("x").partition(".")[2])
    if row.convention == "C4":
        added = sum(
            _tuned(row, anatomy, suite, index) + _head(row, anatomy, classes)
            for suite, classes_of in (("VTAB", VTAB), ("FGVC", FGVC))
            for index, classes in enumerate(classes_of.values())
        )
        shared = 0 if row.method == "full" else anatomy.num_params
        return f"{(shared + added) / anatomy.num_params:.{decimals}f}x"
    classes_of = VTAB if row.tasks == "VTAB" else FGVC
    counts = [
        _tuned(row, anatomy, row.tasks, index)
        + (_head(row, anatomy, classes) if row.convention == "C2" else 0)
        for index, classes in enumerate(classes_of.values())
    ]
    if row.convention == "C1":
        groups, start = [], 0
        for group in VTAB_GROUPS:
            groups.append(fmean(counts[start : start + len(group)]))
            start += len(group)
        mean = fmean(groups)
    else:
        mean = fmean(counts)
    return f"{mean / 1e6:.{decimals}f}"


def _tuned(row: Row, anatomy: Anatomy, suite: str, index: int) -> int:
    options = dict(row.options)
    if row.by_task is not None:
        key, chosen = row.by_task
        options[key] = chosen[suite][index]
    count: int = METHODS[row.method](**options).expected_params(anatomy)
    return count


def _head(row: Row, anatomy: Anatomy, classes: int) -> int:
    linear = (anatomy.head_width + 1) * classes
    if row.method != "mlp":
        return linear
    width, hidden = anatomy.head_width, int(row.options["num_layers"]) - 1
    return linear + hidden * (width * width + 3 * width)


_TOKENS = "num_tokens"
_SSF = "SSF, quoted by RLRR"
_FGVC = "RLRR, table 3"
_LARGE = "RLRR, table 4"
_SWIN = "RLRR, table 5"
_NOAH = "HyperAdapter, table 1"
_VPETL = "V-PETL Bench, README"
_VPT = "VPT, table 1"
_FACT = "FacT, as quoted"
B, L, H, S = "ViT-B/16", "ViT-L/16", "ViT-H/14", "Swin-B"

ROWS: tuple[Row, ...] = (
    Row("VPT-shallow", "vpt_shallow", B, "VTAB", "C1", "0.06", _NOAH, by_task=(_TOKENS, SHALLOW)),
    Row("VPT-deep", "vpt_deep", B, "VTAB", "C1", "0.53", _NOAH, by_task=(_TOKENS, DEEP)),
    Row("BitFit", "bias", B, "VTAB", "C1", "0.10", _NOAH),
    Row("Adapter-8", "adapter", B, "VTAB", "C1", "0.16", _NOAH),
    Row("AdaptFormer-8", "adaptformer", B, "VTAB", "C1", "0.16", _NOAH, {"bottleneck": 8}),
    Row("LoRA-8", "lora", B, "VTAB", "C1", "0.29", _NOAH),
    Row("FacT-TT", "fact_tt", B, "VTAB", "C1", "0.037", _FACT, by_task=("rank", TT)),
    Row("FacT-TK", "fact_tk", B, "VTAB", "C1", "0.069", _FACT, by_task=("rank", TK)),
    Row("full", "full", B, "VTAB", "C2", "85.84", _SSF),
    Row("linear", "linear", B, "VTAB", "C2", "0.04", _SSF),
    Row("bias", "bias", B, "VTAB", "C2", "0.14", _SSF),
    Row("adapter", "adapter_vpt", B, "VTAB", "C2", "0.27", _SSF, {"reduction": 64}),
    Row("VPT-shallow", "vpt_shallow", B, "VTAB", "C2", "0.11", _SSF, by_task=(_TOKENS, SHALLOW)),
    Row("VPT-deep", "vpt_deep", B, "VTAB", "C2", "0.60", _SSF, by_task=(_TOKENS, DEEP)),
    Row("SSF", "ssf", B, "VTAB", "C2", "0.24", _SSF),
    Row("full", "full", B, "FGVC", "C2", "85.98", _FGVC),
    Row("linear", "linear", B, "FGVC", "C2", "0.18", _FGVC),
    Row("adapter", "adapter_vpt", B, "FGVC", "C2", "0.41", _FGVC, {"reduction": 64}),
    Row("bias", "bias", B, "FGVC", "C2", "0.28", _FGVC),
    Row("VPT-deep", "vpt_deep", B, "FGVC", "C2", "0.85", _FGVC, by_task=(_TOKENS, DEEP)),
    Row("SSF", "ssf", B, "FGVC", "C2", "0.39", _FGVC),
    Row("linear", "linear", L, "VTAB", "C2", "0.05", _LARGE),
    Row("bias", "bias", L, "VTAB", "C2", "0.32", _LARGE),
    Row("SSF", "ssf", L, "VTAB", "C2", "0.60", _LARGE),
    Row("linear", "linear", H, "VTAB", "C2", "0.06", _LARGE),
    Row("bias", "bias", H, "VTAB", "C2", "0.52", _LARGE),
    Row("SSF", "ssf", H, "VTAB", "C2", "0.97", _LARGE),
    Row("linear", "linear", S, "VTAB", "C2", "0.05", _SWIN),
    Row("bias, as released", "bias", S, "VTAB", "C2", "0.25", _SWIN, {"variant": "released"}),
    Row("partial-1", "partial", S, "VTAB", "C2", "12.65", _SWIN),
    Row("VPT-deep", "vpt_deep", B, "VTAB", "C3", "0.56", _VPETL, by_task=(_TOKENS, DEEP)),
    Row("SSF", "ssf", B, "VTAB", "C3", "0.21", _VPETL),
    Row("BitFit", "bias", B, "VTAB", "C3", "0.10", _VPETL),
    Row("LoRA", "lora", B, "VTAB", "C3", "0.29", _VPETL),
    Row("full", "full", B, "both", "C4", "24.02x", _VPT),
    Row("VPT-deep", "vpt_deep", B, "both", "C4", "1.18x", _VPT, by_task=(_TOKENS, DEEP)),
)
