"""Stored activations on their way to the device, in place of the images that they are of."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peftbench.training.pixels import DeviceRows, Pixels

AT_ONCE = 128  # images, as in predictions: these have the same batches with and without a cache


@dataclass(frozen=True)
class Activations:
    """What the frozen part of a network gave for some images, in place of these."""

    values: Tensor  # (B, ...)
    images: Tensor | None = None  # (B, 3, S, S), where what follows reads them too

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Activations:
        return Activations(self.values[rows], None if self.images is None else self.images[rows])

    @classmethod
    def joined(cls, parts: Sequence[Activations]) -> Activations:
        """Those of all `parts`, one behind the other."""
        images = [part.images for part in parts if part.images is not None]
        values = torch.cat([part.values for part in parts])
        return cls(values, torch.cat(images) if images else None)


@dataclass(frozen=True)
class RowLayout:
    """How the activation of one image lies in a row of bytes: by its axes as they lie in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of one image, without the batch
    order: tuple[int, ...]  # its axes, the one of the largest stride first

    @classmethod
    def of(cls, row: Tensor) -> RowLayout:
        """Of an activation (1, ...)."""
        axes = range(row.ndim - 1)
        strides, sides = row.stride()[1:], row.shape[1:]
        # where a side is one, its stride says nothing
        order = tuple(sorted(axes, key=lambda axis: (sides[axis] == 1, -strides[axis], axis)))
        return cls(row.dtype, tuple(row.shape[1:]), order)

    def to_bytes(self, values: Tensor) -> Tensor:
        """(B, bytes) uint8 of activations (B, ...)."""
        lying = values.permute(0, *(axis + 1 for axis in self.order)).contiguous()
        return lying.reshape(len(values), -1).view(torch.uint8)

    def to_values(self, rows: Tensor) -> Tensor:
        """Activations (B, ...), in memory as they were, of rows (B, bytes) uint8."""
        lying = rows.view(self.dtype).view(len(rows), *(self.shape[axis] for axis in self.order))
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return lying.permute(0, *(axis + 1 for axis in back))


class _Values(DeviceRows):
    """Rows of bytes that become activations."""

    def __init__(self, rows: np.ndarray, layout: RowLayout, device: torch.device) -> None:
        super().__init__(rows, device, keep=True)
        self.layout = layout

    def ready(self, rows: Tensor) -> Tensor:
        """Activations (B, ...) of rows of bytes."""
        return self.layout.to_values(rows.to(self.device, non_blocking=True))


class ActivationRows:
    """Activations of N images that become batches on the device.

    Args:
        rows: (N, bytes) uint8.
        pixels: the images, where what follows the prefix reads them as well.
    """

    limits = None

    def __init__(
        self, rows: np.ndarray, layout: RowLayout, pixels: Pixels | None, device: torch.device
    ) -> None:
        self.values = _Values(rows, layout, device)
        self.pixels = pixels
        self.served = 0  # activations that nobody had to compute again

    def __len__(self) -> int:
        return len(self.values)

    @property
    def indexed_on(self) -> torch.device:
        """Where numbers of images are read: on the device if all that is read is there."""
        places = [self.values, *([] if self.pixels is None else [self.pixels])]
        host = any(place.indexed_on.type == "cpu" for place in places)
        return torch.device("cpu") if host else self.values.device

    def in_epoch(self, epoch: int) -> ActivationRows:
        """Every epoch sees the same."""
        return self

    def batches(self, asked: Iterable[Tensor]) -> Generator[Activations, None, None]:
        """The activations of the images at each index (B,); see `DeviceRows.batches`."""
        for_values, for_images = itertools.tee(asked)
        images: Generator[Tensor, None, None] | Iterator[None] = itertools.repeat(None)
        with contextlib.ExitStack() as stack:
            values = stack.enter_context(contextlib.closing(self.values.batches(for_values)))
            if self.pixels is not None:
                images = stack.enter_context(contextlib.closing(self.pixels.batches(for_images)))
            for own in values:
                self.served += len(own)
                yield Activations(own, next(images))


class ViewedActivations:
    """Activations of some views of N images, of which epochs take turns."""

    limits = None

    def __init__(self, views: Sequence[ActivationRows]) -> None:
        self.views = tuple(views)

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def indexed_on(self) -> torch.device:
        """Where numbers of images are read."""
        return self.views[0].indexed_on

    @property
    def served(self) -> int:
        """Activations that nobody had to compute again."""
        return sum(rows.served for rows in self.views)

    def in_epoch(self, epoch: int) -> ActivationRows:
        """The view whose turn it is."""
        return self.views[epoch % len(self.views)]

    def batches(self, asked: Iterable[Tensor]) -> Generator[Activations, None, None]:
        """Those of the first view, of the images at each index (B,)."""
        return self.views[0].batches(asked)
