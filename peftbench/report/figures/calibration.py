"""Reliability diagrams: whether confidence is what comes true (Guo et al., 2017, section 2)."""

from __future__ import annotations

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbench.report.figures.style import GREY, STYLE, empty, entitle_panel, style_of
from peftbench.statistics.images import calibration_error

COLUMNS = 4  # panels side by side


def calibration(bins: pd.DataFrame) -> Figure:
    """A panel for each method: accuracy against confidence, and below how many images have it.

    `bins` are those of one backbone and suite (`peftbench.report.comparison.reliability`). The
    method with the smallest expected calibration error comes first; a point above the diagonal is
    a bin of images on which the method is right more often than it thinks.
    """
    if bins.empty:
        return empty("no finished final runs with predictions on the same images")
    parts = {str(label): part for label, part in bins.groupby("label", sort=True)}
    errors = {label: calibration_error(part) for label, part in parts.items()}
    order = sorted(parts, key=lambda label: (errors[label], label))
    wide = min(COLUMNS, len(order))
    high = math.ceil(len(order) / wide)
    with mpl.rc_context(STYLE | {"xtick.labelsize": 7, "ytick.labelsize": 7}):
        figure = Figure(figsize=(1.9 * wide + 0.6, 1.9 * high + 0.9), layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(order) :]:
            axes.set_axis_off()
        for axes, label in zip(grid.flat, order, strict=False):
            _draw(axes, parts[label])
            title = f"{label}  {100 * errors[label]:.1f}"
            entitle_panel(axes, title, fontsize=8.5, pad=3)
        first = bins.iloc[0]
        heading = " · ".join(str(first[name]) for name in ("backbone", "suite") if first[name])
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.supylabel("accuracy in %", fontsize=9)
        images = int(parts[order[0]]["images"].sum())
        figure.supxlabel(
            "confidence in %; number: expected calibration error in %; shaded: share of images\n"
            f"{images:,} predictions of n = {int(first['runs'])} seeds for each of the "
            f"{len(order)} most accurate methods",
            fontsize=8,
            color=GREY,
        )
    return figure


def _draw(axes: Axes, bins: pd.DataFrame) -> None:
    colour, marker = style_of(str(bins["method"].iloc[0]))
    share = bins["images"] / bins["images"].sum()
    wide = 100 * (bins["high"] - bins["low"])
    axes.bar(
        100 * bins["low"], 100 * share, wide, align="edge", color=colour, alpha=0.2, linewidth=0
    )
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.7, zorder=1)
    filled = bins[bins["images"] > 0]
    axes.plot(
        100 * filled["confidence"],
        100 * filled["accuracy"],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.2,
        clip_on=False,
        zorder=3,
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([0, 50, 100])
