"""Method x data set tables: mean and spread over seeds, and a reason for every empty cell."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from peftbench.report.frames import typed_frame
from peftbench.report.scores import SCORE, check_metric
from peftbench.report.tables.given import chosen_in_cell
from peftbench.report.tables.runs import Draw, Run, Variants, eligible_runs, inputs_of, variants_of
from peftbench.report.words import commonest, short, some_of
from peftbench.results.arithmetic import several
from peftbench.results.columns import Column
from peftbench.results.record import Status
from peftbench.statistics import averages

Unit = tuple[Draw, int | None]  # the split that was drawn, and the seed

# What a cell is. Only an `ok` cell holds a number.
OK, MISSING, UNSUPPORTED, FAILED, MIXED = "ok", "missing", "unsupported", "failed", "mixed"
INTERRUPTED = "interrupted"  # a rerun goes on
INCOMPLETE = "incomplete"  # an average over cells that are not all `ok`


# Kinds of columns.
TASK, GROUP_MEAN = "task", "group mean"
MEAN_OF_TASKS, MEAN_OF_GROUPS = "mean of tasks", "mean of groups"

SUMMARY_COLUMNS = (
    Column("backbone", "string", "title, with its tag where one title stands for several"),
    Column("suite", "string", "suite of the data sets; of one's own data set its name"),
    Column("method", "string", "registered name"),
    Column("variant", "string", "settings in which the rows of one method differ"),
    Column("label", "string", "method and variant"),
    Column("params_tuned", "Int64", "parameters that train, head excluded"),
    Column("params_with_head", "Float64", "the same and the head, mean over the data sets"),
    Column("kind", "string", "task, group mean, mean of tasks or mean of groups"),
    Column("column", "string", "heading of the column"),
    Column("n", "Int64", "runs; for an average, the seeds that all its data sets share"),
    Column("mean", "Float64", "over runs, a fraction; for an average, mean of the cells"),
    Column("sd", "Float64", "sample standard deviation (n - 1) over runs: splits and seeds"),
    Column("inputs", "string", "sides of the square inputs of the part, in pixels"),
    Column("budget", "string", "search that chose hyper-parameters: trials x epochs of each"),
    Column("state", "string", "ok, missing, unsupported, failed, interrupted, mixed or incomplete"),
    Column("note", "string", "what a reader must know, one remark a line"),
    Column("own", "boolean", "whether it is one's own data set"),
    Column("splits", "Int64", "splits of the data set that were tested"),
    Column("low", "Float64", "of one's own data: lower end of the 95 % interval on new images"),
    Column("high", "Float64", "its upper end"),
    Column("over", "string", "what that interval holds: images, images and seeds or splits"),
    Column("val", "Float64", "mean of the scores on val of the same settings, a fraction"),
    Column("metric", "string", "that mean and sd are of"),
)


def summary(
    table: pd.DataFrame,
    *,
    metric: str = SCORE,
    limited: bool = False,
    best_on_test: bool = False,
    left_out: Sequence[str] = (),
) -> pd.DataFrame:
    """One row a cell with the columns of `SUMMARY_COLUMNS`, in the order in which tables show it.

    `table` has one row a run (`peftbench.results.frame`). Final runs count; runs on a limited
    number of images only with `limited=True`, and then limited and full runs are different rows.
    The same holds of runs that selected the epoch on test, and `best_on_test`.
    Settings of one method that were run on the same data set are different rows, labelled by what
    differs. Runs on other weights, files or versions are never averaged, and cells computed in
    other arithmetic than the rest of their column, or in several, say so. `attrs["left_out"]` says
    what is not in the cells, and why; it begins with what the caller has `left_out`.
    """
    runs, variants, not_counted = counted(
        table, metric=metric, limited=limited, best_on_test=best_on_test
    )
    return cells_of(runs, variants, metric=metric, left_out=[*left_out, *not_counted])


def labelled(
    table: pd.DataFrame,
    *,
    metric: str = SCORE,
    limited: bool = False,
    best_on_test: bool = False,
) -> pd.DataFrame:
    """The runs that `summary` counts, of any status, with their `heading` and `label` there."""
    runs, variants, _ = counted(table, metric=metric, limited=limited, best_on_test=best_on_test)
    return with_labels(table, runs, variants)


def counted(
    table: pd.DataFrame, *, metric: str, limited: bool, best_on_test: bool
) -> tuple[list[Run], Variants, list[str]]:
    """The runs that `summary` counts, what tells their rows, and a line for each kind left out.

    Raises:
        UnknownName: there is no such metric.
    """
    check_metric(metric)
    runs, not_counted = eligible_runs(
        table, metric=metric, limited=limited, best_on_test=best_on_test
    )
    return runs, variants_of(runs), not_counted


def cells_of(
    runs: Sequence[Run], variants: Variants, *, metric: str, left_out: Sequence[str]
) -> pd.DataFrame:
    """The frame that `summary` documents, of runs that `counted` gave."""
    sections: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        sections[run.heading, run.suite].append(run)
    cells = [
        {
            "backbone": heading,
            "suite": suite,
            "own": members[0].own,
            **cell,
            "inputs": inputs_of(members),
            "metric": metric,
        }
        for (heading, suite), members in sorted(sections.items())
        for cell in _section(members, variants)
    ]
    result = typed_frame(SUMMARY_COLUMNS, cells)
    result.attrs = {"metric": metric, "left_out": list(left_out)}
    return result


def with_labels(table: pd.DataFrame, runs: Sequence[Run], variants: Variants) -> pd.DataFrame:
    """The rows of `table` that `runs` come from, with `heading`, `label` and `own` of each.

    The suite of one's own data set is its name.
    """
    chosen = table.iloc[[run.row for run in runs]].reset_index(drop=True)
    return chosen.assign(
        heading=pd.array([run.heading for run in runs], dtype="string"),
        suite=pd.array([run.suite or pd.NA for run in runs], dtype="string"),
        own=np.array([run.own for run in runs], dtype=bool),
        label=pd.array([_label(run.method, variants[id(run)][0]) for run in runs], dtype="string"),
    )


def _label(method: str, variant: str) -> str:
    return f"{method} {variant}".strip()


def overall(cells: pd.DataFrame) -> pd.DataFrame:
    """One cell for each row of a table: its mean of tasks, or its only task."""
    averaged = set(
        cells.loc[cells["kind"] == MEAN_OF_TASKS, ["backbone", "suite"]]
        .fillna("")
        .itertuples(index=False, name=None)
    )
    keys = cells[["backbone", "suite"]].fillna("").itertuples(index=False, name=None)
    wanted = [MEAN_OF_TASKS if key in averaged else TASK for key in keys]
    return cells[(cells["kind"] == pd.Series(wanted, index=cells.index)).astype(bool)]


@dataclass(frozen=True)
class Cell:
    """A place of a table. `mean` and `sd` are over seeds; only an `ok` cell has numbers."""

    state: str
    scores: Mapping[Unit, float] = field(default_factory=dict)  # by split and seed
    mean: float | None = None
    sd: float | None = None
    weights: str = ""
    notes: tuple[str, ...] = ()
    budget: str = ""
    arithmetic: tuple[str, ...] = ()  # of each run
    vals: Mapping[Unit, float] = field(default_factory=dict)  # on val, where every run has it

    @property
    def n(self) -> int | None:
        """Runs that are averaged."""
        return len(self.scores) if self.state == OK else None

    @property
    def splits(self) -> int | None:
        """Splits of the data set that were tested."""
        return len({draw for draw, _ in self.scores}) if self.state == OK else None

    @property
    def val(self) -> float | None:
        """Mean of the scores on val."""
        return statistics.fmean(self.vals.values()) if self.state == OK and self.vals else None


def _section(runs: Sequence[Run], variants: Variants) -> list[dict[str, Any]]:
    """Cells of one backbone and suite, row after row."""
    group_of = {run.dataset: run.group for run in runs}
    datasets = sorted(group_of, key=lambda name: (group_of[name], name))
    usual = Majority.of(runs)
    members: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        members[run.method, variants[id(run)][0]].append(run)
    rows: list[tuple[Any, list[dict[str, Any]]]] = []
    for (method, variant), mine in members.items():
        cells = {d: measure([run for run in mine if run.dataset == d], usual) for d in datasets}
        without_head, row_notes = _without_head(mine)
        row_notes += chosen_by_dataset(mine, variants[id(mine[0])][1])
        columns = [
            *_averages(cells, group_of, row_notes),
            *((TASK, name, cell) for name, cell in cells.items()),
        ]
        with_head = _mean_with_head(mine)
        label = _label(method, variant)
        shared = {
            "method": method,
            "variant": variant,
            "label": label,
            "params_tuned": without_head,
            "params_with_head": with_head,
        }
        shown = [{**shared, "kind": kind, "column": name, **_shown(c)} for kind, name, c in columns]
        rows.append(((without_head is None, without_head or 0, label), shown))
    return [cell for _, row in sorted(rows, key=lambda row: row[0]) for cell in row]


def _shown(cell: Cell) -> dict[str, Any]:
    note = "\n".join(cell.notes)
    numbers = {"n": cell.n, "splits": cell.splits, "mean": cell.mean, "sd": cell.sd}
    numbers["val"] = cell.val
    return {**numbers, "budget": cell.budget, "state": cell.state, "note": note}


@dataclass(frozen=True)
class Majority:
    """Weights and budget of most runs of a section; of a column its files, version, arithmetic."""

    weights: str
    budget: str
    data: Mapping[str, tuple[str, str]]  # by data set
    arithmetic: Mapping[str, str]  # by data set

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Majority:
        done = [run for run in runs if run.status == Status.OK]
        data: dict[str, list[tuple[str, str]]] = defaultdict(list)
        computed: dict[str, list[str]] = defaultdict(list)
        for run in done:
            data[run.dataset].append((run.suite_version, run.manifest))
            if run.arithmetic:
                computed[run.dataset].append(run.arithmetic)
        return cls(
            commonest(run.weights for run in done),
            commonest(run.budget for run in done),
            {name: commonest(values) for name, values in data.items()},
            {name: commonest(values) for name, values in computed.items()},
        )


def measure(runs: Sequence[Run], usual: Majority) -> Cell:
    """One row on one data set; `mixed`, with the reason, where its runs cannot be averaged."""
    done = [run for run in runs if run.status == Status.OK]
    if not done:
        return Cell(_without_number({run.status for run in runs}))
    differing: dict[str, set[Any]] = {
        "backbone weights": {short(run.weights) for run in done},
        "suite versions": {run.suite_version or "unknown" for run in done},
        "manifests": _manifests(done),
        "search budgets": {run.budget or "no search" for run in done},
        "settings": {frozenset(run.given.items()) for run in done},
    }
    notes = [
        f"not averaged: {len(values)} different {name}"
        + ("" if name == "settings" else f" ({', '.join(sorted(map(str, values)))})")
        for name, values in differing.items()
        if len(values) > 1
    ]
    units = Counter(run.unit for run in done)
    repeated = sorted({str(seed) for (_, seed), times in units.items() if times > 1})
    if repeated and not notes:
        notes.append(f"not averaged: seed {', '.join(repeated)} was run more than once")
    if notes:
        return Cell(MIXED, notes=tuple(notes))
    first = done[0]
    if first.weights != usual.weights:
        notes.append(
            f"backbone weights {short(first.weights)}, "
            f"while most runs of this table have {short(usual.weights)}"
        )
    data = usual.data[first.dataset]
    if not first.content and (first.suite_version, first.manifest) != data:
        notes.append(
            f"{first.dataset} version {first.suite_version or 'unknown'} with manifest "
            f"{short(first.manifest)}, while most runs have version {data[0] or 'unknown'} "
            f"with {short(data[1])}"
        )
    if first.budget != usual.budget:
        notes.append(
            f"hyper-parameters from {first.budget or 'no search'}, "
            f"while most runs of this table have {usual.budget or 'no search'}"
        )
    computed = tuple(run.arithmetic for run in done)
    common = usual.arithmetic.get(first.dataset, "")
    if mixed := several(computed):
        notes.append(f"seeds computed in {' and '.join(mixed)} are averaged")
    elif others := [text for text in computed if several((text, common))]:
        notes.append(f"computed in {others[0]}, while most runs of this column are in {common}")
    notes += [*chosen_in_cell(done), *_lost(runs), *_missing_folds(done)]
    scores = {run.unit: run.score for run in done if run.score is not None}
    mean, sd = mean_and_sd(scores.values())
    vals = {run.unit: run.val for run in done if run.val is not None}
    whole = vals if len(vals) == len(scores) else {}
    cell = Cell(OK, scores, mean, sd, first.weights, tuple(notes), first.budget, computed)
    return replace(cell, vals=whole)


def _manifests(runs: Sequence[Run]) -> set[str]:
    """Hashes of files and splits that cannot be averaged: several of one split that was drawn."""
    by_draw: dict[Draw, set[str]] = defaultdict(set)
    for run in runs:
        by_draw[run.draw if run.content else (None, None)].add(short(run.manifest))
    return max(by_draw.values(), key=len)


def _missing_folds(runs: Sequence[Run]) -> list[str]:
    """A remark where no split has all its folds, so that not every image was tested."""
    folds = {run.settings.get("folds", "null") for run in runs}  # null: the record says so
    if len(folds) != 1 or not (told := folds.pop()).isdecimal():
        return []
    number = int(told)
    by_draw: dict[int | None, set[int | None]] = defaultdict(set)
    for run in runs:
        by_draw[run.draw[0]].add(run.draw[1])
    tested = max(len(folds) for folds in by_draw.values())
    return [f"{tested} of {number} folds are there"] if tested < number else []


def _without_number(statuses: Set[str]) -> str:
    """The state of a cell none of whose runs finished."""
    if not statuses:
        return MISSING
    if statuses == {Status.UNSUPPORTED}:
        return UNSUPPORTED
    return INTERRUPTED if statuses <= {Status.INTERRUPTED, Status.UNSUPPORTED} else FAILED


def _lost(runs: Sequence[Run]) -> list[str]:
    """How many seeds of a row did not finish, and why."""
    what = "runs" if len({run.draw for run in runs}) > 1 else "seeds"
    stopped = sum(run.status == Status.INTERRUPTED for run in runs)
    failed = [run.status for run in runs if run.status not in (Status.OK, Status.INTERRUPTED)]
    notes = [f"{stopped} of {len(runs)} {what} interrupted"] if stopped else []
    if failed:
        causes = ", ".join(sorted(set(failed)))
        notes.append(f"{len(failed)} of {len(runs)} {what} failed: {causes}")
    return notes


def _averages(
    cells: Mapping[str, Cell], group_of: Mapping[str, str], row_notes: Sequence[str]
) -> list[tuple[str, str, Cell]]:
    """Kind, heading and cell of each average; none over a single data set."""
    if len(cells) < 2:
        return []
    placed = {name: group_of[name] for name in cells}
    kinds = (MEAN_OF_TASKS, MEAN_OF_GROUPS)  # the second where the data sets have several groups
    named = averages.weightings(placed)
    named_averages = [(kind, *one) for kind, one in zip(kinds, named.items(), strict=False)]
    if len(named) == len(kinds):
        for group, size in sorted(Counter(placed.values()).items()):
            inside = averages.over_tasks(name for name in cells if placed[name] == group)
            named_averages.append((GROUP_MEAN, f"{group} ({size})", inside))
    return [
        (kind, name, average(cells, weights, row_notes if kind == MEAN_OF_TASKS else ()))
        for kind, name, weights in named_averages
    ]


def average(
    cells: Mapping[str, Cell], weights: Mapping[str, float], row_notes: Sequence[str]
) -> Cell:
    """Weighted mean of the cells; its spread is that of the weighted means of single seeds."""
    if all(cells[name].state == UNSUPPORTED for name in weights):
        return Cell(UNSUPPORTED)
    holes = [name for name in weights if cells[name].state != OK]
    if holes:
        return Cell(INCOMPLETE, notes=(f"no average without {some_of(holes)}",))
    used = [cells[name] for name in weights]
    if len({cell.weights for cell in used}) > 1:
        return Cell(INCOMPLETE, notes=("no average over different backbone weights",))
    notes = list(row_notes)
    common = [s for s in used[0].scores if all(s in cell.scores for cell in used)]
    if any(len(cell.scores) != len(common) for cell in used):
        notes.append(
            f"seeds differ between data sets: the mean is over all, spread and n over "
            f"the {len(common)} that all have"
        )
    by_seed = {
        s: averages.weighted({d: cells[d].scores[s] for d in weights}, weights) for s in common
    }
    mean = averages.weighted({d: cells[d].mean or 0.0 for d in weights}, weights)
    budgets = {cell.budget for cell in used}
    if len(budgets) > 1:
        notes.append(f"search budgets differ: {some_of(sorted(b or 'no search' for b in budgets))}")
    budget = used[0].budget if len(budgets) == 1 else ""
    computed = tuple(text for cell in used for text in cell.arithmetic)
    if mixed := several(computed):
        notes.append(f"runs computed in {' and '.join(mixed)} are averaged")
    sd = mean_and_sd(by_seed.values())[1]
    vals: dict[Unit, float] = {}
    if all(cells[d].vals for d in weights):  # each has the mean over its own runs
        means = {d: cells[d].val or 0.0 for d in weights}
        vals[(None, None), None] = averages.weighted(means, weights)
    cell = Cell(OK, by_seed, mean, sd, "", tuple(notes), budget, computed)
    return replace(cell, vals=vals)


def mean_and_sd(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Mean, and sample standard deviation (divisor n - 1) where there are two values."""
    known = list(values)
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _without_head(runs: Sequence[Run]) -> tuple[int | None, list[str]]:
    counts = sorted({run.without_head for run in runs if run.without_head is not None})
    if len(counts) < 2:
        return (counts[0] if counts else None), []
    return None, [f"tuned parameters differ between data sets: {counts[0]} to {counts[-1]}"]


def _mean_with_head(runs: Sequence[Run]) -> float | None:
    """Mean over data sets, since heads differ in their classes."""
    counts = {run.dataset: run.with_head for run in runs if run.with_head is not None}
    return statistics.fmean(counts.values()) if counts else None


def chosen_by_dataset(runs: Sequence[Run], named: frozenset[str]) -> list[str]:
    """A remark on the settings that differ between the data sets of one row."""
    done = list({id(run.settings): run for run in runs if run.status == Status.OK}.values())
    differing = []
    for name in dict.fromkeys(name for run in done for name in run.settings):
        values = {run.told(name) for run in done}
        if len(values) > 1 and name not in named:
            differing.append(f"{name} ({some_of(sorted(values))})")
    return [f"chosen for each data set: {', '.join(differing)}"] if differing else []
