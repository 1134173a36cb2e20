"""Every task of a suite: bars with their spread, and a heat map with the averages."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbench.report.figures.style import GREY, STYLE, empty, entitle_panel, style_of, text_width
from peftbench.report.scores import SCORES
from peftbench.report.tables.cells import MEAN_OF_GROUPS, MEAN_OF_TASKS, OK, TASK, overall
from peftbench.report.tables.text import SHOWN
from peftbench.report.view import View, view_of

COLUMNS = 4  # panels side by side
WIDTH = 10.0  # inches of all of them
LINE = 0.19  # inches for one method
DARK = 0.62  # a cell whose shade is beyond this gets white text
# numbers inside the axes need no room of their own, and measuring them takes time
CENTRED: Any = {"ha": "center", "va": "center", "fontsize": 8, "in_layout": False}


def bars(runs: View | pd.DataFrame) -> Figure:
    """A panel for each task with a bar for each method, the best on average on top.

    `runs` are a view, or a table of runs by top-1 accuracy. Whiskers are sample standard deviations
    over seeds, whose number stands in the title. A cell without a number says why; a row without
    any is named below.
    """
    view = view_of(runs)
    sections = _sections(view.cells)
    if not sections:
        return empty("no finished final run")
    with mpl.rc_context(STYLE):
        heights = [
            0.3
            + (0.75 + LINE * len(_ranking(rows)))
            * math.ceil(len(_columns(rows, (TASK,))) / COLUMNS)
            for _, rows in sections
        ]
        figure = Figure(figsize=(WIDTH, sum(heights)))
        parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (title, rows), height in zip(parts, sections, heights, strict=True):
            head: Any = {"fontsize": 10, "fontweight": "bold", "x": 0.01, "ha": "left", "va": "top"}
            part.suptitle(title, y=1 - 0.06 / height, **head)
            remark = f"{SCORES[view.metric]} in %; whiskers ± 1 sample sd over seeds{_absent(rows)}"
            part.supxlabel(remark, fontsize=8, color=GREY, y=0.06 / height)
            _bar_panels(part, rows, height, 0.06 + 0.135 * len(remark.splitlines()))
    return figure


def _height(rows: pd.DataFrame) -> float:
    """Inches of the panels of a part."""
    high = math.ceil(len(_columns(rows, (TASK,))) / COLUMNS)
    return high * (0.75 + LINE * len(_ranking(rows)))


def _bar_panels(part: Any, rows: pd.DataFrame, height: float, below: float) -> None:
    """The panels of a part, placed by hand: a layout engine would draw them several times.

    Args:
        height: of the part, in inches.
        below: inches that stay free below the panels and their numbers.
    """
    tasks = [name for _, name in _columns(rows, (TASK,))]
    labels = _ranking(rows)
    wide = min(COLUMNS, len(tasks))
    high = math.ceil(len(tasks) / wide)
    left, gap = 0.15 + max(text_width(label, 8) for label in labels), (0.25, 0.55)
    bottom, top = below + 0.25, 0.5
    each = (
        (WIDTH - 0.15 - left - gap[0] * (wide - 1)) / wide,
        (height - bottom - top - gap[1] * (high - 1)) / high,
    )
    places = {"left": left / WIDTH, "right": 1 - 0.15 / WIDTH, "wspace": gap[0] / each[0]}
    places |= {"bottom": bottom / height, "top": 1 - top / height, "hspace": gap[1] / each[1]}
    grid = part.subplots(high, wide, squeeze=False, gridspec_kw=places)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    for i, (axes, task) in enumerate(zip(grid.flat, tasks, strict=False)):
        mine = {r["label"]: r for r in rows[rows["column"] == task].to_dict("records")}
        _bars(axes, [mine[label] for label in labels])
        first = i % wide == 0
        axes.set_yticks(range(len(labels)) if first else [], labels if first else [], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_ylim(len(labels) - 0.4, -0.6)  # the best on top
        seeds = sorted({int(cell["n"]) for cell in mine.values() if cell["state"] == OK})
        entitle_panel(axes, f"{task}  (n = {_range(seeds)})" if seeds else task, fontsize=8.5)


def _bars(axes: Axes, cells: Sequence[dict[Any, Any]]) -> None:
    """A bar with a whisker and a number for each cell, from the top; all bars in one piece."""
    bars, colours, whiskers = [], [], []
    for y, cell in enumerate(cells):
        x, text, grey = 0.0, f" {SHOWN.get(cell['state'], '')}", GREY
        if cell["state"] == OK:
            value, spread = 100 * float(cell["mean"]), 100 * _or_zero(cell["sd"])
            bars.append([(0, y - 0.36), (value, y - 0.36), (value, y + 0.36), (0, y + 0.36)])
            colours.append(style_of(str(cell["method"]))[0])
            whiskers.append([(value - spread, y), (value + spread, y)])
            x, text, grey = value + spread, f" {value:.1f}", "#333333"
        axes.text(x, y, text, va="center", fontsize=7, color=grey)
    axes.add_collection(
        PolyCollection(bars, facecolors=colours, alpha=0.6, linewidths=0), autolim=False
    )
    if any(low != high for low, high in whiskers):
        dark: Any = {"color": "#444444", "zorder": 2}
        axes.add_collection(LineCollection(whiskers, linewidths=0.9, **dark), autolim=False)
        ends = np.array(whiskers).reshape(-1, 2)
        axes.plot(*ends.T, linestyle="none", marker="|", markersize=3.6, **dark)
    axes.set_xlim(0, 1.16 * max((high for _, (high, _) in whiskers), default=1.0))


def heat_map(runs: View | pd.DataFrame) -> Figure:
    """Methods by tasks with the averages to the left, shaded from worst to best of each column.

    `runs` are a view, or a table of runs by top-1 accuracy. Numbers are means over seeds in
    percent; a cell without one says why, a row without any is named below. The best method on
    average is on top.
    """
    view = view_of(runs)
    sections = _sections(view.cells)
    if not sections:
        return empty("no finished final run")
    kinds = (MEAN_OF_TASKS, MEAN_OF_GROUPS, TASK)
    with mpl.rc_context(STYLE):
        heights = [1.15 + 0.24 * len(_ranking(rows)) for _, rows in sections]
        widest = max(len(_columns(rows, kinds)) for _, rows in sections)
        figure = Figure(figsize=(2.0 + 0.72 * widest, sum(heights)), layout="constrained")
        grid = figure.subplots(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, rows) in zip(grid, sections, strict=True):
            _shade(axes, rows, _columns(rows, kinds))
            seeds = sorted({int(n) for n in rows["n"].dropna()})
            axes.set_title(
                f"{title}\n", loc="left", fontsize=10, fontweight="bold", pad=8, ha="left"
            )
            axes.set_xlabel(
                f"{SCORES[view.metric]} in %, mean over n = {_range(seeds)} seeds; "
                f"darker: closer to the best of the column{_absent(rows)}",
                fontsize=8,
                color=GREY,
                loc="left",
            )
    return figure


def _shade(axes: Axes, rows: pd.DataFrame, columns: Sequence[tuple[str, str]]) -> None:
    labels = _ranking(rows)
    shades = mpl.colormaps["Blues"]
    by_cell = {(r["label"], r["kind"], r["column"]): r for r in rows.to_dict("records")}
    averages = sum(kind != TASK for kind, _ in columns)
    squares: list[Rectangle] = []
    for x, (kind, column) in enumerate(columns):
        left = x + (0.25 if averages and x >= averages else 0.0)
        cells = [by_cell.get((label, kind, column)) for label in labels]
        values = [100 * float(c["mean"]) for c in cells if c is not None and c["state"] == OK]
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        for y, cell in enumerate(cells):
            text, colour = SHOWN[cell["state"]] if cell and cell["state"] != OK else "", GREY
            if cell is not None and cell["state"] == OK:
                value = 100 * float(cell["mean"])
                shade = 0.04 + 0.78 * ((value - low) / (high - low) if high > low else 1.0)
                squares.append(Rectangle((left, y), 1, 1, facecolor=shades(shade)))
                text, colour = f"{value:.1f}", "white" if shade > DARK else "#222222"
            axes.text(left + 0.5, y + 0.5, text, color=colour, **CENTRED)
    axes.add_collection(PatchCollection(squares, match_original=True, edgecolor="white"))
    gap = 0.25 if averages and averages < len(columns) else 0.0
    axes.set_xlim(0, len(columns) + gap)
    axes.set_ylim(len(labels), 0)
    places = [x + 0.5 + (gap if x >= averages else 0.0) for x in range(len(columns))]
    axes.set_xticks(places, [_short(name) for _, name in columns], fontsize=8)
    axes.set_yticks([y + 0.5 for y in range(len(labels))], labels, fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticklabels([_short(name) for _, name in columns], rotation=35, ha="left")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _sections(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and cells of each backbone and suite that has a number."""
    keyed = cells.assign(suite=cells["suite"].fillna(""))
    return [
        (f"{backbone} · {suite}" if suite else str(backbone), rows)
        for (backbone, suite), rows in keyed.groupby(["backbone", "suite"], sort=False)
        if (rows["state"] == OK).any()
    ]


