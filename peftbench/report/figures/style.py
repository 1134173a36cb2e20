"""What all figures share: colour and marker of each method, a style, and how files are made."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

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
    """Files `stem.png`, `stem.pdf`, ..., each replaced as a whole; no dates inside."""
    paths = []
    for kind in formats:
        path = Path(f"{stem}.{kind}")  # a dot in the stem is not a suffix
        write_atomic(path, partial(_copy, encoded(figure, kind)))
        paths.append(path)
    return paths


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind; the same figure gives the same bytes."""
    dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        if figure.get_layout_engine() is not None:  # settled once, not once for each file
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, dpi=200, metadata=dates)
    return buffer.getvalue()


def _copy(data: bytes, file: IO[bytes]) -> None:
    file.write(data)
