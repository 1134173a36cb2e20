"""Paper tables filled from the table of runs, and from nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from peftbench.report.papers import protocols
from peftbench.report.papers.description import ACCURACIES, TASK, PaperTable, PaperTask, Row
from peftbench.report.papers.formulas import ColumnCell, ParameterCounts, TaskCell, draws, make
from peftbench.report.papers.model import BASELINE, PaperCell, Table, TableBlock, TableRow
from peftbench.report.papers.options import Options
from peftbench.report.papers.printed import Collection
from peftbench.report.scores import SCORES
from peftbench.report.tables import cells as tables
from peftbench.report.tables.cells import MISSING, MIXED, OK
from peftbench.report.tables.runs import Run, eligible_runs
from peftbench.report.words import counted, first_of
from peftbench.results.frame import committed, select
from peftbench.results.record import RunRecord, Status, current

# what the cells of one column must share; a cell that does not is marked
CONDITIONS = ("protocol", *protocols.FIXED)
BY_TAG = "backbone_tag"
COUNTS = ("params_method", "params_head", "params_unfrozen", "params_backbone")


def fill(
    paper: PaperTable,
    table: pd.DataFrame,
    options: Options | None = None,
    *,
    numbers: pd.DataFrame | None = None,
) -> Table:
    """The table with what was measured; a cell without runs stays missing.

    `table` has one row a run (`peftbench.results.frame`, best with `with_details`). Runs of the
    paper's protocol fill a cell; where there are none, those of another one do, and are marked.
    With `numbers` (`peftbench.results.published.read`) each cell also has what papers print.
    """
    pool = _Pool.of(paper, table, options or Options())
    collection = None if numbers is None else Collection(paper, numbers)
    blocks = tuple(_block(pool, b, collection) for b in range(len(paper.blocks)))
    filled = Table(paper, paper.columns, blocks, tuple(pool.remarks()))
    if collection is None:
        return filled
    return replace(filled, remarks=(*filled.remarks, *collection.remarks(filled)))


def with_details(
    table: pd.DataFrame, records: Iterable[RunRecord], paper: PaperTable
) -> pd.DataFrame:
    """`table` with what else of the records a paper table needs, where it has no such column.

    `shot_seed` is which draw of the training images was used, and further metrics of the record
    have their own names.
    """
    by_id = {record.run_id: record for record in current(records)}
    metrics = {task.metric for task in paper.tasks.values()} - set(SCORES)
    columns: dict[str, list[Any]] = {"shot_seed": [], **{m: [] for m in metrics}}
    for run_id in table["run_id"]:
        record = by_id[run_id]
        dataset = record.spec.get("dataset") or {}
        columns["shot_seed"].append(dataset.get("shot_seed"))
        for metric in metrics:
            columns[metric].append(record.metrics.get(metric, record.metrics.get(f"test/{metric}")))
    return table.assign(
        **{name: values for name, values in columns.items() if name not in table.columns}
    )


@dataclass(frozen=True)
class _Pool:
    """Runs that may be in a table, by metric, method and data set."""

    paper: PaperTable
    protocol: protocols.DeclaredProtocol
    options: Options
    runs: Mapping[tuple[str, str, str], Sequence[Run]]
    facts: Sequence[Mapping[str, Any]]  # of the table of runs, by `Run.row`
    left_out: tuple[str, ...]
    free: bool  # whether the conditions choose the weights, and not the table

    @classmethod
    def of(cls, paper: PaperTable, table: pd.DataFrame, options: Options) -> _Pool:
        protocol = protocols.declared(paper.protocol)
        free = len(paper.blocks) == 1 and any(
            text.partition("=")[0].strip() in ("backbone", BY_TAG) for text in options.where
        )
        chosen = select(table, options.where)
        methods = {row.method for row in paper.rows if row.method is not None}
        mask = chosen["method"].isin(methods)
        mask &= chosen["dataset"].isin({task.dataset for task in paper.tasks.values()})
        pool = chosen[mask.fillna(False).astype(bool)]
        weights = tuple(dict.fromkeys(name for row in paper.rows for name in row.weights))
        others = {} if free else _others(pool, weights)
        pool = pool[~pool[BY_TAG].isin(others)].reset_index(drop=True)
        by_task: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
        left_out = [_told(others, len(paper.blocks) == 1)] if others else []
        if not options.dirty:
            pool, uncommitted = committed(pool)
            left_out += uncommitted
        for metric in dict.fromkeys(task.metric for task in paper.tasks.values()):
            if metric not in pool.columns:
                left_out.append(f"{metric}, which no run has")
                continue
            runs, lines = eligible_runs(
                pool, metric=metric, limited=options.limited, best_on_test=options.best_on_test
            )
            left_out += [line for line in lines if line not in left_out]
            for run in runs:
                by_task[metric, run.method, run.dataset].append(run)
        known = ("protocol", "shot_seed", "backbone", BY_TAG, *COUNTS)
        columns = {
            name: [None if pd.isna(v) else v for v in pool[name]]
            for name in known
            if name in pool.columns
        }
        facts = [{k: v[i] for k, v in columns.items()} for i in range(len(pool))]
        return cls(paper, protocol, options, by_task, facts, tuple(left_out), free)

    def runs_of(self, row: Row, task: PaperTask) -> list[Run]:
        """Runs of a row on a data set, of one protocol where that can be."""
        if row.method is None:
            return []
        suite = row.fill(task.suite)
        runs = [
            run
            for run in self.runs.get((task.metric, row.method, task.dataset), ())
            if row.settings.items() <= run.settings.items()
            and (not suite or run.suite == suite)
            and (self.free or self._is_of(run, row))
        ]
        own = [run for run in runs if self._protocol(run) == self.paper.protocol]
        return own or runs

    def measure(
        self, row: Row, task: PaperTask, runs: Sequence[Run], usual: tables.Majority
    ) -> TaskCell:
        """The cell of a row on a data set."""
        if not runs:
            return TaskCell(tables.Cell(MISSING))
        names = sorted({self._protocol(run) for run in runs})
        if len(names) > 1:
            note = f"runs of protocols {' and '.join(names)}: choose with --where protocol=NAME"
            return TaskCell(tables.Cell(MIXED, notes=(note,)))
        cell = self._cell(task, runs, usual)
        done = [run for run in runs if run.status == Status.OK]
        if cell.state != OK or not done:
            return TaskCell(cell)
        conditions = [{name: self._condition(run, name) for name in CONDITIONS} for run in done]
        agreed = {
            name: " and ".join(sorted({condition[name] for condition in conditions}))
            for name in CONDITIONS
        }
        differences = dict.fromkeys(line for run in done for line in self._differences(row, run))
        return TaskCell(cell, agreed, tuple(differences), self._counts(done))

    def remarks(self) -> list[str]:
        """What the reader of the whole table must know."""
        where = " and ".join(self.options.where)
        lines = [f"Only runs with {where}."] if where else []
        return lines + [f"Left out: {line}" for line in self.left_out]

    def _cell(self, task: PaperTask, runs: Sequence[Run], usual: tables.Majority) -> tables.Cell:
        if task.draws == 1:
            return tables.measure(runs, usual)
        by_draw: dict[int, list[Run]] = defaultdict(list)
        for run in runs:
            by_draw[int(self.facts[run.row].get("shot_seed") or 0)].append(run)
        cells = {
            number: tables.measure(
                drawn, replace(tables.Majority.of(drawn), arithmetic=usual.arithmetic)
            )
            for number, drawn in by_draw.items()
        }
        return draws(cells, task.draws)

    def _protocol(self, run: Run) -> str:
        return str(self.facts[run.row]["protocol"] or "")

    def _is_of(self, run: Run, row: Row) -> bool:
        return _matches(row.weights, self.facts[run.row])

    def _condition(self, run: Run, name: str) -> str:
        return self._protocol(run) if name == "protocol" else run.settings.get(name, "")

    def _differences(self, row: Row, run: Run) -> Iterable[str]:
        yield from protocols.differences(
            self.protocol, self._protocol(run), run.settings, run.suite
        )
        fact = self.facts[run.row]
        if row.weights and not _matches(row.weights[:1], fact):
            yield f"checkpoint {fact['backbone_tag']}, not {row.weights[0]}"

    def _counts(self, runs: Sequence[Run]) -> ParameterCounts | None:
        """Parameters of one task, where all its runs agree on them."""
        distinct = {tuple(self.facts[run.row][name] for name in COUNTS) for run in runs}
        if len(distinct) != 1 or None in (values := distinct.pop()):
            return None
        return ParameterCounts(*map(int, values))


def _matches(names: Sequence[str], fact: Mapping[str, Any]) -> bool:
    """Whether one of the names, which may be patterns, is the title or tag of the weights."""
    return any(
        fnmatchcase(str(fact[key] or ""), name) for name in names for key in ("backbone", BY_TAG)
    )


def _others(pool: pd.DataFrame, weights: Sequence[str]) -> dict[str, int]:
    """Tags of the runs on weights that a table does not name, and how many runs have each."""
    pairs = Counter(zip(pool["backbone"].fillna(""), pool[BY_TAG].fillna(""), strict=True))
    return {
        tag: count
        for (title, tag), count in sorted(pairs.items())
        if not _matches(weights, {"backbone": title, BY_TAG: tag})
    }


def _told(others: Mapping[str, int], single: bool) -> str:
    """What is said of runs on weights that the table does not name."""
    count, tags = sum(others.values()), list(others)
    hint = f"; take them with --where {BY_TAG}=TAG" if single else ""
    return f"{counted(count, 'run')} on other weights ({first_of(tags, 3)}){hint}"


def _block(pool: _Pool, b: int, collection: Collection | None) -> TableBlock:
    """The rows of a block, with what is printed for them if there is a collection of it."""
    paper, block = pool.paper, pool.paper.blocks[b]
    runs_of = [
        {k: pool.runs_of(row, task) for k, task in paper.tasks.items()} for row in block.rows
    ]
    usual = tables.Majority.of([run for row in runs_of for group in row.values() for run in group])
    rows = [
        {key: pool.measure(row, paper.tasks[key], runs, usual) for key, runs in by_key.items()}
        for row, by_key in zip(block.rows, runs_of, strict=True)
    ]
    cells = _marked(_made(paper, block.rows, rows, pool.options.incomplete), paper.protocol)
    if collection is not None:
        cells = [
            [replace(cell, printed=collection.of(b, r, c)) for c, cell in enumerate(row)]
            for r, row in enumerate(cells)
        ]
    return TableBlock(
        block.title,
        tuple(
            TableRow(row.title, row.method, tuple(shown), (*row.notes, *_chosen(runs)))
            for row, runs, shown in zip(block.rows, runs_of, cells, strict=True)
        ),
    )


def _made(
    paper: PaperTable,
    titles: Sequence[Row],
    rows: Sequence[Mapping[str, TaskCell]],
    incomplete: bool,
) -> list[list[ColumnCell]]:
    """Cells of a block, row by row."""
    shown = frozenset(c.tasks[0] for c in paper.columns if c.kind == TASK)
    by_title = {title.title: row for title, row in zip(titles, rows, strict=True)}
    return [
        [
            ColumnCell(PaperCell(BASELINE))
            if column.is_baseline(title)
            else make(
                column,
                row,
                by_title.get(column.against, {}),
                paper.tasks,
                shown=shown,
                incomplete=incomplete,
            )
            for column in paper.columns
        ]
        for title, row in zip(titles, rows, strict=True)
    ]


def _marked(rows: Sequence[Sequence[ColumnCell]], protocol: str) -> list[list[PaperCell]]:
    """The cells, with a remark on each whose conditions are not those of its column.

    A column has the conditions of most of its cells of the paper's protocol, or else of most.
    """
    usual: list[dict[str, frozenset[str]]] = []
    for column in zip(*rows, strict=True):
        known = [m.conditions for m in column if m.conditions]
        own = [c for c in known if c.get("protocol") == {protocol}] or known
        usual.append(
            {
                name: Counter(c[name] for c in own if name in c).most_common(1)[0][0]
                for name in (own[0] if own else ())
            }
        )
    return [
        [
            replace(
                m.cell,
                notes=(
                    *m.cell.notes,
                    *(
                        f"{name} {_text(value)}, where this column has {_text(usual[c][name])}"
                        for name, value in m.conditions.items()
                        if value != usual[c][name]
                    ),
                ),
            )
            for c, m in enumerate(row)
        ]
        for row in rows
    ]


def _text(values: Iterable[str]) -> str:
    return " and ".join(value or "none" for value in sorted(values))


def _chosen(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """A remark on hyper-parameters that differ between the data sets of a row."""
    flat = [run for group in runs.values() for run in group]
    return tables.chosen_by_dataset(flat, frozenset(CONDITIONS))


def differences_in(table: Table) -> list[tuple[str, int]]:
    """Differences from the protocol of the paper, and the number of accuracies with each."""
    count: Counter[str] = Counter()
    for block in table.blocks:
        for row in block.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if column.kind in ACCURACIES and cell.value is not None:
                    count.update(cell.differences)
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))
