"""What stands behind a convolution, and what a block reads and gives: one pass without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.accepted import dtype_of
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.copies import weightless_copy
from peftbench.methods import surgery

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


@dataclass(frozen=True)
class Passed:
    """What one forward pass of a single image showed."""

    # convolution -> the batch norm that reads it, or the activation behind that if it is called
    # nowhere else; itself where a batch norm does not follow
    ends: Mapping[str, str]
    reads: Mapping[str, torch.Size]  # what the modules that were asked about read
    gives: Mapping[str, torch.Size]


class _Watch:
    """What the hooks of one pass note."""

    def __init__(self, convolutions: Iterable[str]) -> None:
        self.ends = {path: path for path in convolutions}
        self.norms: dict[str, str] = {}  # convolution -> the batch norm that reads it
        self.calls = Counter[str]()
        self.reads: dict[str, torch.Size] = {}
        self.gives: dict[str, torch.Size] = {}
        # tensor -> the convolution at its beginning; held, so that no other takes its identity
        self._source: dict[int, tuple[object, str]] = {}

    def before(self, path: str) -> Callable[..., None]:
        """A hook that notes what the module at `path` reads."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self.reads.setdefault(path, args[0].shape)

        return hook

    def after(self, path: str) -> Callable[..., None]:
        """A hook that notes what it gives."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if isinstance(output, Tensor):
                self.gives.setdefault(path, output.shape)

        return hook

    def follow(self, path: str) -> Callable[..., None]:
        """A hook that notes whether the module stands behind a convolution, or is one."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self.calls[path] += 1
            if path in self.ends:
                self._source[id(output)] = (output, path)
                return
            start = self._source.get(id(args[0]), (None, ""))[1] if args else ""
            if _is_batch_norm(module) and start:
                self.ends[start] = self.norms[start] = path
                self._source[id(output)] = (output, start)
            elif start and self.ends[start] != start:
                self.ends[start] = path

        return hook


def passed(
    model: nn.Module, anatomy: Anatomy, convolutions: Iterable[str], others: Iterable[str]
) -> Passed:
    """Look at one pass of a weightless copy of `model`."""
    copied = weightless_copy(model).eval()
    watch = _Watch(convolutions)
    others = tuple(others)
    behind = [p for p, m in copied.named_modules() if _is_batch_norm(m) or _is_activation(m)]
    followed = dict.fromkeys((*watch.ends, *behind))
    shape = (1, anatomy.channels, anatomy.image_size, anatomy.image_size)
    image = torch.empty(shape, device="meta", dtype=dtype_of(copied))
    with (
        torch.no_grad(),
        surgery.watched(copied, followed, after=watch.follow),
        surgery.watched(copied, others, before=watch.before, after=watch.after),
    ):
        copied(image)
    ends = {
        start: end if watch.calls[end] == 1 else watch.norms.get(start, start)
        for start, end in watch.ends.items()
    }
    return Passed(ends, watch.reads, watch.gives)


def _is_batch_norm(module: nn.Module) -> bool:
    return "BatchNorm" in type(module).__name__


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_ACTIVATIONS) and not any(module.parameters())
