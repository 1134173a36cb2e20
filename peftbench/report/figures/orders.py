"""The figures of a report, drawn and written."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from peftbench.report.comparison import reliability
from peftbench.report.figures.catalogue import KINDS, all_figures
from peftbench.report.figures.style import save
from peftbench.report.names import slug
from peftbench.report.scores import SCORE
from peftbench.report.view import Views
from peftbench.results.store import ResultsStore, uncollected

OF_IMAGES = "calibration"  # the kind that reads the predictions of single images


@dataclass(frozen=True)
class Order:
    """Figures to draw, and where their files go."""

    place: Path
    formats: Sequence[str]
    kinds: Sequence[str]
    metric: str | None  # of all runs; each by the one that it declares where this is None
    limited: bool


@dataclass(frozen=True)
class Drawn:
    """A figure on disk."""

    backbone: str
    kind: str
    paths: tuple[Path, ...]


@uncollected()  # which would walk over all runs again and again; a figure is many objects
def draw(order: Order, views: Views, rows: pd.DataFrame, store: ResultsStore) -> list[Drawn]:
    """All figures of an order, written, by backbone and in the order of `KINDS`.

    `views` are of the runs to show and `rows` their epochs; predictions come from `store`.
    """
    by_metric = views.by_metric(order.metric)
    # a figure whose name tells no metric is drawn once
    whole = by_metric if len(by_metric) == 1 else [(SCORE, views)]
    drawn: list[Drawn] = []
    for kind in order.kinds:
        for metric, part in by_metric if "{score}" in kind else whole:
            bins = None
            if kind == OF_IMAGES:
                bins = reliability(part.view(metric, limited=order.limited), store)
            figures = all_figures(
                part, rows, bins, metric=metric, limited=order.limited, kinds=[kind]
            )
            drawn += iter(partial(_next, figures, kind, order), None)
    places = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(drawn, key=lambda one: (one.backbone, places[one.kind]))


def _next(figures: Iterator[tuple[str, str, Figure]], kind: str, order: Order) -> Drawn | None:
    """The next figure, drawn, written and given up; `None` behind the last one."""
    one = next(figures, None)
    if one is None:
        return None
    backbone, name, figure = one
    drawn = Drawn(backbone, kind, tuple(save(figure, order.place / slug(name), order.formats)))
    del one, figure
    gc.collect(0)
    return drawn
