"""The columns of a paper table, computed from what one row has on its data sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from peftbench.report.papers.description import (
    ACCURACIES,
    MEAN_OF_GROUPS,
    OVER_GROUPS,
    TASK,
    TOTAL,
    WINS,
    PaperColumn,
    PaperTask,
)
from peftbench.report.papers.model import PaperCell
from peftbench.report.tables import cells as tables
from peftbench.report.tables.cells import INCOMPLETE, MISSING, OK, UNSUPPORTED
from peftbench.report.words import some_of
from peftbench.results.arithmetic import several
from peftbench.statistics import averages

PERCENT = 100.0
MILLION = 1e6
ROUNDING = 1e-12  # means of equal accuracies over other seeds may differ by as much


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of one task: those of a record, by part."""

    method: int
    head: int
    unfrozen: int
    backbone: int

    @property
    def without_head(self) -> int:
        """Parameters that the method adds or unfreezes."""
        return self.method + self.unfrozen


@dataclass(frozen=True)
class TaskCell:
    """What a row has on one data set. `conditions` are what the cells of a column must share."""

    cell: tables.Cell
    conditions: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    counts: ParameterCounts | None = None


@dataclass(frozen=True)
class ColumnCell:
    """A cell and the conditions of everything that is in it."""

    cell: PaperCell
    conditions: Mapping[str, frozenset[str]] = field(default_factory=dict)


def weights_of(
    column: PaperColumn, keys: Sequence[str], tasks: Mapping[str, PaperTask]
) -> dict[str, float]:
    """The weight of each data set in the average of a column over `keys`."""
    if column.kind == MEAN_OF_GROUPS or (column.kind != TASK and column.average == OVER_GROUPS):
        return averages.over_groups({key: tasks[key].group for key in keys})
    return averages.over_tasks(keys)


def make(
    column: PaperColumn,
    row: Mapping[str, TaskCell],
    against: Mapping[str, TaskCell],
    tasks: Mapping[str, PaperTask],
    *,
    shown: frozenset[str],
    incomplete: bool,
) -> ColumnCell:
    """The cell of a row in `column`.

    `against` is the row that wins are counted over, `shown` the data sets with columns of their
    own, whose remarks are not repeated. With `incomplete` averages and wins go over the data sets
    that are there, and say so.
    """
    cells = {key: row[key] for key in column.tasks}
    if all(t.cell.state == MISSING for t in cells.values()):
        return ColumnCell(PaperCell(MISSING))
    if column.kind in ACCURACIES:
        return _accuracy(column, cells, tasks, shown=shown, incomplete=incomplete)
    if column.kind == WINS:
        return _wins(cells, against, tasks, incomplete=incomplete)
    return _parameters(column, cells, tasks)


def _accuracy(
    column: PaperColumn,
    cells: Mapping[str, TaskCell],
    tasks: Mapping[str, PaperTask],
    *,
    shown: frozenset[str],
    incomplete: bool,
) -> ColumnCell:
    done = [key for key, t in cells.items() if t.cell.state == OK]
    remarks: list[str] = []
    used = list(cells)
    if incomplete and done and len(done) < len(cells):
        lost = [key for key in cells if key not in done]
        remarks.append(f"over {len(done)} of {len(cells)} data sets, without {some_of(lost)}")
        used = done
    if column.kind == TASK:
        result = cells[column.tasks[0]].cell
    else:
        mixed = _mixed({key: cells[key] for key in used})
        hidden = {key: cells[key] for key in cells if key not in shown}
        if mixed:
            return ColumnCell(PaperCell(INCOMPLETE, notes=(mixed,)))
        weights = weights_of(column, used, tasks)
        averaged = tables.average({key: t.cell for key, t in cells.items()}, weights, remarks)
        result = replace(averaged, notes=(*averaged.notes, *_notes_of(hidden)))
    differences = dict.fromkeys(d for key in used for d in cells[key].differences)
    cell = PaperCell(
        result.state,
        None if result.mean is None else PERCENT * result.mean,
        None if result.sd is None else PERCENT * result.sd,
        tuple(seed for _, seed in result.scores) if result.state == OK else (),
        result.notes,
        tuple(differences),
        partial=used != list(cells),
    )
    return ColumnCell(cell, _conditions([cells[key] for key in used if key in done]))


