"""Figures of the results; each function takes the table of runs and returns a `Figure`."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from peftbench.report.labels import Box, place
from peftbench.report.tables import OK, SCORES, overall, summary
from peftbench.results.store import write_atomic

# Okabe and Ito's colours without yellow, which is too light for thin marks on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Methods keep their look in every figure. Markers differ within a family, so grey print works.
LOOKS = {
    "linear": ("#000000", "s"),
    "mlp": ("#000000", "P"),
    "partial": ("#000000", "^"),
    "full": ("#000000", "*"),
    "sidetune": ("#CC79A7", "v"),
    "bias": ("#CC79A7", "X"),
    "norm": ("#CC79A7", "P"),
    "ssf": ("#CC79A7", "D"),
    "adapter": ("#009E73", "o"),
    "adapter_plus": ("#009E73", "P"),
    "adapter_vpt": ("#009E73", "X"),
    "adaptformer": ("#009E73", "^"),
    "convpass": ("#009E73", "s"),
    "vpt_shallow": ("#E69F00", "<"),
    "vpt_deep": ("#E69F00", ">"),
    "vpt_pad": ("#E69F00", "s"),
    "lora": ("#0072B2", "o"),
    "repadapter": ("#0072B2", "D"),
    "fact_tt": ("#D55E00", "v"),
    "fact_tk": ("#D55E00", "^"),
}
OTHER_MARKERS = ("h", "p", "8", "d", "H")

STYLE: Any = {  # matplotlib's own annotation lists every key
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "peftbench",  # the same figure is the same file
    "pdf.fonttype": 42,
}
GREY = "#8a8a8a"
PAD = 1.5  # typographic points on both sides of a name


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method; a method without an entry gets them from its name."""
    if method in LOOKS:
        return LOOKS[method]
    number = int(hashlib.sha256(method.encode()).hexdigest(), 16)
    return (
        COLOURS[number % len(COLOURS)],
        OTHER_MARKERS[number // len(COLOURS) % len(OTHER_MARKERS)],
    )


def drawable(table: pd.DataFrame, *, metric: str = "top1", limited: bool = False) -> bool:
    """Whether a figure of these runs would hold a point."""
    return bool(_points(overall(summary(table, metric=metric, limited=limited)))[0])


def accuracy_against_parameters(
    table: pd.DataFrame, *, metric: str = "top1", limited: bool = False
) -> Figure:
    """Mean over the data sets against tuned parameters, one panel for each backbone and suite.

    Reads the table of runs (`peftbench.results.frame`) through `summary`. Only rows that are
    complete appear; the others are named below the panel. Bars are sample standard deviations over
    seeds of the mean over the data sets. The head is not counted. The grey line joins the methods
    that no other beats with as few parameters.
    """
    cells = summary(table, metric=metric, limited=limited)
    whole = overall(cells).assign(suite=lambda c: c["suite"].fillna(""))
    panels = list(whole.groupby(["backbone", "suite"], sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5.0 * max(1, len(panels))), layout="constrained")
        axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
        if not panels:
            axes[0].set_axis_off()
            axes[0].text(0.5, 0.5, "no finished final run", ha="center", color=GREY)
        drawn: list[tuple[Axes, list[_Point]]] = []
        for panel, ((backbone, suite), rows) in zip(axes, panels, strict=False):
            title = f"{backbone} · {suite}" if suite else str(backbone)
            drawn.append((panel, _panel(panel, rows, title, SCORES[metric])))
        figure.draw_without_rendering()  # settles the layout that the labels are placed in
        figure.set_layout_engine("none")
        for panel, points in drawn:
            _label(panel, points)
    return figure


def save(
    figure: Figure, stem: Path | str, formats: Sequence[str] = ("png", "pdf", "svg")
) -> list[Path]:
    """Files `stem.png`, `stem.pdf`, ..., each replaced as a whole; no dates inside."""
    paths = []
    for kind in formats:
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format=kind, dpi=200, metadata=dates)
        path = Path(f"{stem}.{kind}")  # a dot in the stem is not a suffix
        write_atomic(path, partial(_copy, buffer.getvalue()))
        paths.append(path)
    return paths


