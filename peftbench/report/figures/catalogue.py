"""Every figure that a table of runs has the data for.

The matrix of win rates is not among them: `statistics.md` has its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd
from matplotlib.figure import Figure

from peftbench.registry import unknown_name
from peftbench.report.figures.calibration import calibration
from peftbench.report.figures.cost import accuracy_against
from peftbench.report.figures.curves import data_scale_curves, few_shot_curves, sensitivity
from peftbench.report.figures.learning import learning_curves
from peftbench.report.figures.ranks import critical_difference
from peftbench.report.figures.style import is_empty
from peftbench.report.figures.tasks import bars, heat_map
from peftbench.report.scores import IN_FIGURE_NAMES, metric_of
from peftbench.report.units import places
from peftbench.report.view import View, Views


@dataclass(frozen=True)
class FigureSource:
    """What a figure of one backbone, or of one of its suites, can be drawn from."""

    views: Views
    epochs: pd.DataFrame
    bins: pd.DataFrame  # of `peftbench.report.comparison.reliability`
    metric: str
    limited: bool

    @property
    def view(self) -> View:
        return self.views.view(self.metric, limited=self.limited)


Draw = Callable[[FigureSource], Figure]


def _cells(draw: Callable[..., Figure], *settings: str) -> Draw:
    """Of a figure that shows cells of the tables."""
    return lambda of: draw(of.view, *settings)


def _runs(draw: Callable[..., Figure], *settings: str) -> Draw:
    """Of a figure that shows runs of every size."""
    return lambda of: draw(of.views.table, *settings, metric=of.metric)


# by the name of the file; {score} is the metric
_DRAWN: dict[str, Draw] = {
    "{score}_vs_parameters": _cells(accuracy_against, "parameters"),
    "{score}_vs_memory": _cells(accuracy_against, "memory"),
    "{score}_vs_training_time": _cells(accuracy_against, "train_time"),
    "{score}_vs_latency": _cells(accuracy_against, "latency"),
    "tasks_{score}": _cells(bars),
    "heat_map_{score}": _cells(heat_map),
    "critical_difference_{score}": _cells(critical_difference),
    "calibration": lambda of: calibration(of.bins),
    "learning_curves": lambda of: learning_curves(of.views.view(limited=of.limited), of.epochs),
    "few_shot_{score}": _runs(few_shot_curves),
    "data_scale_{score}": _runs(data_scale_curves),
    "sensitivity_to_lr_{score}": _runs(sensitivity, "lr"),
    "sensitivity_to_weight_decay_{score}": _runs(sensitivity, "weight_decay"),
}
KINDS: Mapping[str, Draw] = MappingProxyType(_DRAWN)
# a figure for each suite; the others have panels for them
_BY_SUITE = {"calibration", "learning_curves"}


def register_figure(name: str, by_suite: bool = False) -> Callable[[Draw], Draw]:
    """Decorator that adds a figure, drawn after those that are known.

    Args:
        name: of its file, in which `{score}` is the metric.
        by_suite: whether there is one for each suite.

    Raises:
        ValueError: the name is taken.
    """

    def register(draw: Draw) -> Draw:
        if name in _DRAWN:
            raise ValueError(f"figure {name!r} is registered twice. Rename one of them.")
        _DRAWN[name] = draw
        if by_suite:
            _BY_SUITE.add(name)
        return draw

    return register


def all_figures(
    views: Views,
    epochs: pd.DataFrame,
    bins: pd.DataFrame | None = None,
    *,
    metric: str | None = None,
    limited: bool = False,
    kinds: Collection[str] | None = None,
) -> Iterator[tuple[str, str, Figure]]:
    """Backbone, name and figure of each of `kinds`, all unless given.

    They show the metric that the runs declare, or `metric`. `bins` are those of
    `peftbench.report.comparison.reliability`, for what shows single images. One that would be empty
    is left out. Names are unique, and are not yet names of files.
    """
    for name in kinds or ():
        if name not in KINDS:
            raise unknown_name("figure", name, KINDS)
    metric = metric or metric_of(views.table)
    score = IN_FIGURE_NAMES.get(metric, metric)
    for backbone in sorted(views.table["backbone"].dropna().unique()):
        part = views.part("backbone", backbone)
        suites = sorted(places(part.table).unique())
        for kind, draw in KINDS.items():
            if kinds is not None and kind not in kinds:
                continue
            name = f"{kind.format(score=score)}_{backbone}"
            pictures = _rows(bins, "backbone", backbone)
            chosen = {name: (part, pictures)}
            if kind in _BY_SUITE and len(suites) > 1:
                chosen = {
                    f"{name}_{s}": (part.part("place", s), _rows(pictures, "suite", s))
                    for s in suites
                }
            for stem, (rows, of_suite) in chosen.items():
                # popped: a figure that is written has nobody left who holds it
                drawn = [draw(FigureSource(rows, epochs, of_suite, metric, limited))]
                if not is_empty(drawn[0]):
                    yield str(backbone), stem, drawn.pop()


def _rows(bins: pd.DataFrame | None, column: str, value: str) -> pd.DataFrame:
    if bins is None or bins.empty:
        return pd.DataFrame()
    return bins[bins[column].fillna("") == value].reset_index(drop=True)
