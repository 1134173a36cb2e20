"""Scales and shifts behind layers, and how they fold into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from peftbench.backbones.anatomy import Kind, Site
from peftbench.methods import surgery
from peftbench.methods.layers.products import is_transformed

# the output stands for the input where (1 + |shift|) / |scale| is at most this: the rounding of a
# gradient grows by as much. 16-bit types have little to lose, and behind a scale of zero is nothing
RECOVERABLE = {torch.float64: 128.0, torch.float32: 128.0, torch.bfloat16: 4.0, torch.float16: 4.0}


class ScaleShift(nn.Module):
    """scale · x + shift for each channel.

    Backward needs x. With `output_is_kept`, the operation behind keeps this one's output, and x is
    computed from that; otherwise, and where scales are near zero, x is kept. The output has the
    type of x: under autocast that of the frozen operation, as behind the merged one.
    """

    def __init__(
        self,
        width: int,
        channels_last: bool,
        std: float,
        generator: torch.Generator,
        output_is_kept: bool = False,
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width).normal_(1.0, std, generator=generator))
        self.shift = nn.Parameter(torch.empty(width).normal_(0.0, std, generator=generator))
        self.channels_last = channels_last
        self.output_is_kept = output_is_kept

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); what comes out has the same shape."""
        axis = -1 if self.channels_last else 1
        transformed = is_transformed(x) or is_transformed(self.scale)
        how = _How(
            axis,
            from_output=self.output_is_kept and not transformed and self.is_recoverable(x.dtype),
            as_norm=x.dtype is not self.scale.dtype and not transformed,
        )
        scaled: Tensor = _ScaleAndShift.apply(x, self.scale, self.shift, how)
        return scaled

    @torch.no_grad()
    def is_recoverable(self, dtype: torch.dtype) -> bool:
        """Whether inputs of this type can be computed from outputs, to rounding.

        A GPU is not asked, as every step would wait for its answer; there inputs are kept. Tensors
        without content stand for a pair as it starts.
        """
        if self.scale.is_meta or isinstance(self.scale.detach(), FakeTensor):
            return True
        if self.scale.device.type != "cpu":
            return False
        bound = RECOVERABLE[dtype] * self.scale.abs()
        return bool((1 + self.shift.abs() <= bound).all())


@dataclass(frozen=True)
class _How:
    """The way in which a scale and a shift are computed."""

    axis: int  # of the channels
    from_output: bool  # whether the output is kept for backward, and not the input
    as_norm: bool  # with the kernels of batch normalisation, which take two types at once


class _ScaleAndShift(torch.autograd.Function):
    """Keeps the input or the output in the type of the input, and the pair."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, how: _How) -> Tensor:
        if how.as_norm:
            mean, variance = _standard(scale)
            flat = _as_map(x, how.axis)
            y = F.batch_norm(flat, mean, variance, scale, shift, eps=0.0)
            # a view would forbid the activation behind to work in place
            return y if y.shape == x.shape else torch.ops.aten._unsafe_view(y, x.shape)
        shape = _broadcast(x, how.axis)
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, shift, ctx.how = inputs
        ctx.save_for_backward(output if ctx.how.from_output else x, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, scale, shift = ctx.saved_tensors
        how, needs_dx = ctx.how, ctx.needs_input_grad[0]
        dx: Tensor | None = None
        if how.as_norm:
            flat, flat_dy = _as_map(kept, how.axis), _as_map(dy, how.axis)
            mean, variance = _standard(scale)
            dx, d_scale, d_shift = torch.ops.aten.native_batch_norm_backward(
                flat_dy, flat, scale, mean, variance, None, None, False, 0.0, [needs_dx, True, True]
            )
            dx = dx.view_as(dy) if needs_dx else None
        else:
            shape = _broadcast(dy, how.axis)
            others = [i for i, size in enumerate(shape) if size == 1]
            d_shift = dy.sum(others, dtype=scale.dtype)
            d_scale = (dy * kept).sum(others, dtype=scale.dtype)
            dx = (dy * scale.view(shape)).to(dy.dtype) if needs_dx else None
        if how.from_output:
            d_scale = (d_scale - shift * d_shift) / scale
        return dx, d_scale, d_shift, None


def _as_map(x: Tensor, axis: int) -> Tensor:
    """`x` (..., C) as (n, C); `x` (B, C, H, W) as it is."""
    return x.reshape(-1, x.shape[-1]) if axis == -1 else x


def _standard(scale: Tensor) -> tuple[Tensor, Tensor]:
    """A mean of zero and a variance of one for each of C channels, each (C,)."""
    return torch.zeros_like(scale), torch.ones_like(scale)


def _broadcast(x: Tensor, axis: int) -> list[int]:
    """The shape in which one value for each channel meets `x` (...)."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return shape


