"""Accuracy against what it costs: parameters, memory, time of training, latency."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from peftbench.registry import unknown_name
from peftbench.report.costs import COSTS
from peftbench.report.figures.points import Panel, Point, frontier, panels
from peftbench.report.figures.style import GREY, STYLE, darker, empty, entitle, settle, style_of
from peftbench.report.labels import Box, place
from peftbench.report.scores import SCORES
from peftbench.report.view import View, view_of
from peftbench.report.words import counted, scaled
from peftbench.statistics.coverage import describe
from peftbench.statistics.new_images import IMAGES

PAD = 1.5  # typographic points on both sides of a name
WIDE = 20.0  # costs that differ by more than this factor get a logarithmic axis


def drawable(runs: View | pd.DataFrame, cost: str = "parameters") -> bool:
    """Whether a figure of these runs would hold a point."""
    return any(panel.points for panel in panels(view_of(runs), cost))


def accuracy_against_parameters(runs: View | pd.DataFrame) -> Figure:
    """`accuracy_against` tuned parameters; the head is not counted."""
    return accuracy_against(runs, "parameters")


def accuracy_against(runs: View | pd.DataFrame, cost: str) -> Figure:
    """Mean over the data sets against a cost, one panel for each backbone, suite and device.

    `runs` are a view, or a table of runs by top-1 accuracy; `cost` is a name in
    `peftbench.report.costs.COSTS`. Only rows that are complete appear; the others are named above
    the panel. Bars are 95 % intervals over seeds of the mean over the data sets, and for
    a measured cost the range over seeds. The grey line joins the methods that no other beats
    at the same cost or less.
    """
    if cost not in COSTS:
        raise unknown_name("cost", cost, COSTS)
    view = view_of(runs)
    drawn = panels(view, cost)
    if not any(panel.points for panel in drawn):
        missing = list(dict.fromkeys(label for panel in drawn for label in panel.missing))
        why = f"\nno complete row: {', '.join(missing)}" if missing else ""
        return empty(f"no finished final run of every task{why}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5.0 * len(drawn)), layout="constrained")
        axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
        for place_of, panel in zip(axes, drawn, strict=True):
            _draw(place_of, panel, cost, SCORES[view.metric])
        settle(figure)  # labels are placed in it
        for place_of, panel in zip(axes, drawn, strict=True):
            _label(place_of, panel.points)
    return figure


def _draw(axes: Axes, panel: Panel, cost: str, score: str) -> None:
    """Everything but the labels of the points, which need a settled layout."""
    axes.set_xlabel(COSTS[cost].heading)
    where = f", {panel.over}" if panel.over.startswith("mean of") else f" on {panel.over}"
    axes.set_ylabel(f"{score} in %{where}")
    _scale(axes, [point.cost for point in panel.points], counted=not COSTS[cost].measured)
    best = frontier(panel.points)
    axes.plot(
        [point.cost for point in best],
        [point.mean for point in best],
        color="#bdbdbd",
        linewidth=1.4,
        drawstyle="steps-post",
        zorder=1,
    )
    for point in panel.points:
        colour, marker = style_of(point.method)
        axes.errorbar(
            point.cost,
            point.mean,
            yerr=_sides(point.mean, point.mean_range),
            xerr=_sides(point.cost, point.cost_range),
            color=colour,
            marker=marker,
            markersize=10 if marker == "*" else 7,
            markeredgecolor="white",
            markeredgewidth=0.7,
            elinewidth=1.1,
            capsize=2.5,
            linestyle="none",
            zorder=3,
        )
    axes.margins(y=0.12)
    remarks = _remarks(panel.points)
    if panel.missing:
        remarks += textwrap.wrap(f"not shown, incomplete: {', '.join(panel.missing)}", 100)
    entitle(axes, panel.title, remarks)


def _sides(centre: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    """Lengths of a bar below and above its centre."""
    if ends is None:
        return None
    return [[max(0.0, centre - ends[0])], [max(0.0, ends[1] - centre)]]


def _remarks(points: Sequence[Point]) -> list[str]:
    """How many seeds there are and what the marks mean."""
    if not points:
        return ["no complete row"]
    low, high = min(point.n for point in points), max(point.n for point in points)
    over = sorted({point.over for point in points if point.mean_range})
    noun = "run" if any(text.startswith(IMAGES) for text in over) else "seed"
    seeds = f"n = {counted(high, noun)}{'' if low == high else ' unless given'}"
    bars = f", bars: 95 % interval over {' or '.join(over)}" if over else ""
    across = f"; across, range over {noun}s" if any(point.cost_range for point in points) else ""
    line = "; grey line: best at its cost" if len(frontier(points)) > 1 else ""
    held = describe(point.holds for point in points if point.mean_range)
    return [f"{seeds}{bars}{across}{line}", *([f"the interval {held}"] if held else [])]


def _scale(axes: Axes, costs: Sequence[float], *, counted: bool) -> None:
    """Logarithmic where costs differ much, with a place for zero to the left of them."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _magnitude(value)))
    positive = [cost for cost in costs if cost > 0]
    if not positive:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0])
        return
    if not counted:
        if max(positive) > WIDE * min(positive):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _magnitude(value)))
        axes.margins(x=0.1)
        return
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    ticks = [10.0**exponent for exponent in range(first, last + 1)]
    if len(positive) < len(costs):
        axes.set_xscale("symlog", linthresh=ticks[0], linscale=0.6)
        axes.set_xlim(-0.25 * ticks[0], 2.5 * max(positive))
        axes.set_xticks([0.0, *ticks])
    else:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 2.5, 2.5 * max(positive))
        axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _magnitude(value)))


