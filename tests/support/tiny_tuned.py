"""Methods on tiny backbones, and what a test needs to write them out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from peftbench.methods import METHODS, Tuned, apply, discover
from support.tiny_backbones import anatomy_of, fresh

discover()


def start(method: str, backbone: str, seed: int = 0, **options: object) -> Tuned:
    """A tiny backbone with a method and a head of 7 classes, as training finds it."""
    generator = torch.Generator().manual_seed(seed)
    return apply(METHODS[method](**options), fresh(backbone), anatomy_of(backbone), 7, generator)


def tensors_at(tuned: Tuned, place: str) -> dict[str, Tensor]:
    """The tensors of the adapter at `place`, by the last part of their names."""
    prefix = f"{place}.adapter."
    named = tuned.method_params.items()
    return {n.removeprefix(prefix): p.detach() for n, p in named if n.startswith(prefix)}


def noise(*shape: int) -> Tensor:
    """Always the same, in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
