"""Figures of the results; each function takes the table of runs and returns a `Figure`.

An installed package adds figures through the entry point group `peftbench.figures`.
"""

from __future__ import annotations

from peftbench import plugins
from peftbench.report.figures.calibration import calibration
from peftbench.report.figures.catalogue import KINDS, Source, every, register_figure
from peftbench.report.figures.cost import (
    accuracy_against,
    accuracy_against_parameters,
    drawable,
)
from peftbench.report.figures.curves import data_scale_curves, few_shot_curves, sensitivity
from peftbench.report.figures.learning import learning_curves
from peftbench.report.figures.ranks import critical_difference, win_rates
from peftbench.report.figures.style import COLOURS, FORMATS, LOOKS, is_empty, look, save
from peftbench.report.figures.tasks import bars, heat_map

__all__ = [
    "COLOURS",
    "FORMATS",
    "KINDS",
    "LOOKS",
    "Source",
    "accuracy_against",
    "accuracy_against_parameters",
    "bars",
    "calibration",
    "critical_difference",
    "data_scale_curves",
    "drawable",
    "every",
    "few_shot_curves",
    "heat_map",
    "is_empty",
    "learning_curves",
    "look",
    "register_figure",
    "save",
    "sensitivity",
    "win_rates",
]

plugins.load("figures")  # behind the names that their modules import from here
