"""Learning curves: what training did, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from peftbench.report.figures.histories import QUANTITIES, histories, in_order
from peftbench.report.figures.lines import Line
from peftbench.report.figures.style import GREY, STYLE, empty, entitle_panel, style_of
from peftbench.report.units import places
from peftbench.report.view import View, view_of

COLUMNS = 5  # panels side by side
GAP = (np.nan, np.nan)
HEADING: Any = {"fontsize": 10, "fontweight": "bold"}


@dataclass(frozen=True)
class Window:
    """Ends and ticks of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: list[float]
    y_ticks: list[float]


def learning_curves(
    runs: View | pd.DataFrame, epochs: pd.DataFrame, *, quantity: str = "accuracy"
) -> Figure:
    """A panel for each row of the tables, its curve in colour before the curves of the others.

    `runs` are a view, or a table of runs, of one backbone and suite, `epochs` that of their epochs
    (`peftbench.results.frame.epochs`); `quantity` is "accuracy" or "loss". A curve is the mean over
    data sets of the means over seeds, its band one sample standard deviation over seeds to both
    sides. It ends where the first data set does.
    """
    view = view_of(runs)
    table = view.table
    drawn = in_order([history.line() for history in histories(view, epochs, quantity)])
    if not drawn:
        return empty("no finished final run with a history")
    wide = min(COLUMNS, len(drawn))
    high = math.ceil(len(drawn) / wide)
    with mpl.rc_context(STYLE | {"xtick.labelsize": 7, "ytick.labelsize": 7}):
        size = (1.9 * wide + 0.5, 1.45 * high + 0.8)  # inches
        figure = Figure(figsize=size)
        # placed by hand: a layout engine would draw every panel a few times more
        edges = {"left": 0.62 / size[0], "right": 1 - 0.08 / size[0]}
        edges |= {"bottom": 0.55 / size[1], "top": 1 - 0.5 / size[1]}
        grid = figure.subplots(
            high, wide, squeeze=False, gridspec_kw={**edges, "wspace": 0.1, "hspace": 0.32}
        )
        for axes in grid.flat[len(drawn) :]:
            axes.set_axis_off()
        # all curves as one, with gaps between them, which is drawn several times as fast
        others = np.concatenate([[*zip(*_curve(line), strict=True), GAP] for line in drawn]).T
        window = _window(drawn)
        for i, (axes, line) in enumerate(zip(grid.flat, drawn, strict=False)):
            axes.plot(*others, color="#dddddd", linewidth=0.6, zorder=1)
            _draw(axes, line)
            _frame(axes, window, left=i % wide == 0, bottom=i >= len(drawn) - wide)
        tasks = int(table["dataset"].nunique())
        over = f"mean of {tasks} tasks" if tasks > 1 else str(table["dataset"].iloc[0])
        seeds = max(place.n for line in drawn for place in line.places)
        title = " · ".join(filter(None, (str(table["backbone"].iloc[0]), places(table).iloc[0])))
        edge = 1 - 0.08 / size[1]
        figure.suptitle(title, x=0.62 / size[0], y=edge, ha="left", va="top", **HEADING)
        figure.supylabel(f"{QUANTITIES[quantity]}, {over}", fontsize=9, x=0.06 / size[0], ha="left")
        figure.supxlabel(
            f"epoch; highest at the end first; band ± 1 sample sd over n = {seeds} seeds",
            fontsize=8,
            color=GREY,
            y=0.06 / size[1],
        )
    return figure


def _draw(axes: Axes, line: Line) -> None:
    colour, _ = style_of(line.method)
    epochs, means = _curve(line)
    axes.fill_between(
        epochs,
        [place.mean - (place.sd or 0.0) for place in line.places],
        [place.mean + (place.sd or 0.0) for place in line.places],
        color=colour,
        alpha=0.25,
        linewidth=0,
        zorder=2,
    )
    axes.plot(epochs, means, color=colour, linewidth=1.6, zorder=3)
    entitle_panel(axes, line.name, fontsize=8.5, pad=3)


def _window(drawn: Sequence[Line]) -> Window:
    """What every panel shows."""
    places = [place for line in drawn for place in line.places]
    low, high = min(place.mean for place in places), max(place.mean for place in places)
    margin = 0.05 * (high - low) or 1.0
    first, last = min(place.x for place in places), max(place.x for place in places)
    ticks = MaxNLocator(4, integer=True).tick_values(0, last)
    heights = MaxNLocator(4).tick_values(low, high)
    return Window(
        x=(first - 0.02 * last, 1.02 * last),
        y=(low - margin, high + margin),
        x_ticks=[x for x in ticks if 0 < x <= last],
        y_ticks=[y for y in heights if low <= y <= high + margin],
    )


def _frame(axes: Axes, window: Window, *, left: bool, bottom: bool) -> None:
    """The same window for every panel; numbers only where nothing is left of it or below."""
    axes.set_xlim(*window.x)
    axes.set_ylim(*window.y)
    axes.xaxis.set_major_locator(FixedLocator(window.x_ticks))
    axes.yaxis.set_major_locator(FixedLocator(window.y_ticks))
    axes.tick_params(labelleft=left, labelbottom=bottom, length=2)


def _curve(line: Line) -> tuple[list[float], list[float]]:
    return [place.x for place in line.places], [place.mean for place in line.places]
