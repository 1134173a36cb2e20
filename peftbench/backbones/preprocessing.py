"""Image size and pixel pipeline of a backbone."""

from __future__ import annotations

from typing import Any

from peftbench.backbones.known import of_name
from peftbench.backbones.models.registry import register_all
from peftbench.backbones.shipped import SHIPPED
from peftbench.data.images import backend
from peftbench.errors import ConfigError
from peftbench.spec import (
    CHECKPOINT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    STATISTICS,
    BackboneSpec,
    Preprocessing,
    PreprocessingSpec,
)


def image_size(spec: BackboneSpec) -> int:
    """Side of the square input in pixels: the one asked for, else the checkpoint's own."""
    if spec.image_size is not None:
        if spec.image_size < 1:
            raise ConfigError(f"backbone.image_size={spec.image_size} is not a positive size.")
        return spec.image_size
    if spec.name in SHIPPED:
        return SHIPPED[spec.name].image_size
    for known in of_name(spec.name):
        return known.image_size
    return int(pretrained_cfg(spec).get("input_size", (3, 224, 224))[-1])


def resolve_preprocessing(
    spec: BackboneSpec, wanted: PreprocessingSpec, size: int
) -> Preprocessing:
    """The pixel pipeline: what is wanted, and what the checkpoint was trained with where not said.

    An interpolation of the checkpoint that is not in `INTERPOLATIONS`, such as timm's "random",
    becomes bicubic.
    """
    crop: float = 1.0
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if spec.name in SHIPPED:
        shipped = SHIPPED[spec.name]
        mean, std, crop = shipped.mean, shipped.std, shipped.crop_fraction
        interpolation = shipped.interpolation
    else:
        cfg = pretrained_cfg(spec)
        mean = _triple(cfg.get("mean", mean))
        std = _triple(cfg.get("std", std))
        crop = float(cfg.get("crop_pct") or 1.0)
        interpolation = str(cfg.get("interpolation"))
        if interpolation not in INTERPOLATIONS:
            interpolation = "bicubic"
    if wanted.normalisation != CHECKPOINT:
        mean, std = STATISTICS[wanted.normalisation]
    if wanted.crop_fraction is not None:
        crop = wanted.crop_fraction
    if wanted.interpolation != CHECKPOINT:
        interpolation = wanted.interpolation
    return Preprocessing(
        size=size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        resize=wanted.resize,
        crop_fraction=crop if wanted.resize == "crop" else 1.0,
        backend=backend(interpolation),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return (a, b, c)


def pretrained_cfg(spec: BackboneSpec) -> dict[str, Any]:
    import timm

    if spec.factory is not None:
        return {}
    register_all()
    cfg = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    return cfg.to_dict() if cfg is not None else {}
