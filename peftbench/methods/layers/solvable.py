"""What a head is computed from, where it takes no steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Solvable:
    """The training images as the classifier sees them."""

    features: np.ndarray  # (N, D) float32
    labels: np.ndarray  # (N,) int64
    num_classes: int
    class_weights: np.ndarray | None = None  # (classes,) float64; None: all images count alike
