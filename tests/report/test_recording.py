"""Promises of figures that are drawn once for all of their files."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image

from peftbench.report.figures import save
from peftbench.report.figures.fonts import NAME, for_embedding
from peftbench.report.figures.recording import RecordedFigure, recorded
from peftbench.report.figures.style import STYLE


class Counting(Text):
    """A text that knows how often it was drawn."""

    drawn = 0

    def draw(self, renderer):
        self.drawn += 1
        super().draw(renderer)


@pytest.fixture
def figure():
    """Lines, marks, collections, texts upright and turned, clips by a rectangle and by a circle."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        (line,) = axes.plot([0, 1, 4], [0, 3, 1], "o--", markeredgecolor="white")
        line.set_clip_path(Circle((0.5, 0.5), 0.4, transform=axes.transAxes))
        axes.scatter([1, 2, 3], [1, 2, 1], c=["red", "blue", "green"], s=[9, 40, 90])
        axes.set_xlim(0.5, 3.5)  # so that the line is clipped
        axes.set_title("difference $5 · größer", loc="left")
        axes.text(2, 1, "turned", rotation=30, alpha=0.5)
        axes.set_ylabel("accuracy in %")
    return figure


def written(figure, kind, **more):
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=200, **more)
    return file.getvalue()


def test_an_embedded_font_does_not_say_when_it_was_made() -> None:
    for_embedding()
    source = findfont(FontProperties(family=["sans-serif"]))
    with TTFont(findfont(NAME)) as own, TTFont(source) as usual:
        assert own["head"].modified == usual["head"].modified


def test_three_formats_draw_and_lay_out_a_figure_once(figure, tmp_path):
    text = figure.axes[0].add_artist(Counting(2, 2, "once"))
    layouts = []
    engine = figure.get_layout_engine()
    execute, engine.execute = engine.execute, lambda fig: (layouts.append(fig), execute(fig))
    assert len(save(figure, tmp_path / "a", ("png", "pdf", "svg"))) == 3
    assert text.drawn == 1 and layouts == [figure]


def test_a_recorded_figure_is_the_file_that_matplotlib_writes(figure):
    with mpl.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        copy = recorded(figure)
    assert isinstance(copy, RecordedFigure)
    undated = {"metadata": {"CreationDate": None}}
    assert written(copy, "pdf", **undated) == written(figure, "pdf", **undated)
    there, here = (
        np.asarray(Image.open(io.BytesIO(written(f, "png"))).convert("L"), dtype=float)
        for f in (figure, copy)
    )
    # texts may move by a part of a pixel, between the widths of points and of pixels
    assert there.shape == here.shape == (600, 800) and np.abs(there - here).mean() < 0.5
    copy.outlines = True
    shapes = np.asarray(Image.open(io.BytesIO(written(copy, "png"))).convert("L"), dtype=float)
    assert np.abs(there - shapes).mean() < 2
    assert (255 - shapes).sum() == pytest.approx((255 - there).sum(), rel=0.02)  # as much ink


def test_a_figure_with_pixels_is_drawn_for_each_resolution(figure, tmp_path):
    figure.axes[0].imshow(np.arange(4.0).reshape(2, 2))
    assert recorded(figure) is figure and figure.dpi == 100
    assert all(path.stat().st_size for path in save(figure, tmp_path / "image"))


def test_a_pdf_embeds_the_usual_font_once_without_joined_letters(figure, tmp_path):
    (path,) = save(figure, tmp_path / "fonts", ["pdf"])
    content = path.read_bytes()
    # matplotlib would add a second font for the `ff` of "difference"
    assert content.count(b"/FontFile2") == 1 and b"+DejaVuSans" in content
    assert b"peftbench-fonts" not in content


def test_another_font_that_matplotlib_is_told_to_take_is_taken():
    with mpl.rc_context({"font.sans-serif": ["DejaVu Serif"]}):
        assert for_embedding() == {}
    assert for_embedding()["font.sans-serif"][1:] == mpl.rcParams["font.sans-serif"]
