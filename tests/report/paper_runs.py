"""Records as if papers had been measured here: accuracies from published rows, counts by formula.

Sizes on ViT-B/16 are those of docs/parameters.md, which the tests of the methods count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from peftbench.results.record import Cost, Parameters, Provenance, RunRecord, Status

WIDTH = 768
BACKBONE = 85_798_656  # ViT-B/16 without a classifier
# data set -> classes, as in the papers of VTAB and VPT; 940 and 1,173 in all
VTAB = {
    "natural": {
        **{"cifar100": 100, "caltech101": 102, "dtd": 47, "flowers102": 102, "pets": 37},
        **{"svhn": 10, "sun397": 397},
    },
    "specialized": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "retinopathy": 5},
    "structured": {
        **{"clevr_count": 8, "clevr_distance": 6, "dmlab": 6, "kitti": 4},
        **{"dsprites_location": 16, "dsprites_orientation": 16},
        **{"smallnorb_azimuth": 18, "smallnorb_elevation": 9},
    },
}
FGVC = {
    **{"cub200": 200, "nabirds": 555, "oxford_flowers": 102},
    **{"stanford_dogs": 120, "stanford_cars": 196},
}
# prompt lengths of VPT-Deep that fit its printed percentages, in the order above
LENGTHS = dict(
    zip(
        [*(name for group in VTAB.values() for name in group), *FGVC],
        (10, 10, 10, 1, 1, 50, 5, 100, 100, 10, 1, 50, 200, 100, 50, 10, 50, 200, 200)
        + (10, 50, 5, 100, 200),
        strict=True,
    )
)

# title of a published row -> method, settings, parameters added, parameters unfrozen
METHODS: Mapping[str, tuple[str, dict[str, Any], int, int]] = {
    "Full": ("full", {}, 0, BACKBONE),
    "Linear": ("linear", {}, 0, 0),
    "Partial-1": ("partial", {"num_blocks": 1}, 0, 7_089_408),
    "MLP-2": ("mlp", {"num_layers": 2}, 0, 0),
    "MLP-3": ("mlp", {"num_layers": 3}, 0, 0),
    "MLP-5": ("mlp", {"num_layers": 5}, 0, 0),
    "MLP-9": ("mlp", {"num_layers": 9}, 0, 0),
    "Sidetune": ("sidetune", {}, 9_547_585, 0),
    "Bias": ("bias", {}, 0, 102_912),
    "Adapter-256": ("adapter_vpt", {"reduction": 256}, 64_548, 0),
    "Adapter-64": ("adapter_vpt", {"reduction": 64}, 230_544, 0),
    "Adapter-8": ("adapter_vpt", {"reduction": 8}, 1_779_840, 0),
    "VPT-Shallow": ("vpt_shallow", {"num_tokens": 100}, 100 * WIDTH, 0),
    "VPT-Deep": ("vpt_deep", {}, 0, 0),  # settings and size by data set: LENGTHS
    "SSF": ("ssf", {}, 205_824, 0),
}
PIXELS = {  # conf/protocol/*.yaml, with what conf/suite changes
    "vpt": {"normalisation": "imagenet", "resize": "squash", "interpolation": "tf_bilinear"},
    "ssf": {"normalisation": "checkpoint", "resize": "squash", "interpolation": "bicubic"},
    "peftbench": {
        "normalisation": "checkpoint",
        "resize": "squash",
        "interpolation": "checkpoint",
    },
}
CROPPED: dict[str, dict[str, str]] = {  # on FGVC
    "vpt": {"resize": "crop", "interpolation": "bilinear"},
    "ssf": {"resize": "crop"},
    "peftbench": {"resize": "crop"},
}
ORIG = "vit_base_patch16_224.orig_in21k"
AUGREG = "vit_base_patch16_224.augreg_in21k"


def run(
    title: str,
    dataset: str,
    top1: float | None,
    *,
    seed: int = 42,
    protocol: str = "vpt",
    weights: str = ORIG,
    **changes: Any,
) -> RunRecord:
    """A record of one run of the published row `title` on `dataset` ("kitti"); top-1 in percent."""
    suite, group, classes = place(dataset)
    method, settings, added, unfrozen = METHODS[title]
    if title == "VPT-Deep":
        settings, added = {"num_tokens": LENGTHS[dataset]}, 12 * LENGTHS[dataset] * WIDTH
    hidden = settings.get("num_layers", 1) - 1
    head = (WIDTH + 1) * classes + hidden * (WIDTH**2 + 3 * WIDTH)
    pixels = {**PIXELS[protocol], **(CROPPED[protocol] if suite == "fgvc" else {})}
    status = changes.pop("status", Status.OK)
    selection = changes.pop("selection", "best_on_test" if protocol == "ssf" else "last")
    recipe = "default" if protocol == "peftbench" else protocol
    spec = {
        "method": {"name": method, "version": 1, "hyperparameters": settings},
        "backbone": {"name": weights, "title": weights.partition(".")[2], "pretrained": True},
        "dataset": {
            "name": f"{suite}/{dataset}",
            "suite": suite,
            "suite_version": 1,
            "group": group,
            "manifest": f"files of {dataset}",
            **changes.pop("dataset", {}),
        },
        "preprocessing": {**pixels, **changes.pop("pixels", {})},
        "recipe": {"name": recipe, "epochs": 100, **changes.pop("recipe", {})},
        "protocol": {"name": protocol},
        "seed": seed,
        "phase": "final",
        "precision": "auto",
    }
    ok = status is Status.OK
    fields: dict[str, Any] = {
        "metrics": {"test/top1": top1 / 100} if top1 is not None else {},
        "error": None if ok else "boom",
        "parameters": Parameters(added, head, unfrozen, BACKBONE, 0) if ok else None,
        "cost": Cost(device="cpu", dtype="float32"),
        "provenance": Provenance(
            "0", "3", {}, None, None, "h", "p", 1, backbone_sha256=changes.pop("sha256", weights)
        ),
    }
    return RunRecord(
        run_id=hashlib.sha256(repr((spec, selection)).encode()).hexdigest()[:16],
        spec=spec,
        status=status,
        selection=selection,
        **{**fields, **changes},
    )


def place(dataset: str) -> tuple[str, str, int]:
    """Suite, group and classes of a data set."""
    for group, members in VTAB.items():
        if dataset in members:
            return "vtab", group, members[dataset]
    return "fgvc", "", FGVC[dataset]


def of_published(
    numbers: pd.DataFrame, paper: str, pretrain: str, titles: Sequence[str], **changes: Any
) -> list[RunRecord]:
    """One run for each published cell of these rows, as if it had been measured."""
    rows = numbers[
        (numbers["paper"] == paper)
        & (numbers["backbone"] == "vit_b16")
        & (numbers["pretrain"] == pretrain)
        & numbers["suite"].isin(["vtab1k", "fgvc"])
        & numbers["method"].isin(titles)
    ]
    return [
        run(row["method"], row["dataset"], row["top1"], **changes)
        for row in rows.to_dict("records")
        if not row["dataset"].startswith("mean_")
    ]