def _magnitude(value: float) -> str:
    """0.5, 100, 1k, 10M."""
    short, unit = scaled(value)
    return f"{short:g}{unit}"


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Name each point beside it, away from the other names, marks, bars and the grey line.

    A name that had to move away is joined to its point by a thin line.
    """
    axes.autoscale(False)  # so that all stays where names and lines are placed by
    most = max((point.n for point in points), default=0)
    texts = [
        axes.annotate(
            point.label if point.n == most else f"{point.label} (n={point.n})",
            (point.cost, point.mean),
            (0, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            color=darker(style_of(point.method)[0]),
            zorder=4,
        )
        for point in points
    ]
    unit = axes.figure.dpi / 72  # pixels of a typographic point
    window = axes.get_window_extent()
    extents = [text.get_window_extent() for text in texts]
    centres = [_position(axes, point.cost, point.mean) for point in points]
    marks = [box for point in points for box in _mark_boxes(axes, point)]
    labels = place(
        [(extent.width / unit + 2 * PAD, extent.height / unit) for extent in extents],
        centres,
        [*marks, *_step_boxes(axes, frontier(points))],
        Box(window.x0 / unit, window.y0 / unit, window.x1 / unit, window.y1 / unit),
    )
    for text, label, centre in zip(texts, labels, centres, strict=True):
        text.set_position((label.box.x0 + PAD - centre[0], label.box.y0 - centre[1]))
        if label.line:
            ends = [
                axes.transData.inverted().transform((x * unit, y * unit)) for x, y in label.line
            ]
            axes.plot(*zip(*ends, strict=True), color=GREY, linewidth=0.5, zorder=2)


def _mark_boxes(axes: Axes, point: Point) -> list[Box]:
    """What the mark of a point and its bars cover."""
    reach = 4.5
    bottom, top = point.mean_range or (point.mean, point.mean)
    x, y = _position(axes, point.cost, point.mean)
    _, low = _position(axes, point.cost, bottom)
    _, high = _position(axes, point.cost, top)
    boxes = [Box(x - reach, min(low, y - reach), x + reach, max(high, y + reach))]
    if point.cost_range:
        left, right = (_position(axes, end, point.mean)[0] for end in point.cost_range)
        boxes.append(Box(left, y - 1, right, y + 1))
    return boxes


def _step_boxes(axes: Axes, best: Sequence[Point]) -> list[Box]:
    """What the steps between the points of the frontier cover."""
    boxes = []
    for left, right in itertools.pairwise(best):
        x0, y0 = _position(axes, left.cost, left.mean)
        x1, y1 = _position(axes, right.cost, right.mean)
        boxes += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, y0, x1 + 1, y1)]
    return boxes


def _position(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Place of a point of the data in the figure, in typographic points."""
    across, up = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
    return float(across), float(up)
