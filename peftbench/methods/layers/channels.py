"""A linear layer on a few channels of what it reads, and the channels that stand out in images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.methods import surgery


class ChannelLinear(nn.Module):
    """What a linear layer on the channels `index` (K,) adds to them, and nothing to the others."""

    def __init__(
        self, index: Tensor, channels_last: bool, std: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        count = len(index)
        self.axis = -1 if channels_last else 1
        self.weight = nn.Parameter(torch.empty(count, count))
        self.bias = nn.Parameter(torch.zeros(count))
        nn.init.trunc_normal_(self.weight, std=std, generator=generator)
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The change of x, (B, ..., C) or (B, C, H, W), zero outside the channels."""
        index = self.get_buffer("index")
        chosen = x.index_select(self.axis, index).movedim(self.axis, -1)
        change = nn.functional.linear(chosen, self.weight, self.bias).movedim(-1, self.axis)
        return torch.zeros_like(x).index_copy(self.axis, index, change.to(x.dtype))


class InParts(nn.Module):
    """Changes of equal row blocks of an output, such as q and v of a fused projection."""

    def __init__(self, changes: Mapping[str, nn.Module], parts: Iterable[str]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.changes = nn.ModuleDict(changes)

    def forward(self, y: Tensor) -> Tensor:
        """The change of y (..., C), zero in the parts that have none."""
        pieces = y.chunk(len(self.parts), dim=-1)
        changed = [
            self.changes[part](piece) if part in self.changes else torch.zeros_like(piece)
            for part, piece in zip(self.parts, pieces, strict=True)
        ]
        return torch.cat(changed, dim=-1)


@dataclass(frozen=True)
class Look:
    """A tensor of a forward pass of which channels are compared."""

    path: str  # of the module that takes or gives it
    of_input: bool
    channels_last: bool
    num_prefix: int  # tokens in front of the patches, which do not count
    start: int = 0  # of the channels that are compared, and behind the last one
    stop: int | None = None


@torch.no_grad()
def saliency(
    model: nn.Module, looks: Mapping[str, Look], images: Iterable[tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], int]:
    """How strong each channel is in images, by the names of `looks`: (C,) in float64.

    The mean over classes of the L2 norm over all images of a class and all their places. Also the
    number of classes.

    images: batches (B, 3, S, S) and their classes (B,).
    """
    squares: dict[str, dict[int, Tensor]] = {name: {} for name in looks}
    for batch, classes in images:
        for name, seen in _seen(model, looks, batch):
            for label in classes.unique().tolist():
                own = seen[classes.to(seen.device) == label].square().sum(dim=(0, 1))
                known = squares[name]
                known[label] = known[label] + own if label in known else own
    found = {
        name: torch.stack([known[label].sqrt() for label in sorted(known)]).mean(dim=0).cpu()
        for name, known in squares.items()
    }
    return found, max((len(known) for known in squares.values()), default=0)


def _seen(
    model: nn.Module, looks: Mapping[str, Look], batch: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """What each look sees of images (B, 3, S, S): (B, places, C) in float64."""
    found: dict[str, Tensor] = {}

    def before(path: str) -> surgery.Hook:
        return lambda module, args: found.__setitem__(path, args[0])

    def after(path: str) -> surgery.Hook:
        return lambda module, args, output: found.__setitem__(path, output)

    inputs = {look.path for look in looks.values() if look.of_input}
    outputs = {look.path for look in looks.values() if not look.of_input}
    with (
        surgery.watched(model, sorted(inputs), before=before),
        surgery.watched(model, sorted(outputs), after=after),
    ):
        model(batch)
    for name, look in looks.items():
        values = found[look.path]
        values = values if look.channels_last else values.movedim(1, -1)
        values = values.reshape(len(batch), -1, values.shape[-1])
        yield name, values[:, look.num_prefix :, look.start : look.stop].double()


def strongest(values: Tensor, count: int) -> Tensor:
    """The `count` indices of the largest of values (C,), rising: (K,)."""
    return values.topk(count).indices.sort().values
