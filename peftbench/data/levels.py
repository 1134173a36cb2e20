"""What is white in the wide pictures of a data set: those with more than 8 bits a pixel.

Files of 16 or 32 bits seldom say how many are in use. One rule holds for all pictures of a data
set, because a rule for each would change how bright they are beside one another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from peftbench.caches import cache_dir
from peftbench.data import images, threads
from peftbench.data.images import FULL, Extent, Levels
from peftbench.data.listing import Pictures, SplitList
from peftbench.errors import DataError


@dataclass(frozen=True)
class Extremes:
    """What the wide grey pictures of a data set hold."""

    pictures: int = 0
    lowest: int = 0
    highest: int = 0

    @property
    def levels(self) -> Levels:
        return Levels.of(self.lowest, self.highest) if self.pictures else FULL

    def remark(self) -> str | None:
        """A sentence for people where not all 16 bits are in use."""
        levels = self.levels
        if levels == FULL:
            return None
        signed = -128 <= self.lowest < 0 and self.highest < 128
        kind = "with signs" if signed else "of 16 or 32 bits"
        how = (
            f"{levels.black:,} becomes black and {levels.white:,} white"
            if levels.black
            else f"taken as {levels.white.bit_length()} bits, so that {levels.white:,} is white"
        )
        return (
            f"{self.pictures:,} grey pictures {kind} hold the numbers {self.lowest:,} to "
            f"{self.highest:,}: {how}."
        )


class Finder:
    """`Extremes` of a data set, looked for when it is first asked for, and then known."""

    def __init__(self, pictures: Pictures, parts: Sequence[SplitList], place: str) -> None:
        self.pictures = pictures
        self.parts = tuple(parts)
        self.place = place
        self._extremes: Extremes | None = None

    def __call__(self) -> Extremes:
        """Raises `DataError` where nothing but the lower bits of colours is in use."""
        if self._extremes is None:
            self._extremes = self._remembered()
        return self._extremes

    def found(self) -> Levels | None:
        """What is black and white in the wide pictures; `None` where there is no such picture."""
        extremes = self()
        return extremes.levels if extremes.pictures else None

    def remarks(self) -> tuple[str, ...]:
        """What a person is to be told before training, and the record says."""
        remark = self().remark()
        return () if remark is None else (remark,)

    def _remembered(self) -> Extremes:
        digests = sorted({digest for part in self.parts for digest in part.digests})
        key = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]
        memory = cache_dir() / "levels" / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            extremes = Extremes(*json.loads(memory.read_text(encoding="utf-8")))
            if all(
                isinstance(n, int) for n in (extremes.pictures, extremes.lowest, extremes.highest)
            ):
                return extremes
        extremes = self._measured()
        with contextlib.suppress(OSError):  # it only saves time
            memory.parent.mkdir(parents=True, exist_ok=True)
            with images.replaced(memory) as temporary:
                content = [extremes.pictures, extremes.lowest, extremes.highest]
                temporary.write_text(json.dumps(content), encoding="ascii")
        return extremes

    def _measured(self) -> Extremes:
        names = list(dict.fromkeys(name for part in self.parts for name in part.names))
        extents = [e for e in threads.of_all(self._extent, names) if e is not None]
        cut = [e for e in extents if e.cut]
        if cut and all(e.lost for e in cut):
            raise DataError(
                f"{self.place}: {len(cut):,} colour pictures of 16 bits a channel use 14 of them "
                "at most, and the upper 8 are all that is read of a colour: they would be black. "
                "Save them with 8 bits a channel, or scaled up to all 16."
            )
        grey = [e for e in extents if not e.cut]
        if not grey:
            return Extremes()
        return Extremes(len(grey), min(e.lowest for e in grey), max(e.highest for e in grey))

    def _extent(self, name: str) -> Extent | None:
        try:
            return self.pictures.extent(name)
        except DataError:  # who decodes it names it
            return None
