"""dSprites-like images: white shapes on black, drawn from five factors by our own rasteriser.

The factors are those of dSprites (Matthey et al., 2017), the pixels are not: the edges of the
original renderer differ. Binning a factor into 16 classes follows VTAB (Zhai et al., 2019).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np

SHAPES = ("square", "ellipse", "heart")
FACTOR_SIZES = (3, 6, 40, 32, 32)  # shape, scale, orientation, x, y
SIDE = 64
NUM_BINS = 16

_SUPERSAMPLING = 4  # sample points a pixel and axis; an edge pixel is white when half are inside
_MARGIN = 16.0  # pixels from the border to the nearest possible centre
_HALF_EXTENT = 9.5  # half side of the square at scale 1; its half diagonal 13.4 stays in the margin


@dataclass(frozen=True)
class SpriteFactors:
    """Indices of the five generating factors, each below its entry of `FACTOR_SIZES`."""

    shape: int
    scale: int
    orientation: int
    x: int
    y: int

    def __post_init__(self) -> None:
        for value, size in zip(astuple(self), FACTOR_SIZES, strict=True):
            if not 0 <= value < size:
                raise ValueError(f"Factor index {value} is outside 0..{size - 1} in {self}.")

    @property
    def name(self) -> str:
        """A short unique name, for example `heart-s3-o07-x12-y30`."""
        return (
            f"{SHAPES[self.shape]}-s{self.scale}-o{self.orientation:02d}"
            f"-x{self.x:02d}-y{self.y:02d}"
        )


def draw(factors: SpriteFactors) -> np.ndarray:
    """The binary image of `factors`: (64, 64) uint8, 0 or 255."""
    scale = 0.5 + 0.5 * factors.scale / (FACTOR_SIZES[1] - 1)
    angle = 2.0 * np.pi * factors.orientation / (FACTOR_SIZES[2] - 1)
    span = SIDE - 2.0 * _MARGIN
    centre_x = _MARGIN + span * factors.x / (FACTOR_SIZES[3] - 1)
    centre_y = _MARGIN + span * factors.y / (FACTOR_SIZES[4] - 1)

    points = (np.arange(SIDE * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING
    right = (points[None, :] - centre_x) / (_HALF_EXTENT * scale)
    up = (centre_y - points[:, None]) / (_HALF_EXTENT * scale)
    u = np.cos(angle) * right + np.sin(angle) * up
    v = -np.sin(angle) * right + np.cos(angle) * up
    inside = _inside(SHAPES[factors.shape], u, v)
    counts = inside.reshape(SIDE, _SUPERSAMPLING, SIDE, _SUPERSAMPLING).sum(axis=(1, 3))
    image: np.ndarray = np.where(2 * counts >= _SUPERSAMPLING**2, 255, 0).astype(np.uint8)
    return image


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points of the shape's own frame (unit half extent, v upwards) lie in the shape."""
    inside: np.ndarray
    if shape == "square":
        inside = (np.abs(u) <= 1.0) & (np.abs(v) <= 1.0)
    elif shape == "ellipse":
        inside = (u / 1.2) ** 2 + (v / 0.7) ** 2 <= 1.0
    else:
        p, q = u * 1.05, v * 1.05 + 0.1  # the sextic heart curve, centred and scaled to the square
        inside = (p**2 + q**2 - 1.0) ** 3 - p**2 * q**3 <= 0.0
    return inside


def label_of(factors: SpriteFactors, target: Literal["location", "orientation"]) -> int:
    """The VTAB class of `factors`: its x position or its orientation in 16 equal bins."""
    if target == "location":
        return factors.x * NUM_BINS // FACTOR_SIZES[3]
    return factors.orientation * NUM_BINS // FACTOR_SIZES[2]


def sample_factors(
    target: Literal["location", "orientation"],
    per_class: tuple[int, ...],
    generator: np.random.Generator,
) -> list[list[SpriteFactors]]:
    """Distinct factor combinations, `per_class[c]` of each class `c`, no two with equal pixels."""
    axis = 3 if target == "location" else 2
    seen: set[bytes] = set()
    drawn: list[list[SpriteFactors]] = []
    for label, count in enumerate(per_class):
        indices = [
            i for i in range(FACTOR_SIZES[axis]) if i * NUM_BINS // FACTOR_SIZES[axis] == label
        ]
        chosen: list[SpriteFactors] = []
        while len(chosen) < count:
            values = [int(generator.integers(size)) for size in FACTOR_SIZES]
            values[axis] = indices[int(generator.integers(len(indices)))]
            factors = SpriteFactors(*values)
            pixels = draw(factors).tobytes()
            # Orientations 0 and 39 are the same angle, so distinct factors may share their pixels.
            if pixels not in seen:
                seen.add(pixels)
                chosen.append(factors)
        drawn.append(chosen)
    return drawn
