"""What the module of a site computes."""

from __future__ import annotations

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
