"""What the architectures share: entries of timm's registry, norms of maps, heads."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from peftbench.backbones.models.architectures import ARCHITECTURES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def register(module: str, first_conv: str, classifier: str, interpolation: str) -> None:
    """Enter the architectures of a module of this package into timm's registry.

    Args:
        first_conv: path of the layer that reads the image.
        classifier: path of the classifier.
        interpolation: with which pictures were resized for training.
    """
    own = sys.modules[module]
    short = module.rpartition(".")[2]
    mine = {name: size for name, size in ARCHITECTURES.items() if size.module == short}
    configured: dict[str, dict[str, Any]] = {}
    vars(own)["default_cfgs"] = configured
    for name, size in mine.items():
        configured[name] = {
            "num_classes": 1000,
            "input_size": (3, size.image_size, size.image_size),
            "crop_pct": 0.875 if size.image_size == 224 else 1.0,
            "interpolation": interpolation,
            "mean": MEAN,
            "std": STD,
            "first_conv": first_conv,
            "classifier": classifier,
        }
        register_model(_entry(name, getattr(own, size.kind), module))


def _entry(name: str, kind: type[nn.Module], module: str) -> Any:
    """What timm calls to build the architecture `name`."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        given = {**ARCHITECTURES[name].options, **options}
        model: nn.Module = build_model_with_cfg(kind, name, pretrained, **given)
        return model

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = module
    return entry


def classifier_of(num_features: int, num_classes: int) -> nn.Module:
    """A linear classifier; none where there are no classes."""
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


def check_pooling(global_pool: str) -> str:
    """`global_pool`, which can be "avg" alone.

    Raises:
        ValueError: it is another one.
    """
    if global_pool != "avg":
        raise ValueError(f"global_pool={global_pool!r}: this architecture has 'avg' alone.")
    return global_pool


def rates(drop_path_rate: float, count: int) -> list[float]:
    """Rates of stochastic depth of `count` blocks in order, from zero to `drop_path_rate`."""
    return [drop_path_rate * index / max(1, count - 1) for index in range(count)]


def draw_weights(module: nn.Module) -> None:
    """Start values of a linear layer or convolution: normal with 0.02, cut at 2; biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def in_float32(x: Tensor) -> Tensor:
    """`x` (...) in float32 where it has half the bits, for what those are too few for."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def attend(query: Tensor, key: Tensor, value: Tensor, fused: bool) -> Tensor:
    """softmax(q k / sqrt(d)) v of queries (B, heads, N, d), keys and values (B, heads, M, d).

    Args:
        fused: by PyTorch's own kernel, into which no counter of operations sees.
    """
    if fused:
        return F.scaled_dot_product_attention(query, key, value)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return weights.softmax(-1) @ value
