"""Curves over a setting: shots, size of the training set, learning rate, weight decay."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from peftbench.registry import unknown_name
from peftbench.report.figures.lines import BEFORE, NAME, Line, Score, draw, lines, name_ends
from peftbench.report.figures.style import STYLE, empty, entitle_panel, text_width
from peftbench.report.scores import SCORE, SCORES, check_metric
from peftbench.report.units import units
from peftbench.results.record import Status
from peftbench.results.settings import settings_of

COLUMNS = 2  # panels side by side
SETTINGS = {"lr": "learning rate", "weight_decay": "weight decay"}
PLACE = ("backbone", "suite", "dataset", "method", "seed")
READ = (
    *(*PLACE, "split", "hyperparameters", "lr", "weight_decay", "shots", "train_images"),
    *("limit", "data_settings", "content"),
)
RunFields = Mapping[str, Any]


def few_shot_curves(table: pd.DataFrame, *, metric: str = SCORE) -> Figure:
    """Accuracy over the training images of each class, one panel for each data set and the mean.

    Reads the final runs with `shots` in the table of runs. Bars are sample standard deviations
    over seeds. The mean over data sets is drawn where a method has all of them.
    """
    rows = [row for row in _rows(table, metric, "final") if row["shots"] is not None]
    return _figure(rows, metric, lambda row: float(row["shots"]), "training images of each class")


def data_scale_curves(table: pd.DataFrame, *, metric: str = SCORE) -> Figure:
    """Accuracy over the number of training images, one panel for each data set.

    Reads the final runs, limited ones among them, of data sets that were run with several numbers
    of training images. Bars are sample standard deviations over seeds.
    """
    rows = [
        row
        for row in _rows(table, metric, "final")
        if row["train_images"] is not None and row["shots"] is None
    ]
    mean = _mean_sizes(rows)
    sizes: dict[Any, set[int]] = defaultdict(set)
    for row in rows:
        sizes[row["backbone"], row["dataset"]].add(mean[_asked_of(row)])
    rows = [row for row in rows if len(sizes[row["backbone"], row["dataset"]]) > 1]
    return _figure(
        rows,
        metric,
        lambda row: float(mean[_asked_of(row)]),
        "training images",
        mean=False,
    )


def _mean_sizes(rows: Iterable[RunFields]) -> dict[Any, int]:
    """Training images by what was asked: those of folds and splits differ by a few."""
    known: dict[Any, list[int]] = defaultdict(list)
    for row in rows:
        known[_asked_of(row)].append(row["train_images"])
    return {asked: round(sum(counts) / len(counts)) for asked, counts in known.items()}


def _asked_of(row: RunFields) -> tuple[Any, ...]:
    """What decides how many images train, but for how the split was drawn.

    Runs that say no more than their number are told apart by it.
    """
    drawn = row["data_settings"] if row["content"] else row["train_images"]
    return (row["dataset"], row["limit"], drawn)


def sensitivity(table: pd.DataFrame, setting: str = "lr", *, metric: str = SCORE) -> Figure:
    """Accuracy over the values of `setting` that were tried, "lr" or "weight_decay".

    Reads the runs of the tuning phase, which report val, or the final ones where nothing was
    tuned. A point is the best over the other settings that were tried with the value, so that
    a rate is not blamed for a decay. Methods with a single value do not appear.
    """
    if setting not in SETTINGS:
        raise unknown_name("setting", setting, SETTINGS)
    rows = _rows(table, metric, "tune") or _rows(table, metric, "final")
    rows = [row for row in rows if row[setting] is not None]
    tried: dict[Any, set[float]] = defaultdict(set)
    for row in rows:
        tried[row["backbone"], row["method"]].add(row[setting])
    rows = [row for row in rows if len(tried[row["backbone"], row["method"]]) > 1]
    return _figure(
        _best(rows, setting, metric),
        metric,
        lambda row: float(row[setting]),
        SETTINGS[setting],
        by_method=True,
    )


def _rows(table: pd.DataFrame, metric: str, phase: str) -> list[dict[str, Any]]:
    """Finished runs of a phase with a score, none of them selected on test."""
    check_metric(metric)
    chosen = table[(table["status"] == str(Status.OK)) & (table["phase"] == phase)]
    chosen = chosen[~chosen["selection"].fillna("").str.contains("test")].dropna(subset=metric)
    chosen = chosen.assign(seed=units(chosen))
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in chosen[[*READ, metric]].to_dict("records")
    ]


def _best(rows: Iterable[RunFields], setting: str, metric: str) -> list[RunFields]:
    """The best run of each method, data set, seed and value of the setting."""
    best: dict[Any, RunFields] = {}
    for row in rows:
        key = tuple(row[name] for name in PLACE)
        known = best.get((*key, row[setting]))
        if known is None or row[metric] > known[metric]:
            best[*key, row[setting]] = row
    return list(best.values())


def _names(rows: Sequence[RunFields], x_of: Callable[[RunFields], float]) -> list[str]:
    """For each run its method, with the hyper-parameters that tell runs of one place apart.

    What differs only between data sets was chosen for each of them, and stays one line.
    """
    settings = [settings_of(row["hyperparameters"] or "") for row in rows]
    values: dict[Any, set[str]] = defaultdict(set)
    for row, mine in zip(rows, settings, strict=True):
        place = tuple(row[name] for name in ("method", "backbone", "dataset", "seed"))
        for name, value in mine.items():
            values[*place, x_of(row), name].add(value)
    telling = {(key[0], key[-1]) for key, several in values.items() if len(several) > 1}
    return [
        " ".join(
            [
                str(row["method"]),
                *(f"{k}={v}" for k, v in mine.items() if (row["method"], k) in telling),
            ]
        )
        for row, mine in zip(rows, settings, strict=True)
    ]


def _figure(
    rows: Sequence[RunFields],
    metric: str,
    x_of: Callable[[RunFields], float],
    heading: str,
    *,
    mean: bool = True,
    by_method: bool = False,
) -> Figure:
    """A panel for each backbone and data set, and with `mean` one more for their mean.

    Lines are runs of equal hyper-parameters, or with `by_method` of one method.
    """
    if not rows:
        return empty(f"no runs with several values of: {heading}")
    names = [str(row["method"]) for row in rows] if by_method else _names(rows, x_of)
    scores: dict[str, list[Score]] = defaultdict(list)
    backbones = list(dict.fromkeys(str(row["backbone"]) for row in rows))
    for backbone in backbones:
        mine = [(r, n) for r, n in zip(rows, names, strict=True) if r["backbone"] == backbone]
        datasets = sorted({str(row["dataset"]) for row, _ in mine})
        split = str(mine[0][0]["split"] or "test")
        for row, name in mine:
            score = Score(
                name,
                str(row["method"]),
                str(row["dataset"]),
                int(row["seed"] or 0),
                x_of(row),
                100 * float(row[metric]),
            )
            if mean and len(datasets) > 1:
                scores[f"{backbone}, mean of {len(datasets)} tasks ({split})"].append(score)
            scores[f"{backbone}, {score.dataset} ({split})"].append(score)
    panels = {title: lines(known) for title, known in sorted(scores.items(), key=_means_first)}
    panels = {title: drawn for title, drawn in panels.items() if drawn}
    return _drawn(panels, metric, heading)


def _drawn(panels: Mapping[str, Sequence[Line]], metric: str, heading: str) -> Figure:
    """The panels, placed by hand: a layout engine would draw them all several times."""
    wide = min(COLUMNS, len(panels))
    high = math.ceil(len(panels) / wide)
    names = (text_width(line.name, NAME) for drawn in panels.values() for line in drawn)
    beside = max(names, default=0.0) + (BEFORE + 4) / 72
    size = (wide * max(5.2, 2.5 + beside), 0.4 + 3.1 * high)  # inches
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        edges = {"bottom": 0.5 / size[1], "top": 1 - 0.25 / size[1]}
        gaps = {"hspace": 0.52 * high / (size[1] - 0.75 - 0.52 * (high - 1))}
        grid = figure.subplots(high, wide, squeeze=False, gridspec_kw=edges | gaps)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, drawn) in zip(grid.flat, panels.items(), strict=False):
            draw(axes, drawn)
            entitle_panel(axes, title, fontsize=9, fontweight="bold")
            _ticks(axes, drawn)
        ticks = max(map(_tick_width, grid.flat[: len(panels)])) + 8 / 72
        figure.supxlabel(f"{heading}; {_seeds(panels.values())}", fontsize=9, y=0.06 / size[1])
        figure.supylabel(f"{SCORES[metric]} in %", fontsize=9, x=0.06 / size[0], ha="left")
        between = 0.12 + ticks + beside
        each = (size[0] - 0.3 - ticks - beside - between * (wide - 1)) / wide
        for i, (axes, drawn) in enumerate(zip(grid.flat, panels.values(), strict=False)):
            left = 0.3 + ticks + i % wide * (each + between)
            place = axes.get_position()
            axes.set_position((left / size[0], place.y0, each / size[0], place.height))
            name_ends(axes, drawn)
    return figure


def _tick_width(axes: Axes) -> float:
    """Inches that the widest number of the vertical axis takes."""
    numbers = axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks().tolist())
    return max((text_width(number, mpl.rcParams["font.size"]) for number in numbers), default=0.0)


def _means_first(item: tuple[str, object]) -> tuple[str, bool, str]:
    backbone, _, rest = item[0].partition(", ")
    return backbone, not rest.startswith("mean of"), rest


def _ticks(axes: Axes, drawn: Sequence[Line]) -> None:
    """A logarithmic axis with a tick at each value that was tried, up to eight of them."""
    values = sorted({place.x for line in drawn for place in line.places})
    positive = [value for value in values if value > 0]
    if len(positive) == len(values):
        axes.set_xscale("log")
    elif positive:  # with a place for zero to the left
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    step = math.ceil(len(values) / 8)
    axes.xaxis.set_major_locator(FixedLocator(values[::step]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _seeds(panels: Iterable[Sequence[Line]]) -> str:
    """How many seeds there are, and what the bars are."""
    counts = sorted({place.n for drawn in panels for line in drawn for place in line.places})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {n} seed" if counts[-1] == 1 else f"bars ± 1 sample sd over n = {n} seeds"