class ScaledNorm(surgery.OutputAdapter):
    """A frozen norm with a pair behind it, computed as one norm.

    gamma' = scale gamma and beta' = scale beta + shift: the input of the norm is all that is kept.
    """

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); the norm of it, scaled and shifted."""
        if self.disturb:
            return super().forward(x, *args, **kwargs)
        weight, bias = self.base.get_parameter("weight"), self.base.get_parameter("bias")
        assert isinstance(self.adapter, ScaleShift)
        scale, shift = self.adapter.scale, self.adapter.shift
        affine = {"weight": scale * weight, "bias": torch.addcmul(shift, scale, bias)}
        scaled: Tensor = functional_call(self.base, affine, (x, *args), kwargs)
        return scaled


def with_pair(module: nn.Module, pair: ScaleShift, kind: Kind) -> surgery.OutputAdapter:
    """`module` with `pair` behind it."""
    is_norm = kind in (Kind.NORM, Kind.BATCH_NORM) and is_foldable(module)
    return (ScaledNorm if is_norm else surgery.OutputAdapter)(module, pair)


def add_pair(model: nn.Module, site: Site, pair: ScaleShift) -> None:
    """Put `pair` behind the module of a site; inside a norm that computes its activation too."""
    module = model.get_submodule(site.path)
    if has_activation(module):
        surgery.replace(model, f"{site.path}.drop", pair)
    else:
        surgery.replace(model, site.path, with_pair(module, pair, site.kind))


def pairs_of(model: nn.Module) -> list[tuple[str, nn.Module, ScaleShift]]:
    """Path, module and the pair behind it."""
    pairs = []
    for path, module in model.named_modules():
        if isinstance(module, surgery.OutputAdapter) and isinstance(module.adapter, ScaleShift):
            pairs.append((path, module.base, module.adapter))
        elif isinstance(getattr(module, "drop", None), ScaleShift):
            pairs.append((path, module, module.drop))
    return pairs


@torch.no_grad()
def fold(model: nn.Module) -> list[str]:
    """Fold the pairs that can be folded, in float64; returns the paths of the others."""
    left = []
    for path, base, pair in pairs_of(model):
        if not is_foldable(base):
            left.append(path)
            continue
        scale, shift = pair.scale.double(), pair.shift.double()
        weight, bias = base.get_parameter("weight"), base.get_parameter("bias")
        shape = (-1, *(1,) * (weight.ndim - 1))
        weight.copy_(scale.view(shape) * weight.double())
        bias.copy_(scale * bias.double() + shift)
        if has_activation(base):
            surgery.replace(model, f"{path}.drop", nn.Identity())
        else:
            surgery.replace(model, path, base)
    return left


def is_foldable(base: nn.Module) -> bool:
    """Whether a module has a weight and a bias of its own to take a pair."""
    tensors = dict(base.named_parameters(recurse=False))
    return "weight" in tensors and "bias" in tensors


def has_activation(module: nn.Module) -> bool:
    """Whether a norm of timm computes its activation too; `drop` stands between the two."""
    return hasattr(module, "drop") and hasattr(module, "act")
