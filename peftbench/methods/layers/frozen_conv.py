"""Frozen convolutions that keep nothing for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from peftbench.methods import surgery
from peftbench.methods.layers.products import in_compute_type


class FrozenConv2d(nn.Conv2d):
    """A convolution whose input is kept only where its weight or bias trains.

    PyTorch keeps it always, though the gradient of the input needs the weight alone.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trains = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trains or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(input, weight, bias)
        x, weight, *biases = in_compute_type(input, weight, *([] if bias is None else [bias]))
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = _Convolve.apply(x, weight, biases[0] if biases else None, geometry)
        return y


class _Convolve(torch.autograd.Function):
    """Keeps the weight, which is frozen."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, dy, *ctx.geometry), None, None, None


def keep_no_inputs(model: nn.Module) -> None:
    """Let the convolutions of `model` keep their inputs only where their weights train."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            surgery.become(module, FrozenConv2d)