def _wins(
    cells: Mapping[str, TaskCell],
    against: Mapping[str, TaskCell],
    tasks: Mapping[str, PaperTask],
    *,
    incomplete: bool,
) -> ColumnCell:
    """Data sets on which the mean is better than that of the other row; equal is no win."""
    done = [key for key in cells if cells[key].cell.state == against[key].cell.state == OK]
    notes: tuple[str, ...] = ()
    if len(done) < len(cells):
        if all(t.cell.state == UNSUPPORTED for t in cells.values()):
            return ColumnCell(PaperCell(UNSUPPORTED))
        lost = [key for key in cells if key not in done]
        if not incomplete or not done:
            return ColumnCell(
                PaperCell(INCOMPLETE, notes=(f"not counted without {some_of(lost)} of both",))
            )
        notes = (f"of {len(done)} data sets, without {some_of(lost)}",)
    partial = bool(notes)
    won = 0
    for key in done:
        gain = (cells[key].cell.mean or 0.0) - (against[key].cell.mean or 0.0)
        won += (-gain if tasks[key].lower_is_better else gain) > ROUNDING
    both = [side[key] for key in done for side in (cells, against)]
    if mixed := several(text for t in both for text in t.cell.arithmetic):
        notes = (*notes, f"runs computed in {' and '.join(mixed)} are compared")
    differences = dict.fromkeys(d for t in both for d in t.differences)
    return ColumnCell(
        PaperCell(OK, float(won), notes=notes, differences=tuple(differences), partial=partial)
    )


def _parameters(
    column: PaperColumn, cells: Mapping[str, TaskCell], tasks: Mapping[str, PaperTask]
) -> ColumnCell:
    """Counts come from the runs, so a data set without one is a hole whatever was asked for."""
    counts = {key: t.counts for key, t in cells.items() if t.counts is not None}
    if len(counts) < len(cells):
        if all(t.cell.state == UNSUPPORTED for t in cells.values()):
            return ColumnCell(PaperCell(UNSUPPORTED))
        lost = [key for key in cells if key not in counts]
        return ColumnCell(PaperCell(INCOMPLETE, notes=(f"not counted without {some_of(lost)}",)))
    if column.kind == TOTAL:
        backbones = {c.backbone for c in counts.values()}
        if len(backbones) > 1:
            return ColumnCell(
                PaperCell(INCOMPLETE, notes=("not counted over different backbones",))
            )
        (backbone,) = backbones
        added = sum(c.without_head + c.head for c in counts.values())
        # one shared backbone, unless each task replaces the whole of it
        shared = 0 if all(c.unfrozen == backbone for c in counts.values()) else backbone
        return ColumnCell(PaperCell(OK, (shared + added) / backbone))
    weights = weights_of(column, list(counts), tasks)
    trained = {key: c.without_head + (c.head if column.head else 0) for key, c in counts.items()}
    mean = averages.weighted(trained, weights)
    return ColumnCell(PaperCell(OK, mean / MILLION))


def draws(cells: Mapping[int, tables.Cell], wanted: int) -> tables.Cell:
    """One cell over several draws of the training images: each draw counts like a seed."""
    broken = [cell for cell in cells.values() if cell.state != OK]
    if broken:
        return broken[0]
    notes = [note for cell in cells.values() for note in cell.notes]
    if len(cells) != wanted:
        notes.append(f"{len(cells)} of {wanted} draws of the training images")
    scores: dict[tables.Unit, float] = {
        ((None, None), number): cell.mean
        for number, cell in sorted(cells.items())
        if cell.mean is not None
    }
    values = list(scores.values())
    weights = next(iter(cells.values())).weights
    computed = tuple(text for cell in cells.values() for text in cell.arithmetic)
    if mixed := several(computed):
        notes.append(f"draws computed in {' and '.join(mixed)} are averaged")
    return tables.Cell(
        OK,
        scores,
        *tables.mean_and_sd(values),
        weights,
        tuple(dict.fromkeys(notes)),
        arithmetic=computed,
    )


def _mixed(cells: Mapping[str, TaskCell]) -> str:
    """Why these data sets have no common average; empty where they have one."""
    for name in ("protocol", "selection"):
        values = sorted({t.conditions[name] for t in cells.values() if name in t.conditions})
        if len(values) > 1:
            return f"no average over runs of {name} {' and '.join(values)}"
    return ""


def _conditions(used: Sequence[TaskCell]) -> dict[str, frozenset[str]]:
    values: dict[str, set[str]] = defaultdict(set)
    for cell in used:
        for name, value in cell.conditions.items():
            values[name].add(value)
    return {name: frozenset(several) for name, several in values.items()}


def _notes_of(cells: Mapping[str, TaskCell]) -> list[str]:
    """Remarks of data sets that have no column of their own."""
    where: dict[str, list[str]] = defaultdict(list)
    for key, t in cells.items():
        for note in t.cell.notes:
            where[note].append(key)
    return [f"{some_of(keys)}: {note}" for note, keys in where.items()]
