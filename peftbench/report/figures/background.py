"""Figures in a process beside this one: drawing and writing them takes most of a report.

The other process starts from nothing and reads the records itself, so that neither the threads of
this one nor how its main module was started matter to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from peftbench.report.comparison import reliability
from peftbench.report.figures.catalogue import KINDS, all_figures
from peftbench.report.figures.style import save
from peftbench.report.names import slug
from peftbench.report.view import Views
from peftbench.results.frame import committed, epochs, frame, select
from peftbench.results.store import ResultsStore

OF_IMAGES = "calibration"  # the kind that reads the predictions of single images


@dataclass(frozen=True)
class Order:
    """Figures to draw, of which runs, and where their files go."""

    root: str  # of the results
    where: Sequence[str]
    dirty: bool
    place: str
    formats: Sequence[str]
    kinds: Sequence[str]
    metric: str
    limited: bool


@dataclass(frozen=True)
class Drawn:
    """A figure on disk."""

    backbone: str
    kind: str
    paths: tuple[Path, ...]


def draw(order: Order, views: Views, rows: pd.DataFrame) -> list[Drawn]:
    """All figures of an order, written; `views` are of its runs and `rows` their epochs."""
    bins = None
    if OF_IMAGES in order.kinds:
        bins = reliability(views.view(limited=order.limited), ResultsStore(order.root))
    drawn = []
    for kind in order.kinds:
        figures = all_figures(
            views, rows, bins, metric=order.metric, limited=order.limited, kinds=[kind]
        )
        for backbone, name, figure in figures:
            paths = save(figure, Path(order.place) / slug(name), order.formats)
            drawn.append(Drawn(backbone, kind, tuple(paths)))
    return drawn


class BackgroundDrawing:
    """An order that is being drawn: most of it in another process, which begins at once.

    `finish` draws the rest and gives all of it, by backbone and in the order of `KINDS`. Where the
    other process fails, its figures are drawn here, so that an error shows.
    """

    def __init__(self, order: Order, views: Views, rows: pd.DataFrame) -> None:
        self.views, self.rows = views, rows
        self.own = replace(order, kinds=order.kinds[::3])  # other parts of a report wait here
        self.others = replace(order, kinds=[k for k in order.kinds if k not in self.own.kinds])
        self.process: subprocess.Popen[str] | None = None
        if self.others.kinds:
            with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
                json.dump(asdict(self.others), file)
                file.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                    stdin=file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )

    def finish(self) -> list[Drawn]:
        """Every figure of the order, written."""
        drawn = draw(self.own, self.views, self.rows)
        if self.process is not None:
            answer, _ = self.process.communicate()
            if self.process.returncode == 0:
                drawn += [
                    Drawn(backbone, kind, tuple(map(Path, paths)))
                    for backbone, kind, paths in json.loads(answer)
                ]
            else:
                drawn += draw(self.others, self.views, self.rows)
        places = {kind: i for i, kind in enumerate(KINDS)}
        return sorted(drawn, key=lambda one: (one.backbone, places[one.kind]))

    def close(self) -> None:
        """End the other process, if it has not ended."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


def serve() -> None:
    """Draw the order that standard input holds, and say on standard output what was drawn."""
    order = Order(**json.load(sys.stdin))
    scan = ResultsStore(order.root).scan()
    table = select(frame(scan.records), order.where)
    if not order.dirty:
        table, _ = committed(table)
    drawn = draw(order, Views(table), epochs(scan.records))
    json.dump([(one.backbone, one.kind, list(map(str, one.paths))) for one in drawn], sys.stdout)
