"""Adapters that read or change the stream between the two branches of a block.

A block computes y = x + Attn(LN1 x) and z = y + MLP(LN2 y), and hides y. The modules through which
its branches read the stream (`Role.ATTN_ENTRY`, `Role.MLP_ENTRY`) see it: an adapter there adds to
a carried change, which later entries of the block add to what they read and the block adds to its
output. So no block's code is written anew, and layer scale and drop-path act on the frozen
branches alone. Registers no method.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.methods import surgery
from peftbench.methods.layers.design import ReadPoint


class StreamState:
    """The change that the adapters of one block have made in the forward pass under way."""

    def __init__(self) -> None:
        self.change: Tensor | None = None  # in the layout of the block's input
        self.shape: torch.Size | None = None
        # what the last branch read of the stream, and what makes a change of what it adds to it
        self.before: Tensor | None = None
        self.of_output: Callable[[Tensor], Tensor] | None = None

    def start(self, shape: torch.Size | None) -> None:
        """Forget the last pass; the block's input has `shape`."""
        self.change, self.shape, self.before, self.of_output = None, shape, None, None

    def await_output(self, x: Tensor, make: Callable[[Tensor], Tensor]) -> None:
        """The branch reads x (B, N, C) or (B, H, W, C); `make` changes what it adds to that."""
        self.before, self.of_output = x, make

    def add(self, change: Tensor) -> None:
        """Carry one more change: (B, N, C) or (B, H, W, C), or flattened as its branch has it."""
        change = change.reshape(self.shape or change.shape)
        self.change = change if self.change is None else self.change + change


class StreamInput(surgery.Around):
    """The module through which a branch reads the stream, with an adapter.

    The adapter gets and gives tensors in the layout of the block's input, of which a branch may
    see a flattened one (Swin's MLP).
    """

    def __init__(
        self,
        base: nn.Module,
        carried: StreamState,
        is_norm: bool,
        adapter: nn.Module | None = None,
        reads: ReadPoint = ReadPoint.STREAM,
    ) -> None:
        super().__init__()
        self.base = base
        self.carried = carried
        self.is_norm = is_norm
        self.adapter = adapter  # None: it only hands on what another entry changed
        self.reads = reads

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """What the branch reads of the stream x: (B, N, C) or (B, H, W, C), maybe flattened."""
        if self.carried.change is not None:
            x = x + self.carried.change.reshape(x.shape)
        if self.adapter is not None and self.reads is ReadPoint.BEFORE:
            x = x + self._change(x).reshape(x.shape)
        out: Tensor = self.base(x, *args, **kwargs)
        if self.adapter is not None and self.reads is ReadPoint.OUTPUT:
            self.carried.await_output(x, self._made)
        elif self.adapter is not None and self.reads is not ReadPoint.BEFORE:
            of_branch = self.reads is ReadPoint.BRANCH and self.is_norm
            self._change(out if of_branch else x)
        return out

    def _change(self, x: Tensor) -> Tensor:
        """The adapter's change for `x`, also carried to the end of the block."""
        change = self._made(x.reshape(self.carried.shape or x.shape))
        self.carried.add(change)
        return change

    def _made(self, x: Tensor) -> Tensor:
        """What the adapter makes of x, in its shape."""
        assert self.adapter is not None
        change: Tensor = self.adapter(x)
        return change if not self.disturb else self.disturb(change)


class StreamBlock(nn.Module):
    """A block whose entries carry changes; adds them to its output."""

    def __init__(self, block: nn.Module, carried: StreamState) -> None:
        super().__init__()
        self.block = block
        self.carried = carried

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, C) or (B, H, W, C); the block's output has the same shape."""
        self.carried.start(x.shape)
        try:
            out: Tensor = self.block(x, *args, **kwargs)
            if self.carried.of_output is not None:
                assert self.carried.before is not None
                added = out - self.carried.before.reshape(out.shape)
                return out + self.carried.of_output(added)
            assert self.carried.change is not None
            return out + self.carried.change.reshape(out.shape)
        finally:
            self.carried.start(None)  # a copy of the model must hold no tensor of a pass


class StreamChange(surgery.Around):
    """A block that reads the stream with what an adapter makes of it added."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, C) or (B, H, W, C); what the block makes of x + adapter(x)."""
        out: Tensor = self.base(x + self.adapter(x), *args, **kwargs)
        return out


def add_to_stream(
    model: nn.Module,
    anatomy: Anatomy,
    roles: tuple[Role, ...],
    reads: ReadPoint,
    make: Callable[[Site], nn.Module],
    depths: Container[int] | None = None,
) -> dict[str, nn.Module]:
    """Give the entry of each branch in `roles` its own adapter `make(site)`; returns them by path.

    The MLP's entry is wrapped wherever the attention's is: it must see what that one changed.

    Args:
        depths: of the blocks that get any; all by default.
    """
    device = next(model.parameters()).device
    adapters: dict[str, nn.Module] = {}
    for block in anatomy.where(Role.BLOCK):
        is_meant = depths is None or block.depth in depths
        if not is_meant or not anatomy.where(*roles, depths=(block.depth,)):
            continue  # one that changes the size of the stream, or lacks the branch
        carried = StreamState()
        wrapped = (Role.ATTN_ENTRY, Role.MLP_ENTRY) if Role.ATTN_ENTRY in roles else roles
        for site in anatomy.where(*wrapped, depths=(block.depth,)):
            adapter = make(site).to(device) if site.role in roles else None
            base = model.get_submodule(site.path)
            is_norm = site.kind is Kind.NORM
            surgery.replace(model, site.path, StreamInput(base, carried, is_norm, adapter, reads))
            if adapter is not None:
                adapters[site.path] = adapter
        old = model.get_submodule(block.path)
        surgery.replace(model, block.path, StreamBlock(old, carried))
    return adapters
