"""Batch normalisation over the images of all processes that train one model together.

torch has `nn.SyncBatchNorm`, for GPUs alone and with other modules in the model. Here the modules
stay what they are, timm's and a method's own, and what they call is computed over all processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(F.batch_norm)


@dataclass(frozen=True)
class _Call:
    """The arguments of a call of `F.batch_norm`, by its names."""

    input: Tensor  # (B, C, ...), or (B x L, C)
    running_mean: Tensor | None  # (C,), and so are the next three
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float
    eps: float


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a batch norm of `model` normalises with the statistics of the batch."""
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


class GlobalStatistics(TorchFunctionMode):
    """Inside, `F.batch_norm` takes mean and variance over the batches of all processes.

    Args:
        count: images of this process that count, 0 or all of its batch.
        total: images of all processes.
    """

    def __init__(self, count: int, total: int) -> None:
        super().__init__()
        self.count = count
        self.total = total

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            call = _SIGNATURE.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments["training"]:
                return self._normalised(_Call(**call.arguments))
        return func(*args, **(kwargs or {}))

    def _normalised(self, call: _Call) -> Tensor:
        """What `F.batch_norm` gives."""
        x = call.input if call.input.dtype is torch.float64 else call.input.float()
        channels = x.shape[1]
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, channels] + [1] * (x.ndim - 2)
        own = 1.0 if self.count else 0.0  # an image that does not count is in no sum
        # values of one channel: those of an image, times all images
        values = x.numel() // channels // max(1, self.count) * self.total
        if values < 2:
            raise ValueError("batch normalisation needs more than one value for each channel")
        mean = _GlobalSum.apply(own * x.sum(others)) / values
        centred = x - mean.view(shape)
        variance = _GlobalSum.apply(own * centred.square().sum(others)) / values
        with torch.no_grad():
            if call.running_mean is not None:
                call.running_mean.lerp_(mean.to(call.running_mean.dtype), call.momentum)
            if call.running_var is not None:
                unbiased = variance * (values / (values - 1))
                call.running_var.lerp_(unbiased.to(call.running_var.dtype), call.momentum)
        y = centred * torch.rsqrt(variance + call.eps).view(shape)
        if call.weight is not None:
            y = y * call.weight.view(shape)
        if call.bias is not None:
            y = y + call.bias.view(shape)
        return y.to(call.input.dtype)


class _GlobalSum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since each process has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