def _ranking(rows: pd.DataFrame) -> list[str]:
    """Labels with the best average first, then those without one that have a number at all."""
    known = set(rows.loc[rows["state"] == OK, "label"])
    whole = overall(rows)
    whole = whole[whole["label"].isin(known)]
    order = whole.sort_values("mean", ascending=False, kind="stable", na_position="last")
    return list(dict.fromkeys(map(str, order["label"])))


def _absent(rows: pd.DataFrame) -> str:
    """A remark on the rows that have no number."""
    known = set(rows.loc[rows["state"] == OK, "label"])
    labels = [str(label) for label in dict.fromkeys(rows["label"]) if label not in known]
    lines = textwrap.wrap(f"no result: {', '.join(labels)}", 110) if labels else []
    return "".join(f"\n{line}" for line in lines)


def _columns(rows: pd.DataFrame, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and heading of the columns of these kinds, in the order of `kinds`."""
    pairs = dict.fromkeys(zip(rows["kind"], rows["column"], strict=True))
    return [(str(k), str(c)) for wanted in kinds for k, c in pairs if k == wanted]


def _or_zero(value: Any) -> float:
    return 0.0 if pd.isna(value) else float(value)


def _short(name: str) -> str:
    """A data set without its suite."""
    return name.rpartition("/")[2]


def _range(seeds: Sequence[int]) -> str:
    return str(seeds[0]) if len(set(seeds)) == 1 else f"{seeds[0]} to {seeds[-1]}"
