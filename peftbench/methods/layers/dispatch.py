"""Tokens that skip the MLP of their block, and what training says about how many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from peftbench.methods import surgery
from peftbench.methods.layers.passes import ObjectiveInput, PassNote, in_backward


class Dispatching:
    """What the routers of all blocks know of the pass under way."""

    def __init__(self) -> None:
        self.rows: PassNote[int] = PassNote()  # images that are dispatched; all tokens of others go
        self.ratios: list[Tensor] | None = None  # () of each block: tokens that go, of all

    @contextlib.contextmanager
    def watched(self, rows: int) -> Iterator[list[Tensor]]:
        """Inside, the first `rows` images are dispatched; gives their ratios: (blocks,)."""
        self.ratios = []
        try:
            with self.rows.saying(rows):
                yield self.ratios
        finally:
            self.ratios = None


class KeptTokens:
    """Which tokens of a block go through its MLP, from the router to the MLP."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None  # (B, tokens, 1), ones and zeros

    def put(self, mask: Tensor) -> None:
        """The router has decided: a mask (B, tokens, 1)."""
        self.mask = mask

    def take(self) -> Tensor:
        """The mask (B, tokens, 1), which is forgotten: no copy of the model must hold it."""
        mask, self.mask = self.mask, None
        assert mask is not None, "the MLP ran before its router"
        return mask


def exponential_pair(like: Tensor) -> tuple[Tensor, Tensor]:
    """Two draws of Exp(1) in the shape (...) of a tensor."""
    return torch.empty_like(like).exponential_(), torch.empty_like(like).exponential_()


class Router(nn.Module):
    """Decides of each patch token whether it takes the MLP; prefix tokens always do.

    The decision is hard; its gradient is that of the probability (straight through). In train mode
    the logits are disturbed by the difference of two Gumbel draws and divided by the temperature.
    """

    def __init__(
        self,
        width: int,
        num_prefix: int,
        temperature: float,
        threshold: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.trunc_normal_(self.weight, std=0.02, generator=generator)
        self.num_prefix = num_prefix
        self.temperature = temperature
        self.threshold = threshold
        self.draw: Callable[[Tensor], tuple[Tensor, Tensor]] = exponential_pair

    def forward(self, y: Tensor) -> Tensor:
        """Ones and zeros (B, N, 1) for tokens y (B, prefix + N, D)."""
        z = F.linear(y[:, self.num_prefix :], self.weight, self.bias).float()
        if y.dtype is torch.float64:
            z = F.linear(y[:, self.num_prefix :], self.weight, self.bias)
        if self.training:
            first, second = self.draw(z)
            z = (z - first.log() + second.log()) / self.temperature
        probability = z.sigmoid()
        hard = (probability > self.threshold).to(probability.dtype)
        return hard - probability.detach() + probability


class RoutedAdapter(nn.Module):
    """An adapter for all tokens in front of an MLP, and the router that some of them skip it by."""

    def __init__(
        self, bottleneck: nn.Module, router: Router, kept: KeptTokens, dispatching: Dispatching
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.router = router
        self.kept = kept
        self.dispatching = dispatching

    def forward(self, y: Tensor) -> Tensor:
        """The adapter's change of the stream y (B, ..., D)."""
        tokens = y.reshape(len(y), -1, y.shape[-1])
        rows = self.dispatching.rows.value
        rows = len(y) if rows is None else rows
        mask = self.router(tokens[:rows])
        if self.dispatching.ratios is not None and not in_backward():
            self.dispatching.ratios.append(mask.mean())
        every = mask.new_ones(len(y) - rows, mask.shape[1], 1)
        mask = torch.cat((mask, every)) if rows < len(y) else mask
        prefix = mask.new_ones(len(y), self.router.num_prefix, 1)
        self.kept.put(torch.cat((prefix, mask), dim=1))
        change: Tensor = self.bottleneck(y)
        return change


class DispatchedMLP(surgery.Around):
    """A frozen MLP that some tokens skip: it gives zeros for them.

    Where gradients are wanted it computes all tokens, since the router learns from both. Without,
    those that skip it are not computed.
    """

    def __init__(self, base: nn.Module, kept: KeptTokens) -> None:
        super().__init__()
        self.base = base
        self.kept = kept

    def forward(self, n: Tensor) -> Tensor:
        """n: (B, ..., D); the MLP's output in the same shape, zero for tokens that skip it."""
        mask = self.kept.take().reshape(*n.shape[:-1], 1)
        if not _has_values(n):
            out: Tensor = self.base(n)
            return out * mask.to(out.dtype)
        flat = n.reshape(-1, n.shape[-1])
        going = mask.flatten().nonzero().flatten()
        computed = self.base(flat[going][None])[0]
        out = computed.new_zeros(len(flat), computed.shape[-1]).index_copy_(0, going, computed)
        return out.reshape(*n.shape[:-1], -1)


def _has_values(n: Tensor) -> bool:
    """Whether nothing trains here and `n` (...) has values, so that tokens can be left out."""
    counted = n.is_meta or isinstance(n, FakeTensor) or torch.compiler.is_compiling()
    return not torch.is_grad_enabled() and not counted


class DispatchObjective:
    """Both ways at once: with dispatched tokens and, as its teacher, with all of them.

    L(l) + L(l_full) + KL(l_full || l) + weight (ratio - target)^2, where l are logits with
    dispatched tokens, l_full those in which every token takes every MLP, and the ratio is that of
    patch tokens that do, over blocks and images.
    """

    def __init__(self, dispatching: Dispatching, target_ratio: float, weight: float) -> None:
        self.dispatching = dispatching
        self.target_ratio = target_ratio
        self.weight = weight

    def __call__(self, batch: ObjectiveInput) -> tuple[Tensor, Tensor]:
        """What is minimised, (), and the outputs (B, C) with dispatched tokens."""
        with self.dispatching.watched(len(batch)) as ratios:
            outputs, full = batch.outputs(copies=2).chunk(2)
        ratio = torch.stack(ratios).mean()
        distilled = F.kl_div(
            outputs.log_softmax(1),
            full.detach().log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        total = batch.loss(outputs) + batch.loss(full) + distilled
        return total + self.weight * (ratio - self.target_ratio).square(), outputs
