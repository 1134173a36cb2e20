"""Which images a batch has, and which parts of it go through the model one after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from peftbench.training.world import Part


def pick(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """`rows` (k, ...) of a tensor (N, ...), sorted, each once; without waiting for the device."""
    if len(rows) == len(tensor):
        return tensor
    return tensor[torch.tensor(rows).to(tensor.device, non_blocking=True)]


def places(parts: Sequence[Part]) -> list[slice]:
    """Where the rows of each part are among the rows of all parts."""
    ends = list(itertools.accumulate((len(part.rows) for part in parts), initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def pieces(length: int, micro_batch: int | None) -> list[slice]:
    """Parts of a batch of `length` images that go through the model one after another.

    They are of nearly equal size, so that none is a single image unless all are.
    """
    count = 1 if micro_batch is None else math.ceil(length / micro_batch)
    bounds = [round(length * i / count) for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def batch_bounds(
    num_images: int, batch_size: int, drop_last: bool = False
) -> list[tuple[int, int]]:
    """(start, stop) of each batch of an epoch; the last one may be smaller, or is left out.

    Batch normalisation is undefined on one image alone, so that it joins the batch before it.
    Fewer images than a batch are one batch in any case.
    """
    starts = list(range(0, num_images, batch_size))
    last = num_images - starts[-1]
    if len(starts) > 1 and drop_last and last < batch_size:
        num_images = starts.pop()
    elif len(starts) > 1 and last == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_images], strict=True))
