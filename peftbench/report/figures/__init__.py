"""Figures of the results; each function takes the table of runs and returns a `Figure`.

An installed package adds figures through the entry point group `peftbench.figures`.
"""

from __future__ import annotations

from peftbench import plugins
from peftbench.report.figures.calibration import calibration
from peftbench.report.figures.catalogue import KINDS, FigureSource, all_figures, register_figure
from peftbench.report.figures.cost import (
    accuracy_against,
    accuracy_against_parameters,
    drawable,
)
from peftbench.report.figures.curves import data_scale_curves, few_shot_curves, sensitivity
from peftbench.report.figures.learning import learning_curves
from peftbench.report.figures.ranks import critical_difference, win_rates
from peftbench.report.figures.style import COLOURS, FORMATS, METHOD_STYLES, is_empty, save, style_of
from peftbench.report.figures.tasks import bars, heat_map

__all__ = [
    "COLOURS",
    "FORMATS",
    "KINDS",
    "METHOD_STYLES",
    "FigureSource",
    "accuracy_against",
    "accuracy_against_parameters",
    "all_figures",
    "bars",
    "calibration",
    "critical_difference",
    "data_scale_curves",
    "drawable",
    "few_shot_curves",
    "heat_map",
    "is_empty",
    "learning_curves",
    "register_figure",
    "save",
    "sensitivity",
    "style_of",
    "win_rates",
]

plugins.load("figures")  # behind the names that their modules import from here
