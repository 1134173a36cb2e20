"""The runs of a report as its tables show them, computed once for all that a report writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from peftbench.report.comparable import Remarks, comparable
from peftbench.report.evidence import CellKey, evidence, interval_of
from peftbench.report.scores import SCORE, declared, declared_by, metric_of
from peftbench.report.tables.cells import TASK, cells_of, counted, with_labels
from peftbench.report.tables.runs import Run, Variants
from peftbench.report.units import places
from peftbench.results.store import ResultsStore
from peftbench.statistics.best import Best
from peftbench.statistics.intervals import Interval
from peftbench.statistics.paired import Evidence


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
    store: ResultsStore | None = None  # where the predictions of single images are

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        *,
        metric: str = SCORE,
        limited: bool = False,
        best_on_test: bool = False,
        left_out: Sequence[str] = (),
        store: ResultsStore | None = None,
    ) -> View:
        """The view of a table; `tables.summary` documents the arguments.

        With the `store` of the runs, intervals of one's own data sets count single images.

        Raises:
            UnknownName: there is no such metric.
        """
        runs, variants, not_counted = counted(
            table, metric=metric, limited=limited, best_on_test=best_on_test
        )
        cells = cells_of(runs, variants, metric=metric, left_out=[*left_out, *not_counted])
        view = cls(table, tuple(runs), variants, cells, metric, limited, best_on_test, store)
        return view._with_intervals()

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
    def evidence(self) -> dict[CellKey, Evidence]:
        """What is known of each cell of one's own data sets."""
        return evidence(self.scored[self.scored["own"]], self.metric, self.store)

    @cached_property
    def intervals(self) -> dict[CellKey, Interval]:
        """The interval on new images of each cell of one's own data sets."""
        return {key: interval_of(known) for key, known in self.evidence.items()}

    def _with_intervals(self) -> View:
        """The same with the intervals of one's own data sets in the cells."""
        if not self.table["content"].notna().any() or not self.intervals:
            return self
        cells = self.cells.copy()
        keys = cells[["backbone", "suite", "label", "column"]].fillna("")
        rows = [
            self.intervals.get(key) if kind == TASK else None
            for key, kind in zip(
                keys.itertuples(index=False, name=None), cells["kind"], strict=True
            )
        ]
        for name in ("low", "high"):
            ends = [None if one is None else getattr(one, name) for one in rows]
            cells[name] = pd.array(ends, dtype="Float64")
        over = [None if one is None or one.low is None else one.over for one in rows]
        cells["over"] = pd.array(over, dtype="string")
        cells.attrs = self.cells.attrs
        view = replace(self, cells=cells)
        for name in ("labelled", "_comparable", "evidence", "intervals"):  # as they are already
            view.__dict__[name] = getattr(self, name)
        return view

    @cached_property
    def told(self) -> dict[tuple[str, str], Best]:
        """By backbone and suite, the best over seeds as far as a comparison has found it."""
        return {}

    @cached_property
    def _comparable(self) -> tuple[pd.DataFrame, Remarks]:
        return comparable(self.labelled, self.cells, self.metric)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of a table and of parts of it, each computed when it is first asked for."""

    table: pd.DataFrame
    left_out: tuple[str, ...] = ()  # what the cells say is not in the table
    store: ResultsStore | None = None  # of the runs
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
                store=self.store,
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
            (
                name,
                Views(
                    part.reset_index(drop=True), self.left_out if name == first else (), self.store
                ),
            )
            for name, part in parts
        ]

    def part(self, column: str, value: str) -> Views:
        """The views of the runs with `value` in `column`; a missing value is an empty text.

        The column "place" is the suite, or one's own data set that is in none.
        """
        values = places(self.table) if column == "place" else self.table[column].fillna("")
        same = values == value
        if same.all():  # the usual case of one backbone
            return self
        if (column, value) not in self._parts:
            part = self.table[same].reset_index(drop=True)
            self._parts[column, value] = Views(part, self.left_out, self.store)
        return self._parts[column, value]


def view_of(runs: View | pd.DataFrame) -> View:
    """`runs`, or the view of a table of runs by the metric that they declare."""
    return runs if isinstance(runs, View) else View.of(runs, metric=metric_of(runs))
