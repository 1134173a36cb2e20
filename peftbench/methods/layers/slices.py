"""Which parts a weight has, or is made of; loading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

RowBlock = tuple[int, int]  # first row of a block of a weight, and the one behind its last


@dataclass(frozen=True)
class SliceLayout:
    """Which D x D slices of the tensor one weight is made of."""

    first: int  # index of its first slice among all of its width
    count: int
    by_rows: bool  # slices are row blocks of the weight, else column blocks
