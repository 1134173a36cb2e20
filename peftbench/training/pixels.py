"""Images on their way to the device: kept there, or read batch by batch ahead of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

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


class Pixels:
    """uint8 images (N, S, S, 3) that become normalised batches on the device.

    All of them are kept there where `room` says so, unless not `keep`. Others stay where they are.
    Batches have the same numbers in either case.
    """

    def __init__(
        self,
        images: np.ndarray | RowSource,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        keep: bool = True,
    ) -> None:
        self.device = device
        self.rows = rows_of(images) if isinstance(images, np.ndarray) else images
        self.images: Tensor | None = None
        if keep and isinstance(images, np.ndarray) and images.nbytes <= room(device):
            self.images = self._kept()
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """What 0 and 255 become by normalisation: (1, 3, 1, 1) each."""
        return -self.mean / self.std, (255 - self.mean) / self.std

    @property
    def indexed_on(self) -> torch.device:
        """Where numbers of images are read, so that no batch waits for the device."""
        return torch.device("cpu") if self.images is None else self.device

    def batches(self, asked: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """The images at each index (B,): (B, 3, S, S) float32, channels first, normalised.

        Those that are not on the device are read by a thread, at most `AHEAD` batches ahead; its
        errors are raised here, in their turn. To be closed by who does not take all: then the
        thread is gone.
        """
        if self.images is not None:
            kept = self.images
            yield from (self._normalised(kept[index]) for index in asked)
        elif not self.rows.waits and self.device.type == "cpu":  # nothing to wait for
            yield from (self._normalised(self._read(index)) for index in asked)
        else:
            pool = ThreadPoolExecutor(1, "peftbench-images")
            try:
                for rows in in_order(pool, self._read, asked, AHEAD + 1):
                    yield self._normalised(rows)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, index: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 on the host, where a GPU can fetch them by itself."""
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

    def _normalised(self, rows: Tensor) -> Tensor:
        images = rows.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float()
        return images.sub_(self.mean).div_(self.std)  # in place: 3 to 7 times as fast on a CPU
