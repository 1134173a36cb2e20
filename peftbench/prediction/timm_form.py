"""A merged model in the form that timm reads by itself: its configuration, and whether it suffices.

`timm.create_model("local-dir:FOLDER", pretrained=True)` builds the model from `config.json` and
`model.safetensors`; `create_transform(**resolve_model_data_config(model))` is then our transform.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import _hub
from torch import Tensor, nn

from peftbench.backbones.models.registry import is_own
from peftbench.prediction.transform import Transform
from peftbench.spec import TF_BILINEAR, Preprocessing

CONFIG = "config.json"
LOCAL_DIR_SINCE = "1.0.16"  # of timm, which reads a folder from there on
# of the configuration of an architecture, what holds for other weights too
KEPT = (
    *("fixed_input_size", "first_conv", "classifier"),
    *("license", "origin_url", "paper_name", "paper_ids"),
)
PROBES = ((37, 53), (90, 41), (64, 64), (300, 7), (223, 225))  # width and height of test pictures


def pretrained_cfg(preprocessing: Preprocessing, num_classes: int) -> dict[str, Any]:
    """What timm calls the pixels and the classes of a model, for its `pretrained_cfg`.

    Of `TF_BILINEAR`, which timm does not have, the nearest that it has.
    """
    crop = preprocessing.resize == "crop"
    without = preprocessing.interpolation == TF_BILINEAR
    return {
        "input_size": (3, preprocessing.size, preprocessing.size),
        "interpolation": "bilinear" if without else preprocessing.interpolation,
        "crop_mode": "center" if crop else "squash",
        "crop_pct": preprocessing.crop_fraction if crop else 1.0,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "num_classes": num_classes,
    }


def describe(model: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
    """Make the `pretrained_cfg` of a model in memory say what it takes and gives."""
    known = getattr(model, "pretrained_cfg", None) or {}
    told = {name: known[name] for name in (*KEPT, "architecture") if name in known}
    told |= pretrained_cfg(preprocessing, num_classes)
    # the second is what timm called it before
    vars(model).update(pretrained_cfg=told, default_cfg=told)


def config(
    built: Mapping[str, Any], model: nn.Module, classes: list[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """The content of `config.json`, as timm writes it for the hub.

    Args:
        built: architecture, number of classes and options of `timm.create_model`.
        model: the merged model.
    """
    known = getattr(model, "pretrained_cfg", None) or {}
    kept = {name: known[name] for name in KEPT if known.get(name) is not None}
    return {
        "architecture": built["architecture"],
        "num_classes": built["num_classes"],
        "num_features": getattr(model, "num_features", None),
        "label_names": classes,
        "model_args": dict(built["kwargs"]),
        "pretrained_cfg": {**kept, **pretrained_cfg(preprocessing, len(classes))},
    }


def reads_folders() -> bool:
    """Whether the installed timm knows `local-dir:`."""
    return hasattr(_hub, "load_model_config_from_path")


def load(folder: Path) -> nn.Module:
    """The model of a folder, as timm alone builds it."""
    if reads_folders():
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return timm.create_model(
        told["architecture"],
        checkpoint_path=str(folder / "model.safetensors"),
        pretrained_cfg=told["pretrained_cfg"],
        num_classes=told["num_classes"],
        **told["model_args"],
    )


def difference(folder: Path, state: Mapping[str, Tensor], transform: Transform) -> str | None:
    """Why the model that timm builds of a folder is another, or sees other pixels; `None` if not.

    Args:
        state: the tensors of the merged model.
    """
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if is_own(told["architecture"]):
        return f"{told['architecture']} is an architecture of peftbench"
    if transform.preprocessing.interpolation == TF_BILINEAR:
        return f"it has no {TF_BILINEAR}, which resizes without antialias"
    try:
        model = load(folder)
    except Exception as e:  # of any kind: timm is not ours
        return f"it cannot build the model ({type(e).__name__})"
    built = model.state_dict()
    if built.keys() != state.keys() or not all(torch.equal(built[k], state[k]) for k in state):
        return "it changes the weights while it reads them"
    theirs = create_transform(
        **resolve_model_data_config(model), is_training=False, normalize=False
    )
    generator = np.random.default_rng(0)
    for width, height in PROBES:
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        seen = np.asarray(theirs(picture)).transpose(1, 2, 0)
        if not np.array_equal(seen, transform.pixels(picture)):
            return "its transform gives other pixels"
    return None
