"""Changes of a layer's output by small factors, with gradients in closed form.

Plain autograd keeps what each operation reads, at full width, and copies gradients of slices. Here
the input of the layer is kept once, beside tensors of a rank's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftbench.methods.readings import Reading

Rows = tuple[tuple[int, int], ...]  # (start, stop) of each block of output channels


def in_compute_type(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`x` (...) and `tensors` (...), all in the type in which autocast multiplies, if it is on."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)  # which it is not without storage
    if not known or not torch.is_autocast_enabled(kind) or x.dtype is torch.float64:
        return (x, *tensors)
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in (x, *tensors))


def may_write_into(y: Tensor, *others: Tensor) -> bool:
    """Whether `y` (...), a fresh output, can take a sum of products of `others` (...) in place.

    Not inside the transforms of `torch.func`: a tensor shared by all samples holds no sum of
    theirs.
    """
    is_plain = y.is_contiguous() and not (y.is_leaf and y.requires_grad)
    same_type = all(other.dtype is y.dtype for other in others)
    return is_plain and same_type and not any(map(is_transformed, (y, *others)))


def is_transformed(tensor: Tensor) -> bool:
    """Whether `tensor` (...) belongs to a transform of `torch.func`, such as one of a batch."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


@dataclass(frozen=True)
class Input:
    """The input x (...) of a layer, and of what `made_by` made it, where that is known."""

    x: Tensor
    source: Tensor | None = None
    made_by: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, x: Tensor, reading: Reading | None) -> Input:
        """`x` (...), with its source where it is what an activation has just given."""
        source = None if reading is None else reading.source_of(x)
        return cls(x) if source is None or reading is None else cls(x, source, reading.activation)


def add_low_rank(y: Tensor, read: Input, a: Tensor, bs: Sequence[Tensor], rows: Rows) -> Tensor:
    """`y` with B_i A_i x added to each block of its channels.

    y: (..., width), of which the sum takes the memory where it can; read: x (..., fan_in), which is
    kept unless it has a source; a: (blocks r, fan_in), all A_i below one another; bs: B_i
    (stop - start, r) for each of `rows`. Hu et al. (2022), eq. 3.
    """
    x, a, *bs = in_compute_type(read.x, a, *bs)
    in_place = may_write_into(y, x, a, *bs)
    summed: Tensor = _AddLowRank.apply(y, x, a, rows, in_place, read.source, read.made_by, *bs)[0]
    return summed


class _AddLowRank(torch.autograd.Function):
    """Keeps x or its source, A, every B and the hidden units, which are of the rank's size."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        y, x, a, rows, in_place, _, _, *bs = inputs
        hidden = F.linear(x, a)
        parts = hidden.chunk(len(bs), -1)
        if in_place:
            flat = y.view(-1, y.shape[-1])
            for part, b, (start, stop) in zip(parts, bs, rows, strict=True):
                flat[:, start:stop].addmm_(part.reshape(-1, part.shape[-1]), b.mT)
            return y, hidden
        summed = y
        for part, b, (start, stop) in zip(parts, bs, rows, strict=True):
            change = F.linear(part, b).to(y.dtype)
            summed = summed + F.pad(change, (start, y.shape[-1] - stop))
        return summed, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        y, x, a, ctx.rows, in_place, source, ctx.made_by, *bs = inputs
        _, hidden = output
        if in_place:
            ctx.mark_dirty(y)
        ctx.mark_non_differentiable(hidden)
        ctx.dtype = x.dtype
        ctx.save_for_backward(x if source is None else source, a, hidden, *bs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, a, hidden, *bs = ctx.saved_tensors
        if ctx.made_by is not None:
            x = ctx.made_by(x).to(ctx.dtype)
        parts = hidden.chunk(len(bs), -1)
        slices = [dy[..., start:stop].to(x.dtype) for start, stop in ctx.rows]
        db = [weight_gradient(g, part) for g, part in zip(slices, parts, strict=True)]
        d_hidden = torch.cat([g @ b for g, b in zip(slices, bs, strict=True)], -1)
        dx = d_hidden @ a if ctx.needs_input_grad[1] else None
        return dy, dx, weight_gradient(d_hidden, x), None, None, None, None, *db


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Of a linear layer's weight, (outputs, inputs), from dy (..., outputs) and x (..., inputs)."""
    return dy.flatten(0, -2).mT @ x.flatten(0, -2)


def add_factorised(
    y: Tensor, read: Input, factors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    """`y` with V (mask · M U x) added, where U and V act on every D channels alike.

    y: (..., k D), of which the sum takes the memory where it can; read: x (..., j D), which is kept
    unless it has a source; factors: U (r, D), M (k r, j r) and V (D, r); mask: (..., k r),
    booleans, those of a dropout whose scale is part of M. Of Jie and Deng (2023), section 3.2, M
    holds the cores.
    """
    x, *cast = in_compute_type(read.x, *factors)
    in_place = may_write_into(y, x, *cast)
    summed: Tensor = _AddFactorised.apply(y, x, *cast, mask, in_place, read.source, read.made_by)
    return summed


class _AddFactorised(torch.autograd.Function):
    """Keeps x or its source, the factors and the mask; what is of the rank's size is made again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        y, x, u, m, v, mask, in_place, _, _ = inputs
        _, masked = _between(x, u, m, mask)
        pieces = _cut(masked, v.shape[-1])
        if in_place:
            y.view(-1, v.shape[0]).addmm_(pieces.flatten(0, -2), v.mT)
            return y
        return y + F.linear(pieces, v).reshape(y.shape).to(y.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, x, u, m, v, mask, in_place, source, ctx.made_by = inputs
        if in_place:
            ctx.mark_dirty(y)
        ctx.dtype = x.dtype
        ctx.save_for_backward(x if source is None else source, u, m, v, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, m, v, mask = ctx.saved_tensors
        if ctx.made_by is not None:
            x = ctx.made_by(x).to(ctx.dtype)
        hidden, masked = _between(x, u, m, mask)
        pieces = _cut(dy.to(x.dtype), v.shape[0])
        dv = weight_gradient(pieces, _cut(masked, v.shape[-1]))
        d_mixed = (pieces @ v).reshape(masked.shape)
        if mask is not None:
            d_mixed = d_mixed * mask
        dm = weight_gradient(d_mixed, hidden)
        d_hidden = _cut(d_mixed @ m, u.shape[0])
        du = weight_gradient(d_hidden, _cut(x, u.shape[-1]))
        dx = (d_hidden @ u).reshape(x.shape) if ctx.needs_input_grad[1] else None
        return dy, dx, du, dm, dv, None, None, None, None


def _between(x: Tensor, u: Tensor, m: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What U makes of `x`, and what M and the mask make of that."""
    hidden = F.linear(_cut(x, u.shape[-1]), u).flatten(-2)
    mixed = F.linear(hidden, m)
    return hidden, mixed if mask is None else mixed * mask


def _cut(x: Tensor, size: int) -> Tensor:
    """(..., k, size) from (..., k size)."""
    return x.unflatten(-1, (-1, size))
