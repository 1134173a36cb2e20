"""Changed weights that are formed in each pass, and what a frozen layer makes with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from peftbench.methods import surgery
from peftbench.methods.layers.slices import RowBlock


class Reweighting(surgery.Change):
    """A change that is computed by forming the changed weight: autograd needs its gradient too."""

    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        weight, bias = weight_and_bias(base)
        changed = self.changed_weight(weight)
        return call_with(base, x, changed, self.changed_bias(weight, bias))


def weight_and_bias(base: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (width, ...) of a layer and its bias (width,), where it has one."""
    tensors = dict(base.named_parameters(recurse=False))
    return tensors["weight"], tensors.get("bias")


def call_with(base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `base` makes of x (..., fan_in) or (B, C, H, W) with this weight and bias (width,).

    A layer without a bias gets the sum behind it.
    """
    _, own = weight_and_bias(base)
    if own is None:
        y: Tensor = functional_call(base, {"weight": weight}, (x,))
        return y if bias is None else y + on_channels(bias, weight)
    assert bias is not None
    y = functional_call(base, {"weight": weight, "bias": bias}, (x,))
    return y


def on_channels(values: Tensor, weight: Tensor) -> Tensor:
    """Values (width,) as they meet the output of a layer with this weight: (width, 1, 1) of maps"""
    return values.view(-1, *(1,) * (weight.ndim - 2))


def in_rows(changes: Mapping[str, Tensor], rows: Mapping[str, RowBlock], width: int) -> Tensor:
    """Sums of changes (stop - start, ...) of row blocks in a tensor (width, ...); else zeros."""
    padded = []
    for name, change in changes.items():
        start, stop = rows[name]
        around = (0, 0) * (change.ndim - 1) + (start, width - stop)
        padded.append(F.pad(change, around))
    return torch.stack(padded).sum(0)
