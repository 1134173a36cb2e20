"""What all figures share: colour and marker of each method, a style, and how files are made."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from peftbench.report.figures.fonts import for_embedding
from peftbench.report.figures.recording import RecordedFigure, recorded
from peftbench.results.atomic import write_atomic

# Okabe and Ito's colours without yellow, which is too light for thin marks on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _method_styles() -> dict[str, tuple[str, str]]:
    """Colour and marker by method, as `make docs` writes them from the cards of the methods."""
    with (files(__package__) / "looks.csv").open(encoding="utf-8") as file:
        return {row["method"]: (row["colour"], row["marker"]) for row in csv.DictReader(file)}


# Methods keep their style in every figure. Markers differ within a family, so grey print works.
METHOD_STYLES = _method_styles()
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
    "text.parse_math": False,  # names of methods and data sets may hold dollar signs
    "text.hinting": "none",  # of no use at this resolution, and a quarter of the time
}
GREY = "#8a8a8a"
EMPTY = "empty"
FORMATS = ("png", "pdf", "svg")
OUTLINED = ("png",)  # holds pixels; in the others a text is one
OF_FORMAT: dict[str, Any] = {
    "png": {"pil_kwargs": {"compress_level": 1}},  # of a third of the time, and hardly larger
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


def style_of(method: str) -> tuple[str, str]:
    """Colour and marker of a method; a method without one gets them from its name."""
    if method in METHOD_STYLES:
        return METHOD_STYLES[method]
    number = int(hashlib.sha256(method.encode()).hexdigest(), 16)
    return (
        COLOURS[number % len(COLOURS)],
        OTHER_MARKERS[number // len(COLOURS) % len(OTHER_MARKERS)],
    )


def darker(colour: str) -> tuple[float, ...]:
    """A shade that is readable as text on white."""
    return tuple(0.75 * channel for channel in to_rgb(colour))


def text_width(text: str, size: float) -> float:
    """Inches that a line of text takes in a size of `size` typographic points."""
    width, _, _ = TextToPath().get_text_width_height_descent(
        text, FontProperties(size=size), ismath=False
    )
    return float(width) / 72


def empty(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 1.5), label=EMPTY)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    return figure


def is_empty(figure: Figure) -> bool:
    """Whether `empty` made the figure."""
    return figure.get_label() == EMPTY


def entitle_panel(axes: Axes, title: str, **looks: Any) -> None:
    """The title of one of many panels, whose axes have no labels of their own.

    Titles and labels stand where they are told: to find a place for them, matplotlib measures all
    ticks of a panel each time it draws it.
    """
    axes.set_title(title, loc="left", y=1.0, **looks)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_label_coords(0.5, 0.0)


def entitle(axes: Axes, title: str, remarks: Sequence[str]) -> None:
    """A title at the left, and below it what a reader must know, one remark a line."""
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


def save(figure: Figure, stem: Path | str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Files `stem.png`, `stem.pdf`, ..., each replaced as a whole; no dates inside.

    The same figure gives the same bytes.
    """
    paths = []
    with mpl.rc_context(STYLE):
        settle(figure)
        drawn = recorded(figure)
        for kind in formats:
            path = Path(f"{stem}.{kind}")  # a dot in the stem is not a suffix
            write_atomic(path, partial(_write, drawn, kind))
            paths.append(path)
    return paths


def settle(figure: Figure) -> None:
    """Lay the figure out for good, if it is not yet: once, not once for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" would still draw the figure twice for each file


def _write(figure: Figure, kind: str, file: IO[bytes]) -> None:
    if isinstance(figure, RecordedFigure):
        figure.outlines = kind in OUTLINED
    with mpl.rc_context(for_embedding() if kind == "pdf" else None):
        figure.savefig(file, format=kind, dpi=200, **OF_FORMAT.get(kind, {}))
