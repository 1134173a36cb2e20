"""What papers print for the cells of a table: to stand beside measured values, or alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from peftbench.report.papers.description import (
    ACCURACIES,
    PARAMETERS,
    TASK,
    WINS,
    PaperColumn,
    PaperTable,
    Row,
    Series,
)
from peftbench.report.papers.formulas import weights_of
from peftbench.report.papers.model import (
    BASELINE,
    PUBLISHED,
    PaperCell,
    Printed,
    Table,
    TableBlock,
    TableRow,
)
from peftbench.report.tables.cells import MISSING
from peftbench.statistics.averages import weighted

COMPUTED = "not printed: computed from the printed cells"
CONVENTIONS = {
    "head_included": "counts the head",
    "head_excluded": "leaves out the head",
    "unknown": "does not say whether the head counts",
}


class Collection:
    """Published numbers, looked up for the cells of one table."""

    def __init__(self, paper: PaperTable, numbers: pd.DataFrame) -> None:
        self.paper = paper
        papers = {row.published.paper for row in paper.rows if row.published is not None}
        part = numbers[numbers["paper"].isin(papers)]
        names = ("paper", "method", "backbone", "pretrain", "suite", "dataset")
        self._rows = {
            tuple(str(row[name]) for name in names): row for row in part.to_dict("records")
        }

    def of(self, b: int, r: int, c: int) -> Printed | None:
        """What is printed for a cell, by places of block, row and column; `None` if nothing."""
        block, column = self.paper.blocks[b], self.paper.columns[c]
        row = block.rows[r]
        if column.key in row.printed:
            value = row.printed[column.key]
            return Printed(value, f"{value:g}", self.paper.source)
        if row.published is None:
            return None
        printed = None
        if column.kind == PARAMETERS:
            printed = self._parameters(row, column)
        elif column.kind in ACCURACIES:
            printed = self._average(row, column)
        elif column.kind == WINS and not column.is_baseline(row):
            against = next(other for other in block.rows if column.is_baseline(other))
            printed = self._wins(row, against, column)
        apart = _apart(row.published, block.series)
        return printed and replace(printed, notes=(*apart, *printed.notes))

    def remarks(self, table: Table) -> list[str]:
        """Sources of the published numbers that the table shows."""
        sources = dict.fromkeys(
            cell.printed.source for cell in table.cells if cell.printed is not None
        )
        return [f"Published numbers: {source}." for source in sources]

    def _find(self, row: Row, suite: str, dataset: str) -> Mapping[Any, Any] | None:
        series = row.published
        if series is None:
            return None
        key = (series.paper, series.method, series.backbone, series.pretrain, suite, dataset)
        return self._rows.get(key)

    def _task(self, row: Row, key: str) -> Printed | None:
        task = self.paper.tasks[key]
        entry = self._find(row, row.fill(task.published_suite), task.published_dataset)
        return None if entry is None else _printed(entry)

    def _average(self, row: Row, column: PaperColumn) -> Printed | None:
        """As printed; else the mean of the printed cells, if all of them are known."""
        if column.kind == TASK:
            return self._task(row, column.tasks[0])
        if column.published is not None:
            suite, name = column.published
            entry = self._find(row, row.fill(suite), name)
            if entry is not None:
                return _printed(entry)
        cells = {key: self._task(row, key) for key in column.tasks}
        known = {key: cell for key, cell in cells.items() if cell is not None}
        if len(known) < len(cells):
            return None
        weights = weights_of(column, column.tasks, self.paper.tasks)
        value = weighted({key: cell.value for key, cell in known.items()}, weights)
        source = next(iter(known.values())).source
        return Printed(value, f"{value:.{column.decimals}f}", source, (COMPUTED,))

    def _wins(self, row: Row, against: Row, column: PaperColumn) -> Printed | None:
        won, source = 0, ""
        for key in column.tasks:
            mine, other = self._task(row, key), self._task(against, key)
            if mine is None or other is None:
                return None
            gain = mine.value - other.value
            won += gain < 0 if self.paper.tasks[key].lower_is_better else gain > 0
            source = mine.source
        return Printed(float(won), str(won), source, (COMPUTED,))

    def _parameters(self, row: Row, column: PaperColumn) -> Printed | None:
        """What the paper states for all the data sets of the column alike."""
        entries = [
            self._find(row, row.fill(task.published_suite), task.published_dataset)
            for task in (self.paper.tasks[key] for key in column.tasks)
        ]
        known = [row for row in entries if row is not None and not pd.isna(row["params_m"])]
        values = {(row["params_m"], row["params_convention"]) for row in known}
        if len(values) != 1:
            return None
        value, convention = values.pop()
        wanted = "head_included" if column.head else "head_excluded"
        notes = () if convention == wanted else (f"the paper {CONVENTIONS[convention]}",)
        return Printed(float(value), f"{value:g}", str(known[0]["source"]), notes)


def _printed(entry: Mapping[Any, Any]) -> Printed:
    return Printed(float(entry["top1"]), str(entry["printed"]), str(entry["source"]))


def _apart(series: Series, usual: Series) -> tuple[str, ...]:
    """What sets a row apart from its table: another paper, or other weights."""
    if series.pretrain != usual.pretrain:
        return (f"printed by {series.paper} for weights {series.pretrain}",)
    return () if series.paper == usual.paper else (f"printed by {series.paper}",)


def published_only(paper: PaperTable, numbers: pd.DataFrame) -> Table:
    """The table with nothing but published numbers. Nothing of it was measured."""
    collection = Collection(paper, numbers)
    blocks = []
    for b, block in enumerate(paper.blocks):
        rows = []
        for r, row in enumerate(block.rows):
            numbers_of_row = [collection.of(b, r, c) for c in range(len(paper.columns))]
            cells = [
                PaperCell(BASELINE) if column.is_baseline(row) else _cell(number)
                for column, number in zip(paper.columns, numbers_of_row, strict=True)
            ]
            rows.append(TableRow(row.title, row.method, tuple(cells), row.notes))
        blocks.append(TableBlock(block.title, tuple(rows)))
    table = Table(paper, paper.columns, tuple(blocks), published_only=True)
    return Table(
        paper, paper.columns, table.blocks, tuple(collection.remarks(table)), published_only=True
    )


def _cell(printed: Printed | None) -> PaperCell:
    if printed is None:
        return PaperCell(MISSING)
    return PaperCell(PUBLISHED, printed.value, notes=printed.notes, printed=printed)
