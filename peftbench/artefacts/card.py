"""The card of a tuned task, as somebody else may have written it.

What a card says reaches loaders only through here: as values that are known by name, type and
range. Places are not followed: weights from a file are given by whoever loads the task.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

from peftbench.data.images import Levels
from peftbench.results.privacy import public
from peftbench.spec import FACTORY, INTERPOLATIONS, RESIZES, BackboneSpec, Preprocessing
from peftbench.untrusted import printable

MOST_BYTES = 16 * 2**20  # of a card; one of 21,000 classes has 1 MB
MOST_CLASSES = 100_000
LARGEST_IMAGE = 4096  # side in pixels
LARGEST_HYPERPARAMETER = 2**14  # of those that are integers: ranks, tokens, widths, layers
MOST_SHOWN = 60  # characters of a foreign text in a message
SHA256 = re.compile(r"[0-9a-f]{64}")
DTYPES = ("float32", "bfloat16")  # of forward passes; cards from before it was kept are the first
KINDS = ("task", "merged")  # of exported folders; the card of a run has none
# what may build a merged model: what `peftbench.backbones.load.construction` gives, and up to what
OPTIONS = {
    "img_size": LARGEST_IMAGE,
    "patch_size": 512,
    "embed_dim": 2**14,
    "depth": 512,
    "num_heads": 512,
}
# what every card of a task has, by its path, beside what is looked at more closely
TASK_FIELDS: Mapping[str, type] = {
    "spec.backbone": dict,
    "spec.method.name": str,
    "spec.method.version": int,
    "spec.method.hyperparameters": dict,
    "provenance.backbone_sha256": str,
    "provenance.peftbench": str,
    "provenance.preprocessing.size": int,
}
# how a picture becomes what the model takes
PIXEL_FIELDS: Mapping[str, type] = {
    "provenance.preprocessing.size": int,
    "provenance.preprocessing.resize": str,
    "provenance.preprocessing.interpolation": str,
    "provenance.preprocessing.mean": list,
    "provenance.preprocessing.std": list,
}
# what the README of an exported folder tells besides
README_FIELDS: Mapping[str, type] = {
    "run_id": str,
    "metrics": dict,
    "method_card.title": str,
    "method_card.paper": str,
    "spec.dataset.name": str,
    "spec.dataset.manifest": str,
    **PIXEL_FIELDS,
}


def parse(data: bytes) -> dict[str, Any]:
    """The card in `data`, with the fields that its kind needs; numbers that are none become null.

    Raises:
        ValueError: it is no card, or one with fields of other types.
    """
    try:
        card = json.loads(data.decode("utf-8"), parse_constant=lambda text: None)
    except UnicodeDecodeError as e:
        raise ValueError("it is not UTF-8") from e
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if not isinstance(card, dict):
        raise ValueError("it is no mapping")
    missing = {"spec", "classes", "provenance"} - card.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if "kind" in card and card["kind"] not in KINDS:
        raise ValueError(f"its kind is {_shown(card['kind'])}, not {' or '.join(KINDS)}")
    _check_classes(card["classes"])
    if card.get("kind") == "merged":
        construction(card)
    else:
        require(card, TASK_FIELDS)
        if not SHA256.fullmatch(card["provenance"]["backbone_sha256"]):
            raise ValueError("its provenance.backbone_sha256 is no SHA-256")
        _check_range("provenance.preprocessing.size", image_size(card), LARGEST_IMAGE)
        backbone(card)
        hyperparameters(card)
    return dict(card)


def shared(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card as it leaves the machine: files and folders by name, no hosts, no users."""
    copied = public(card)
    for parts, key in (
        (("spec", "backbone"), "checkpoint"),
        (("spec", "dataset"), "root"),
        (("provenance",), "backbone_source"),
    ):
        place: Any = copied
        for part in parts:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = file_name(place[key])  # a relative path tells of folders too
    return copied


