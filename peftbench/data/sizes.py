"""How large pictures are beside what the model sees of them."""

from __future__ import annotations

import contextlib

import numpy as np
from PIL import Image

from peftbench.data.listing import Listing

LOOKED_AT = 50  # pictures, evenly spaced
MUCH_LARGER = 2.0  # times the input, from which on a person is warned


def typical_side(listing: Listing) -> int | None:
    """Median of the shorter sides of some training pictures, in pixels; headers alone are read.

    `None` for data sets that are configured here, and where no picture lies in a file of its own.
    """
    if listing.origin is None or listing.home is None:
        return None
    names, sides = listing.train.names, []
    for row in np.unique(np.linspace(0, len(names) - 1, LOOKED_AT).astype(int)) if names else ():
        path = listing.home.pictures.path(names[row])
        # what is broken or too large is refused where it is decoded
        with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError):
            if path is not None:
                with Image.open(path) as picture:
                    sides.append(min(picture.size))
    return int(np.median(sides)) if sides else None


def shown(side: int | None, size: int) -> list[str]:
    """What a person is told of the input before training, where the pictures' `side` is known.

    Args:
        side: as `typical_side`.
        size: side of the square input in pixels.
    """
    if side is None:
        return []
    line = f"Input {size} x {size} px; the pictures' shorter side is {side:,} px (median)."
    if side < MUCH_LARGER * size:
        return [line]
    return [
        line,
        f"Most of their detail is lost at {size} px: compare with a larger backbone.image_size, or "
        "with a backbone for photographs such as efficientnet_lite0 (224 px).",
    ]
