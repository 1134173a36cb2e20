"""Another computation in the place where a frozen attention meets its queries, keys and values.

Attention of timm projects, normalises and rotates its queries, keys and values, calls
`F.scaled_dot_product_attention` on them and projects what it gives. Here only that one call is
replaced, while the module runs: what comes before and behind it stays the module's own code. A
module that would compute attention without the call, as on a CPU in bfloat16, is told to make it,
and the replacement computes as the module would have.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from peftbench.backbones.accepted import dtype_of
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.copies import weightless_copy
from peftbench.methods import surgery


@dataclass(frozen=True)
class Queried:
    """The arguments of one call of attention."""

    q: Tensor  # (B, heads, N, d)
    k: Tensor  # (B, heads, M, d)
    v: Tensor  # (B, heads, M, d)
    mask: Tensor | None = None  # added to the scores, or where they count; (..., N, M)
    dropout: float = 0.0
    scale: float | None = None  # of the scores; 1 / sqrt(d) by default


Attend = Callable[[Queried], Tensor]


class Interception(TorchFunctionMode):
    """Inside, `attend` stands in the place of `F.scaled_dot_product_attention`."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        return self.attend(_queried(*args, **kwargs))


# its arguments by the names and in the order of PyTorch
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def _queried(*args: Any, **kwargs: Any) -> Queried:
    """The arguments of `F.scaled_dot_product_attention`."""
    given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    if given.get("is_causal") or given.get("enable_gqa"):
        raise NotImplementedError("no backbone of images attends in order or shares its keys")
    return Queried(
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        given.get("dropout_p", 0.0),
        given.get("scale"),
    )


@contextlib.contextmanager
def intercepted(attention: nn.Module, attend: Attend) -> Iterator[Interception]:
    """Inside, `attention` calls `attend` where it computes attention."""
    choosing = [module for module in attention.modules() if "fused_attn" in vars(module)]
    chosen = [vars(module)["fused_attn"] for module in choosing]
    for module in choosing:
        vars(module)["fused_attn"] = True
    try:
        with Interception(attend) as mode:
            yield mode
    finally:
        for module, fused in zip(choosing, chosen, strict=True):
            vars(module)["fused_attn"] = fused


def is_fused(attention: nn.Module) -> bool:
    """Whether a module computes attention by PyTorch's kernel."""
    return bool(getattr(attention, "fused_attn", True))


def attend_plainly(given: Queried, fused: bool) -> Tensor:
    """softmax(scale q k^T + mask) v: (B, heads, N, d), by PyTorch's kernel or by products."""
    q, k, v, mask = given.q, given.k, given.v, given.mask
    if fused:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=given.dropout, scale=given.scale
        )
    scale = q.shape[-1] ** -0.5 if given.scale is None else given.scale
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return F.dropout(scores.softmax(dim=-1), given.dropout) @ v