def require(card: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    """Raise `ValueError` unless each of `fields`, named by its path, is there and of its type."""
    for path, kind in fields.items():
        value: Any = card
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                raise ValueError(f"it lacks {path}")
            value = value[name]
        if type(value) is not kind:
            raise ValueError(f"its {path} is {_shown(value)}")


def check_numbers(card: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless metrics (or null) and statistics of pixels are numbers."""
    check_statistics(card["provenance"]["preprocessing"])
    for name, value in card["metrics"].items():
        if value is not None and not _is_number(value):
            raise ValueError(f"its metric {_shown(name)} is {_shown(value)}")


def check_statistics(pixels: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless mean and standard deviation are three numbers each."""
    for key in ("mean", "std"):
        if len(pixels[key]) != 3 or not all(map(_is_number, pixels[key])):
            raise ValueError(f"its provenance.preprocessing.{key} is no list of three numbers")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def image_size(card: Mapping[str, Any]) -> int:
    """Side of the images of a task."""
    return int(card["provenance"]["preprocessing"]["size"])


def preprocessing(card: Mapping[str, Any]) -> Preprocessing:
    """What happens to the pixels of a picture before the model sees it.

    Raises:
        ValueError: a field is missing or makes no sense.
    """
    require(card, {"provenance.preprocessing": dict, **PIXEL_FIELDS})
    raw = card["provenance"]["preprocessing"]
    _check_range("provenance.preprocessing.size", raw["size"], LARGEST_IMAGE)
    for key, known in (("resize", RESIZES), ("interpolation", INTERPOLATIONS)):
        if raw[key] not in known:
            raise ValueError(
                f"its provenance.preprocessing.{key} is {_shown(raw[key])}, not one of "
                f"{', '.join(known)}"
            )
    check_statistics(raw)
    if not all(value > 0 for value in raw["std"]):
        raise ValueError("its provenance.preprocessing.std has a number that is not above 0")
    crop = raw.get("crop_fraction", 1.0)
    if not _is_number(crop) or not 0 < crop <= 1:
        raise ValueError(f"its provenance.preprocessing.crop_fraction is {_shown(crop)}")
    mean, std = (tuple(map(float, raw[key])) for key in ("mean", "std"))
    return Preprocessing(
        size=raw["size"],
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation=raw["interpolation"],
        resize=raw["resize"],
        crop_fraction=float(crop),
    )


def levels(card: Mapping[str, Any]) -> Levels | None:
    """What was black and white in pictures of more than 8 bits, where the data had any.

    Raises:
        ValueError: it is no such range.
    """
    data = card["provenance"].get("data")
    given = data.get("levels") if isinstance(data, dict) else None
    if given is None:
        return None
    if (
        not isinstance(given, list)
        or len(given) != 2
        or any(type(value) is not int or abs(value) >= 2**63 for value in given)
        or given[0] >= given[1]
    ):
        raise ValueError(f"its provenance.data.levels is {_shown(given)}, not black and white")
    return Levels(*given)


def dtype(card: Mapping[str, Any]) -> str:
    """Arithmetic in which a task was tested, one of `DTYPES`.

    Raises:
        ValueError: it is none of them.
    """
    name = card.get("dtype", DTYPES[0])
    if name not in DTYPES:
        raise ValueError(f"its dtype is {_shown(name)}, not {' or '.join(DTYPES)}")
    return str(name)


def backbone(card: Mapping[str, Any]) -> BackboneSpec:
    """The backbone that a task was tuned on; of a local file only its name and its hash.

    Raises:
        ValueError: a field is not known, or its value makes no sense.
    """
    raw = card["spec"]["backbone"]
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "pretrained": (bool,),
        "checkpoint": (str, type(None)),
        "checkpoint_sha256": (str,),
        "image_size": (int, type(None)),
        "drop_path": (float, int),
        "seed": (int,),
        "title": (str,),
        "anatomy": (str,),
        "factory": (str, type(None)),
    }
    _known("spec.backbone", raw, kinds)
    for name, value in raw.items():
        if type(value) not in kinds[name]:
            raise ValueError(f"its spec.backbone.{name} is {_shown(value)}")
    if "name" not in raw:
        raise ValueError("it lacks spec.backbone.name")
    if raw.get("image_size") is not None:
        _check_range("spec.backbone.image_size", raw["image_size"], LARGEST_IMAGE)
    if not 0 <= raw.get("drop_path", 0) < 1:
        raise ValueError(f"its spec.backbone.drop_path is {_shown(raw['drop_path'])}")
    if not -(2**63) <= raw.get("seed", 0) < 2**63:
        raise ValueError("its spec.backbone.seed has more than 64 bits")
    sha256 = raw.get("checkpoint_sha256", "")
    if sha256 and not SHA256.fullmatch(sha256):
        raise ValueError("its spec.backbone.checkpoint_sha256 is no SHA-256")
    told = raw.get("anatomy", "")
    if told and not told.startswith("{"):  # a file of this machine would be read
        raise ValueError("its spec.backbone.anatomy is no text of corrections")
    if raw.get("factory") is not None and not FACTORY.fullmatch(raw["factory"]):
        raise ValueError(f"its spec.backbone.factory is {_shown(raw['factory'])}")
    spec = BackboneSpec(**raw)
    if spec.checkpoint is None:
        return spec
    return dataclasses.replace(spec, checkpoint=file_name(spec.checkpoint))


def file_name(path: str) -> str:
    """The last part of a path of this or another system."""
    return PureWindowsPath(PurePath(path).name).name or path


def hyperparameters(card: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the method of a task: plain values of a size that some method may have.

    With the structure that training images decided, where they did.

    Raises:
        ValueError: one is something else.
    """
    values: dict[str, Any] = card["spec"]["method"]["hyperparameters"]
    if "settled" in card:
        require(card, {"settled": dict})
        values = card["settled"]
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if len(items) > LARGEST_HYPERPARAMETER or not all(map(_is_plain, items)):
            raise ValueError(f"its spec.method.hyperparameters.{_shown(name)} is {_shown(value)}")
    return values


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        # OmegaConf would look up what stands in ${}
        return len(value) <= MOST_SHOWN and "$" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= LARGEST_HYPERPARAMETER)


def construction(card: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    """Name, number of classes and options with which timm builds a merged model.

    Raises:
        ValueError: anything but what an export writes: an option that is not known, a number out
            of range, another number of classes than the card lists.
    """
    require(
        card, {"timm": dict, "timm.architecture": str, "timm.num_classes": int, "timm.kwargs": dict}
    )
    built = card["timm"]
    _known("timm", built, ("architecture", "num_classes", "kwargs"))
    _known("timm.kwargs", built["kwargs"], OPTIONS)
    for name, value in built["kwargs"].items():
        _check_range(f"timm.kwargs.{name}", value, OPTIONS[name])
    if built["num_classes"] != len(card["classes"]):
        raise ValueError(
            f"its timm.num_classes is {_shown(built['num_classes'])} and it lists "
            f"{len(card['classes'])} classes"
        )
    return built["architecture"], built["num_classes"], dict(built["kwargs"])


def _check_classes(classes: Any) -> None:
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"it lists {len(classes)} classes, not 1 to {MOST_CLASSES:,}")


def _check_range(path: str, value: Any, largest: int) -> None:
    if type(value) is not int or not 1 <= value <= largest:
        raise ValueError(f"its {path} is {_shown(value)}, not 1 to {largest:,}")


def _known(path: str, given: Mapping[str, Any], known: Any) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"its {path} has {_shown(unknown[0])}, which no export writes")


def _shown(value: Any) -> str:
    """A foreign value in a message: one line, cut where it is long."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = printable(repr(value))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