def _copy(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


@dataclass(frozen=True)
class _Point:
    label: str
    method: str
    params: int
    mean: float  # in percent, as is the next
    sd: float | None
    n: int


def _panel(axes: Axes, rows: pd.DataFrame, title: str, score: str) -> list[_Point]:
    """Everything but the labels of the points, which need a settled layout."""
    points, missing = _points(rows)
    over = str(rows["column"].iloc[0])
    axes.set_xlabel("tuned parameters, head excluded")
    axes.set_ylabel(
        f"{score} in %" + (f", {over}" if over.startswith("mean of") else f" on {over}")
    )
    _scale(axes, [point.params for point in points])
    frontier = _frontier(points)
    axes.plot(
        [point.params for point in frontier],
        [point.mean for point in frontier],
        color="#bdbdbd",
        linewidth=1.4,
        drawstyle="steps-post",
        zorder=1,
    )
    for point in points:
        colour, marker = look(point.method)
        axes.errorbar(
            point.params,
            point.mean,
            yerr=point.sd,
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
    remarks = _remarks(points)
    if missing:
        remarks += textwrap.wrap(f"not shown, incomplete: {', '.join(missing)}", 100)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=6 + 11 * len(remarks))
    axes.annotate(
        "\n".join(remarks),
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=8,
        color=GREY,
    )
    return points


def _points(rows: pd.DataFrame) -> tuple[list[_Point], list[str]]:
    """Rows that can be drawn, and the labels of those that cannot."""
    points: list[_Point] = []
    missing: list[str] = []
    for row in rows.to_dict("records"):
        if row["state"] != OK or pd.isna(row["params_tuned"]):
            missing.append(str(row["label"]))
            continue
        points.append(
            _Point(
                label=str(row["label"]),
                method=str(row["method"]),
                params=int(row["params_tuned"]),
                mean=100 * float(row["mean"]),
                sd=None if pd.isna(row["sd"]) else 100 * float(row["sd"]),
                n=int(row["n"]),
            )
        )
    return points, missing


def _remarks(points: Sequence[_Point]) -> list[str]:
    """How many seeds there are and what the marks mean."""
    if not points:
        return ["no complete row"]
    low, high = min(point.n for point in points), max(point.n for point in points)
    seeds = f"n = {high} {'seed' if high == 1 else 'seeds'}{'' if low == high else ' unless given'}"
    bars = ", bars ± 1 sample sd" if any(point.sd is not None for point in points) else ""
    line = "; grey line: most accurate for its parameters" if len(_frontier(points)) > 1 else ""
    return [f"{seeds}{bars}{line}"]


def _frontier(points: Sequence[_Point]) -> list[_Point]:
    """Points more accurate than every point with as few or fewer parameters."""
    best: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.params, -p.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best


def _scale(axes: Axes, counts: Sequence[int]) -> None:
    """Logarithmic in the counts, with a place for zero to the left of them."""
    positive = [count for count in counts if count > 0]
    if not positive:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0])
        return
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    ticks = [10.0**exponent for exponent in range(first, last + 1)]
    if len(positive) < len(counts):
        axes.set_xscale("symlog", linthresh=ticks[0], linscale=0.6)
        axes.set_xlim(-0.25 * ticks[0], 2.5 * max(positive))
        axes.set_xticks([0.0, *ticks])
    else:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 2.5, 2.5 * max(positive))
        axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """100, 1k, 10M."""
    for unit, text in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{text}"
    return f"{value:g}"


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Name each point beside it, away from the other names, marks, bars and the grey line.

    A name that had to move away is joined to its point by a thin line.
    """
    most = max((point.n for point in points), default=0)
    texts = [
        axes.annotate(
            point.label if point.n == most else f"{point.label} (n={point.n})",
            (point.params, point.mean),
            (0, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            color=_darker(look(point.method)[0]),
            zorder=4,
        )
        for point in points
    ]
    unit = axes.figure.dpi / 72  # pixels of a typographic point
    window = axes.get_window_extent()
    extents = [text.get_window_extent() for text in texts]
    centres = [_position(axes, point.params, point.mean) for point in points]
    labels = place(
        [(extent.width / unit + 2 * PAD, extent.height / unit) for extent in extents],
        centres,
        [*(_mark_box(axes, point) for point in points), *_step_boxes(axes, _frontier(points))],
        Box(window.x0 / unit, window.y0 / unit, window.x1 / unit, window.y1 / unit),
    )
    for text, label, centre in zip(texts, labels, centres, strict=True):
        text.set_position((label.box.x0 + PAD - centre[0], label.box.y0 - centre[1]))
        if label.line:
            ends = [
                axes.transData.inverted().transform((x * unit, y * unit)) for x, y in label.line
            ]
            axes.plot(*zip(*ends, strict=True), color=GREY, linewidth=0.5, zorder=2)


def _mark_box(axes: Axes, point: _Point) -> Box:
    """What the mark of a point and its bar cover."""
    sd, reach = point.sd or 0.0, 4.5
    x, y = _position(axes, point.params, point.mean)
    _, low = _position(axes, point.params, point.mean - sd)
    _, high = _position(axes, point.params, point.mean + sd)
    return Box(x - reach, min(low, y - reach), x + reach, max(high, y + reach))


def _step_boxes(axes: Axes, frontier: Sequence[_Point]) -> list[Box]:
    """What the steps between the points of the frontier cover."""
    boxes = []
    for left, right in itertools.pairwise(frontier):
        x0, y0 = _position(axes, left.params, left.mean)
        x1, y1 = _position(axes, right.params, right.mean)
        boxes += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, y0, x1 + 1, y1)]
    return boxes


def _position(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Place of a point of the data in the figure, in typographic points."""
    across, up = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
    return float(across), float(up)


def _darker(colour: str) -> tuple[float, ...]:
    """A shade that is readable as text on white."""
    return tuple(0.75 * channel for channel in to_rgb(colour))
