"""A figure drawn once for all of its files.

What a figure is made of takes matplotlib longer to work out than to write, and it does so again for
each file. Here the calls that reach a renderer are recorded and played to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Affine2D, Bbox, IdentityTransform, TransformedPath

DPI = 72  # of a recording: a pixel is a typographic point, as in files of vectors
Call = Callable[[RendererBase, "_Scale"], None]


class RecordedFigure(Figure):
    """What another figure looked like when it was drawn, to be saved in any format."""

    def __init__(self, figure: Figure, calls: Sequence[Call]) -> None:
        super().__init__(figsize=tuple(figure.get_size_inches()))
        self.calls = calls
        self.outlines = False  # whether texts become shapes, which is faster

    def draw(self, renderer: RendererBase) -> None:
        """Play the calls to a renderer of any resolution."""
        scale = _Scale(renderer, self.dpi / DPI, outlines=self.outlines)
        for call in self.calls:
            call(renderer, scale)


def recorded(figure: Figure) -> Figure:
    """The figure, drawn; itself where it holds an image or what else has pixels.

    Pixels need the resolution of each file.
    """
    before = figure.dpi
    figure.dpi = DPI
    try:
        recording = _Recording(figure)
        figure.draw(recording)
    except NotImplementedError:
        return figure
    finally:
        figure.dpi = before
    return RecordedFigure(figure, recording.calls)


@dataclass(frozen=True)
class _Text:
    """A call of `draw_text`, in typographic points from the lower left."""

    context: GraphicsContextBase
    x: float
    y: float
    height: float  # of the figure
    text: str
    font: FontProperties
    angle: float
    rest: tuple[Any, Any]  # whether it is a formula, and the artist

    def up(self, flipped: bool) -> float:
        """The place as a renderer wants it that counts from the lower or, flipped, upper edge."""
        return self.height - self.y if flipped else self.y


@functools.lru_cache(maxsize=1 << 13)
def _outline(text: str, prop: FontProperties) -> Path:
    """A text that starts at zero, in a size of `TextToPath.FONT_SCALE`."""
    vertices, codes = TextToPath().get_text_path(prop, text)
    return Path(vertices, codes if len(vertices) else None)


class _Scale:
    """Takes calls from typographic points to the pixels of a renderer."""

    def __init__(self, renderer: RendererBase, factor: float, *, outlines: bool) -> None:
        self.renderer, self.factor, self.outlines = renderer, factor, outlines
        self._matrix = Affine2D().scale(factor).frozen()

    def draw_text(self, text: _Text) -> None:
        """A text, or with `outlines` a filled shape in its place."""
        own, up = self.context(text.context), text.up(self.renderer.flipy())
        if not self.outlines or text.rest[0]:
            at = self.factor * text.x, self.factor * up
            self.renderer.draw_text(own, *at, text.text, text.font, text.angle, *text.rest)
            return
        own.set_linewidth(0)
        size = text.font.get_size_in_points() / TextToPath.FONT_SCALE
        shape = self.transform(Affine2D().scale(size).rotate_deg(text.angle))
        place = Path([[self.factor * text.x, self.factor * text.y]])
        outline = _outline(text.text, text.font)
        self.renderer.draw_markers(
            own, outline, shape, place, IdentityTransform(), text.context.get_rgb()
        )

    def transform(self, transform: Any) -> Any:
        """A transform into typographic points, into pixels."""
        return transform if self.factor == 1 else (transform + self._matrix).frozen()

    def context(self, context: GraphicsContextBase) -> GraphicsContextBase:
        """A context of the renderer with clips in pixels; all else is in typographic points."""
        own = self.renderer.new_gc()
        own.copy_properties(context)
        if self.factor != 1:
            clip: Any = context.get_clip_rectangle()
            path, transform = _clip_path(context)
            if clip is not None:
                own.set_clip_rectangle(Bbox(self.factor * clip.get_points()))
            if path is not None:
                own.set_clip_path(TransformedPath(path, self.transform(transform)))
        return own


def _clip_path(context: GraphicsContextBase) -> tuple[Any, Any]:
    """Path and transform, which matplotlib's annotations take for something else."""
    return context.get_clip_path()