class ExtendedAttention(surgery.Around):
    """A frozen attention whose queries also meet learned keys and values, in front of its own.

    They have no position: nothing rotates them, and their scores have no bias.
    """

    def __init__(self, base: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.extra = extra  # () -> keys and values (heads, t, d), not normalised, not rotated

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: what the module takes, (B, N, C); its output has the same shape."""
        fused = is_fused(self.base)
        with intercepted(self.base, lambda given: attend_plainly(self._extended(given), fused)):
            out: Tensor = self.base(x, *args, **kwargs)
        return out

    def _extended(self, given: Queried) -> Queried:
        keys, values = self.extra()
        return replace(
            given,
            k=_in_front(keys, given.k),
            v=_in_front(values, given.v),
            mask=_with_room(given.mask, keys.shape[1]),
        )


def _in_front(extra: Tensor, own: Tensor) -> Tensor:
    """`extra` (heads, t, d), the same for every sample, in front of `own` (B, heads, M, d)."""
    return torch.cat((extra.to(own.dtype).expand(len(own), -1, -1, -1), own), dim=2)


def _with_room(mask: Tensor | None, count: int) -> Tensor | None:
    """A mask (..., N, M) with `count` more keys in front, which every query sees as they are."""
    if mask is None:
        return None
    return F.pad(mask, (count, 0), value=mask.dtype is torch.bool)


class CrossAttention(nn.Module):
    """All tokens ask a block's own frozen attention for what it makes of learned tokens alone.

    The attention is the block's, so it stays where it is and only its queries, keys and values are
    chosen here.
    """

    def __init__(self, attention: nn.Module, tokens: Tensor, dropout: float) -> None:
        super().__init__()
        self._attention = (attention,)  # no child: it belongs to the block
        self.tokens = nn.Parameter(tokens)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C) or (B, H, W, C), in front of any norm; the answers in the same shape."""
        rows = x.flatten(1, -2)
        count = rows.shape[1]
        prompts = self.dropout(self.tokens.expand(len(x), -1, -1)).to(x.dtype)
        (attention,) = self._attention
        fused = is_fused(attention)

        def attend(given: Queried) -> Tensor:
            chosen = Queried(
                given.q[:, :, :count],
                given.k[:, :, count:],
                given.v[:, :, count:],
                dropout=given.dropout,
                scale=given.scale,
            )
            # the module goes on with as many rows as it read
            return F.pad(attend_plainly(chosen, fused), (0, 0, 0, given.k.shape[2] - count))

        with intercepted(attention, attend):
            out: Tensor = attention(torch.cat((rows, prompts), dim=1))
        return out[:, :count].reshape(x.shape)


@dataclass(frozen=True)
class Heads:
    """One attention of a backbone."""

    depth: int
    path: str
    count: int
    width: int  # of each head


def heads_of(backbone: nn.Module, anatomy: Anatomy, paths: Mapping[int, str]) -> dict[int, Heads]:
    """Heads of each attention that makes the one call, by depth; found by a pass without weights.

    Those that compute attention by other means are left out, and those of channels with channels.

    Args:
        paths: of the attentions, by the depth of their blocks.
    """
    model = weightless_copy(backbone).eval()
    seen: dict[int, list[Queried]] = {}

    def noting(depth: int, fused: bool) -> Callable[[int], Attend]:
        def of_rows(rows: int) -> Attend:
            def attend(given: Queried) -> Tensor:
                of_channels = given.q.shape[-1] == rows != given.q.shape[-2]
                if not of_channels:
                    seen.setdefault(depth, []).append(given)
                return attend_plainly(given, fused)

            return attend

        return of_rows

    for depth, path in paths.items():
        module = model.get_submodule(path)
        surgery.replace(model, path, _Noting(module, noting(depth, is_fused(module))))
    shape = (1, anatomy.channels, anatomy.image_size, anatomy.image_size)
    with torch.no_grad():
        model(torch.empty(shape, device="meta", dtype=dtype_of(backbone)))
    return {
        depth: Heads(depth, paths[depth], calls[0].q.shape[1], calls[0].q.shape[3])
        for depth, calls in seen.items()
        if len(calls) == 1 and calls[0].q.ndim == 4 and calls[0].k.shape[1] == calls[0].q.shape[1]
    }


def extend(model: nn.Module, extras: Mapping[str, nn.Module]) -> None:
    """Give the attention at each path the learned keys and values of a module."""
    device = next(model.parameters()).device
    for path, extra in extras.items():
        base = model.get_submodule(path)
        surgery.replace(model, path, ExtendedAttention(base, extra.to(device)))


class _Noting(surgery.Around):
    """An attention whose one call is replaced, by what is told how many rows it reads."""

    def __init__(self, base: nn.Module, attend: Callable[[int], Attend]) -> None:
        super().__init__()
        self.base = base
        self.attend = attend

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """What the attention makes of its arguments."""
        with intercepted(self.base, self.attend(math.prod(x.shape[1:-1]))):
            out: Tensor = self.base(x, *args, **kwargs)
        return out


def answers_alone(attention: nn.Module, width: int, rows: int) -> bool:
    """Whether an attention takes rows (1, N, C) and nothing else, and makes the one call on them.

    Cross-covariance attention makes it on channels.
    """
    copied = weightless_copy(attention).eval()
    dtype = dtype_of(attention)
    for count in (rows, rows + 1):  # the queries are the rows, and not by chance as many
        x = torch.empty(1, count, width, device="meta", dtype=dtype)
        seen: list[Queried] = []

        def attend(given: Queried, seen: list[Queried] = seen) -> Tensor:
            seen.append(given)
            return torch.empty_like(given.q)

        try:
            with torch.no_grad(), intercepted(copied, attend):
                out = copied(x)
        except Exception:  # whatever the code of an attention does without the arguments it lacks
            return False
        if not isinstance(out, Tensor) or out.shape != x.shape:
            return False
        if [(one.q.shape[-2], one.k.shape[-2]) for one in seen] != [(count, count)]:
            return False
    return True
