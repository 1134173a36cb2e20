"""Which numbers are black and white in pictures with more than 8 bits a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GREY_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners have
_FEW_BITS = 64  # below it, the upper 8 bits of 16 come of 14 bits or fewer


@dataclass(frozen=True)
class Levels:
    """Which numbers are black and white in grey pictures of more than 8 bits."""

    black: int = 0
    white: int = 65535

    @classmethod
    def of(cls, lowest: int, highest: int) -> Levels:
        """Of numbers from `lowest` to `highest`.

        Black is 0 and white the greatest number of as many bits as are in use; where some are
        negative, as in computed tomography, the range itself.
        """
        if lowest < 0:
            return cls(lowest, max(highest, lowest + 1))
        bits = next((b for b in GREY_DEPTHS if highest < 2**b), highest.bit_length())
        return cls(0, 2**bits - 1)

    def scaled(self, wide: np.ndarray) -> np.ndarray:
        """Whole numbers (H, W) as grey levels 0..255: (H, W) uint8."""
        shown = wide.clip(self.black, self.white) - self.black
        return np.round(shown / ((self.white - self.black) / 255)).astype(np.uint8)


FULL = Levels()
SIGNED_BYTE = Levels(-128, 127)


@dataclass(frozen=True)
class Extent:
    """The numbers that a picture of more than 8 bits uses.

    Of colours Pillow keeps the upper 8 of 16 bits alone: `cut` tells those.
    """

    lowest: int
    highest: int
    cut: bool = False

    @property
    def lost(self) -> bool:
        """Whether what Pillow keeps of the colours is next to nothing."""
        return self.cut and self.highest < _FEW_BITS
