"""Figures of the results; each function takes the table of runs and returns a `Figure`."""

from __future__ import annotations

from peftbench.report.figures.cost import (
    accuracy_against,
    accuracy_against_parameters,
    drawable,
)
from peftbench.report.figures.style import COLOURS, FORMATS, LOOKS, look, save

__all__ = [
    "COLOURS",
    "FORMATS",
    "LOOKS",
    "accuracy_against",
    "accuracy_against_parameters",
    "drawable",
    "look",
    "save",
]