class _Recording(RendererBase):
    """Keeps the calls of a figure that draws itself."""

    def __init__(self, figure: Figure) -> None:
        super().__init__()
        self.calls: list[Call] = []
        width, height = figure.get_size_inches()
        self._size = float(DPI * width), float(DPI * height)
        # with what the keys are of, so that it stays; equal clips are one, as renderers ask that
        self._clips: dict[int, tuple[Any, Bbox]] = {}
        self._paths: dict[tuple[int, bytes], tuple[Path, TransformedPath]] = {}

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self._size

    def points_to_pixels(self, points: Any) -> Any:
        return points

    def open_group(self, s: str, gid: str | None = None) -> None:
        self.calls.append(lambda renderer, _: renderer.open_group(s, gid))

    def close_group(self, s: str) -> None:
        self.calls.append(lambda renderer, _: renderer.close_group(s))

    def start_rasterizing(self) -> None:
        raise NotImplementedError

    start_filter = start_rasterizing

    def draw_path(self, gc: Any, path: Any, transform: Any, rgbFace: Any = None) -> None:
        context, fixed = self._kept(gc), transform.frozen()

        def play(renderer: RendererBase, scale: _Scale) -> None:
            renderer.draw_path(scale.context(context), path, scale.transform(fixed), rgbFace)

        self.calls.append(play)

    def draw_markers(
        self,
        gc: Any,
        marker_path: Any,
        marker_trans: Any,
        path: Any,
        trans: Any,
        rgbFace: Any = None,
    ) -> None:
        context, of_marker, fixed = self._kept(gc), marker_trans.frozen(), trans.frozen()

        def play(renderer: RendererBase, scale: _Scale) -> None:
            marker = scale.transform(of_marker)
            places = scale.transform(fixed)
            renderer.draw_markers(
                scale.context(context), marker_path, marker, path, places, rgbFace
            )

        self.calls.append(play)

    def draw_path_collection(
        self,
        gc: Any,
        master_transform: Any,
        paths: Any,
        all_transforms: Any,
        offsets: Any,
        offset_trans: Any,
        *looks: Any,
        **more: Any,
    ) -> None:
        if not len(paths):  # a collection asks whether this method knows an argument
            return
        context, master, shift = self._kept(gc), master_transform.frozen(), offset_trans.frozen()

        def play(renderer: RendererBase, scale: _Scale) -> None:
            renderer.draw_path_collection(
                scale.context(context),
                scale.transform(master),
                paths,
                all_transforms,
                offsets,
                scale.transform(shift),
                *looks,
                **more,
            )

        self.calls.append(play)

    def draw_text(  # noqa: PLR0913, matplotlib's
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        kept = _Text(self._kept(gc), x, y, self._size[1], s, prop, angle, (ismath, mtext))
        self.calls.append(lambda _, scale: scale.draw_text(kept))

    def flipy(self) -> bool:
        return False

    def _kept(self, gc: GraphicsContextBase) -> GraphicsContextBase:
        """A copy, as artists go on to change theirs, and clips follow the figure."""
        context = GraphicsContextBase()
        context.copy_properties(gc)
        clip = gc.get_clip_rectangle()
        if clip is not None:
            if id(clip) not in self._clips:
                self._clips[id(clip)] = clip, Bbox(np.array(clip.get_points()))
            context.set_clip_rectangle(self._clips[id(clip)][1])
        path, transform = _clip_path(gc)
        if path is not None:
            key = id(path), transform.get_matrix().tobytes()
            if key not in self._paths:
                self._paths[key] = path, TransformedPath(path, transform.frozen())
            context.set_clip_path(self._paths[key][1])
        return context
