"""The runs of a report as its tables show them, computed once for all that a report writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from peftbench.report.comparable import Remarks, comparable
from peftbench.report.scores import SCORE, declared, declared_by, metric_of
from peftbench.report.tables.cells import cells_of, counted, with_labels
from peftbench.report.tables.runs import Run, Variants


@dataclass(frozen=True, eq=False)
class View:
    """What a table of runs shows under one choice of metric and of runs that count."""

    table: pd.DataFrame  # one row a run (`peftbench.results.frame`), also runs that do not count
    runs: tuple[Run, ...]  # that count, of any status
    variants: Variants
    cells: pd.DataFrame  # of `tables.summary`
    metric: str
    limited: bool  # also runs on a part of the images
    best_on_test: bool  # also runs that selected the epoch on test

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        *,
        metric: str = SCORE,
        limited: bool = False,
        best_on_test: bool = False,
        left_out: Sequence[str] = (),
    ) -> View:
        """The view of a table; `tables.summary` documents the arguments.

        Raises:
            UnknownName: there is no such metric.
        """
        runs, variants, not_counted = counted(
            table, metric=metric, limited=limited, best_on_test=best_on_test
        )
        cells = cells_of(runs, variants, metric=metric, left_out=[*left_out, *not_counted])
        return cls(table, tuple(runs), variants, cells, metric, limited, best_on_test)

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The rows of the runs that count, as `tables.labelled` documents them."""
        return with_labels(self.table, self.runs, self.variants)

    @property
    def scored(self) -> pd.DataFrame:
        """Finished runs that may be compared, as `comparable` documents them."""
        return self._comparable[0]

    @property
    def remarks(self) -> Remarks:
        """What a reader of a comparison must know, by backbone and suite as tables name them."""
        return self._comparable[1]

    @cached_property
    def _comparable(self) -> tuple[pd.DataFrame, Remarks]:
        return comparable(self.labelled, self.cells, self.metric)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of a table and of parts of it, each computed when it is first asked for."""

    table: pd.DataFrame
    left_out: tuple[str, ...] = ()  # what the cells say is not in the table
    _known: dict[tuple[str, bool, bool], View] = field(default_factory=dict, repr=False)
    _parts: dict[tuple[str, str], Views] = field(default_factory=dict, repr=False)

    def view(
        self, metric: str = SCORE, *, limited: bool = False, best_on_test: bool = False
    ) -> View:
        """The view under a choice; `tables.summary` documents the arguments."""
        key = metric, limited, best_on_test
        if key not in self._known:
            self._known[key] = View.of(
                self.table,
                metric=metric,
                limited=limited,
                best_on_test=best_on_test,
                left_out=self.left_out,
            )
        return self._known[key]

    def by_metric(self, metric: str | None = None) -> list[tuple[str, Views]]:
        """The views of the runs that declare each metric, which tables show them by.

        All runs by `metric` where it is given; they are then in rows of their own where they
        declare different ones.
        """
        if metric is not None:
            return [(metric, self)]
        first, *others = declared(self.table)
        if not others:
            return [(first, self)]
        own = declared_by(self.table)
        parts = [
            (first, self.table[~own.isin(others)]),
            *((m, self.table[own == m]) for m in others),
        ]
        return [
            (name, Views(part.reset_index(drop=True), self.left_out if name == first else ()))
            for name, part in parts
        ]

    def part(self, column: str, value: str) -> Views:
        """The views of the runs with `value` in `column`; a missing value is an empty text."""
        same = self.table[column].fillna("") == value
        if same.all():  # the usual case of one backbone
            return self
        if (column, value) not in self._parts:
            part = self.table[same].reset_index(drop=True)
            self._parts[column, value] = Views(part, self.left_out)
        return self._parts[column, value]


def view_of(runs: View | pd.DataFrame) -> View:
    """`runs`, or the view of a table of runs by the metric that they declare."""
    return runs if isinstance(runs, View) else View.of(runs, metric=metric_of(runs))
