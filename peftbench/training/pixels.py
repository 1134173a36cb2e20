"""Images on their way to the device: kept there, or read batch by batch ahead of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from peftbench.data.rows import SMALL, RowSource, rows_of
from peftbench.data.threads import in_order

SHARE = 1 / 4  # of a GPU's free memory, that images may have; a model has the rest
AHEAD = 2  # batches that are read while another one is computed
_AT_ONCE = 1024  # images on their way to stay on the device


def room(device: torch.device) -> int:
    """Bytes of images that are kept on a device: of a GPU a `SHARE` of what is free, else few."""
    if device.type != "cuda":
        return SMALL
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(SHARE * (free + unused))


class ModelInputs(Protocol):
    """What a model sees of N images, batch by batch."""

    def __len__(self) -> int: ...

    @property
    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest values of pixels, (1, 3, 1, 1) each; `None` where there are none."""

    @property
    def indexed_on(self) -> torch.device:
        """Where numbers of images are read, so that no batch waits for the device."""

    def in_epoch(self, epoch: int) -> ModelInputs:
        """The same as one epoch sees it; epochs count from 0."""

    def batches(self, asked: Iterable[Tensor]) -> Generator[Any, None, None]:
        """What the model takes for the images at each index (B,); to be closed."""


class DeviceRows(ABC):
    """Rows of uint8 that become batches on the device.

    All of them are kept there where `room` says so, unless not `keep`. Others stay where they are.
    Batches have the same numbers in either case.
    """

    def __init__(self, array: np.ndarray | RowSource, device: torch.device, keep: bool) -> None:
        self.device = device
        self.rows = rows_of(array) if isinstance(array, np.ndarray) else array
        self.images: Tensor | None = None
        if keep and isinstance(array, np.ndarray) and array.nbytes <= room(device):
            self.images = self._kept()

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def indexed_on(self) -> torch.device:
        """Where numbers of images are read, so that no batch waits for the device."""
        return torch.device("cpu") if self.images is None else self.device

    @property
    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest values, (1, 3, 1, 1) each, where there are any."""
        return None

    def in_epoch(self, epoch: int) -> ModelInputs:
        """Every epoch sees the same."""
        return self

    @abstractmethod
    def ready(self, rows: Tensor) -> Tensor:
        """What a model takes, made of rows (B, ...) of uint8 on any device."""

    def batches(self, asked: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """What a model takes for the rows at each index (B,).

        Those that are not on the device are read by a thread, at most `AHEAD` batches ahead; its
        errors are raised here, in their turn. To be closed by who does not take all: then the
        thread is gone.
        """
        if self.images is not None:
            kept = self.images
            yield from (self.ready(kept[index]) for index in asked)
        elif not self.rows.waits and self.device.type == "cpu":  # nothing to wait for
            yield from (self.ready(self._read(index)) for index in asked)
        else:
            pool = ThreadPoolExecutor(1, "peftbench-images")
            try:
                for rows in in_order(pool, self._read, asked, AHEAD + 1):
                    yield self.ready(rows)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, index: Tensor) -> Tensor:
        """(B, ...) uint8 on the host, where a GPU can fetch them by itself."""
        shape = (len(index), *self.rows.shape[1:])
        rows = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self.rows.read(index.numpy(), rows.numpy())
        return rows

    def _kept(self) -> Tensor:
        kept = torch.empty(self.rows.shape, dtype=torch.uint8, device=self.device)
        for numbers in torch.arange(len(self)).split(_AT_ONCE):
            rows = self._read(numbers).to(self.device, non_blocking=True)
            kept[int(numbers[0]) : int(numbers[-1]) + 1] = rows
        return kept


class Pixels(DeviceRows):
    """uint8 images (N, S, S, 3) that become normalised batches on the device."""

    def __init__(
        self,
        images: np.ndarray | RowSource,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        keep: bool = True,
    ) -> None:
        super().__init__(images, device, keep)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """What 0 and 255 become by normalisation: (1, 3, 1, 1) each."""
        return -self.mean / self.std, (255 - self.mean) / self.std

    def ready(self, rows: Tensor) -> Tensor:
        """(B, 3, S, S) float32, channels first, normalised, of images (B, S, S, 3)."""
        images = rows.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float()
        return images.sub_(self.mean).div_(self.std)  # in place: 3 to 7 times as fast on a CPU
