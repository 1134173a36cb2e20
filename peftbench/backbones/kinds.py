"""What the module of a site computes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftbench.backbones.anatomy import Kind


def kind_of(module: nn.Module) -> Kind:
    """What `module` computes; a norm is known by its name, since timm defines many of its own."""
    if isinstance(module, nn.Linear):
        return Kind.LINEAR
    if isinstance(module, nn.Conv2d):
        return Kind.CONV
    if isinstance(module, _BatchNorm):
        return Kind.BATCH_NORM
    return Kind.NORM if "Norm" in type(module).__name__ else Kind.OTHER


def kernel_size(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the kernel of a convolution; `None` of other modules."""
    if not isinstance(module, nn.Conv2d):
        return None
    rows, columns = module.kernel_size
    return rows, columns


@torch.no_grad()
def norm_layout(module: nn.Module, width: int, ndim: int) -> bool | None:
    """Whether a norm of `width` channels has them last in a tensor of `ndim` axes.

    It is what the norm takes: an experiment, since names do not tell. `None` where it takes both
    layouts, or neither.
    """
    if ndim <= 2:
        return True
    like = next(module.parameters())
    sizes = [size for size in (2, 3, 5, 7) if size != width][: ndim - 2]
    takes = []
    for shape in ((1, *sizes, width), (1, width, *sizes)):
        tensor = torch.zeros(shape, device=like.device, dtype=like.dtype)
        try:
            takes.append(module(tensor).shape == shape)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            takes.append(False)
    return None if takes[0] == takes[1] else takes[0]
