"""Method x data set tables: mean and spread over seeds, and a reason for every empty cell."""

from __future__ import annotations

import re
import statistics
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from peftbench.registry import unknown_name
from peftbench.results.arithmetic import arithmetic, several
from peftbench.results.frame import Column, csv_text, settings_of
from peftbench.results.record import Status

SCORES = {"top1": "top-1 accuracy", "mean_per_class": "mean per-class accuracy"}

# What a cell is. Only an `ok` cell holds a number.
OK, MISSING, UNSUPPORTED, FAILED, MIXED = "ok", "missing", "unsupported", "failed", "mixed"
INCOMPLETE = "incomplete"  # an average over cells that are not all `ok`
SHOWN = {MISSING: "–", UNSUPPORTED: "n/a", FAILED: "failed", MIXED: "mixed", INCOMPLETE: "–"}

# where Markdown takes a text for HTML, for a character by its name, or for a link
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|\]\(|\]:")
REPLACED = {"<": "&lt;", "&": "&amp;", "](": r"]\(", "]:": r"]\:"}

# Kinds of columns.
TASK, GROUP_MEAN = "task", "group mean"
MEAN_OF_TASKS, MEAN_OF_GROUPS = "mean of tasks", "mean of groups"

SUMMARY_COLUMNS = (
    Column("backbone", "string", "title, with its tag where one title stands for several"),
    Column("suite", "string", "suite of the data sets"),
    Column("method", "string", "registered name"),
    Column("variant", "string", "settings in which the rows of one method differ"),
    Column("label", "string", "method and variant"),
    Column("params_tuned", "Int64", "parameters that train, head excluded"),
    Column("params_with_head", "Float64", "the same and the head, mean over the data sets"),
    Column("kind", "string", "task, group mean, mean of tasks or mean of groups"),
    Column("column", "string", "heading of the column"),
    Column("n", "Int64", "seeds; for an average, those that all its data sets share"),
    Column("mean", "Float64", "over seeds, a fraction; for an average, mean of the cells"),
    Column("sd", "Float64", "sample standard deviation (n - 1) over seeds"),
    Column("budget", "string", "search that chose hyper-parameters: trials x epochs of each"),
    Column("state", "string", "ok, missing, unsupported, failed, mixed or incomplete"),
    Column("note", "string", "what a reader must know, one remark a line"),
)


def summary(
    table: pd.DataFrame,
    *,
    metric: str = "top1",
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
    if metric not in SCORES:
        raise unknown_name("metric", metric, SCORES)
    runs, told = _eligible(table, metric, limited, best_on_test)
    variants = _variants(runs)
    sections: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for run in runs:
        sections[run.heading, run.suite].append(run)
    cells: list[dict[str, Any]] = []
    for (heading, suite), members in sorted(sections.items()):
        for cell in _section(members, variants):
            cells.append({"backbone": heading, "suite": suite, **cell})
    result = pd.DataFrame(
        {
            column.name: pd.array(
                [pd.NA if cell[column.name] in (None, "") else cell[column.name] for cell in cells],
                dtype=_dtype(column),
            )
            for column in SUMMARY_COLUMNS
        }
    )
    result.attrs = {"metric": metric, "left_out": [*left_out, *told]}
    return result


def labelled(
    table: pd.DataFrame,
    *,
    metric: str = "top1",
    limited: bool = False,
    best_on_test: bool = False,
) -> pd.DataFrame:
    """The runs that `summary` counts, of any status, with their `heading` and `label` there."""
    runs, _ = _eligible(table, metric, limited, best_on_test)
    variants = _variants(runs)
    chosen = table.iloc[[run.row for run in runs]].reset_index(drop=True)
    return chosen.assign(
        heading=pd.array([run.heading for run in runs], dtype="string"),
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


def eligible(
    table: pd.DataFrame,
    *,
    metric: str = "top1",
    limited: bool = False,
    best_on_test: bool = False,
) -> tuple[list[Run], list[str]]:
    """The runs that `summary` counts, of any status, and a line for each kind left out of it."""
    return _eligible(table, metric, limited, best_on_test)


def to_text(cells: pd.DataFrame, *, width: int | None = 100) -> str:
    """Aligned plain text; a table wider than `width` continues in further blocks."""
    parts: list[str] = []
    for section in _layout(cells):
        blocks = [_aligned(block) for block in _blocks(_padded(section.grid), width)]
        notes = [f"[{mark}] {note}" for mark, note in section.notes]
        parts.append(
            "\n\n".join([section.heading, *blocks, *(["\n".join(notes)] if notes else [])])
        )
    return "\n\n".join([*parts, _closing(cells, bullet="- ")]) + "\n"


def to_markdown(cells: pd.DataFrame) -> str:
    """One pipe table for each backbone and suite, with its footnotes."""
    parts: list[str] = []
    for section in _layout(cells):
        head, *body = [[text.replace("|", r"\|") for text in row] for row in section.grid]
        rule = ["---", *["---:"] * (len(head) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
        notes = [f"- [{mark}] {note}" for mark, note in section.notes]
        parts.append(
            "\n\n".join(
                [
                    f"### {section.heading}",
                    "\n".join(lines),
                    *(["\n".join(notes)] if notes else []),
                ]
            )
        )
    return inert("\n\n".join([*parts, _closing(cells, bullet="- ")]) + "\n")


def inert(markdown: str) -> str:
    """Markdown in which names of others begin no HTML, no link and no picture."""
    return ACTIVE.sub(lambda found: REPLACED[found[0]], markdown)


def to_csv(cells: pd.DataFrame) -> str:
    """One line a cell with every digit; see `SUMMARY_COLUMNS`."""
    return csv_text(cells)


@dataclass(frozen=True)
class _Run:
    """What a table needs to know of one run."""

    row: int  # place in the table of runs
    heading: str
    suite: str
    group: str
    dataset: str
    method: str
    settings: Mapping[str, str]  # everything declared but method, backbone, data set and seed
    seed: int | None
    status: str
    error: str
    score: float | None
    tuned: int | None
    with_head: int | None
    weights: str
    suite_version: str
    manifest: str
    arithmetic: str  # as "float32 on a CPU"
    budget: str  # of the search that chose its hyper-parameters; empty where there was none


Run = _Run  # for tables that choose the runs of a cell in their own way


@dataclass(frozen=True)
class Cell:
    """A place of a table. `mean` and `sd` are over seeds; only an `ok` cell has numbers."""

    state: str
    scores: Mapping[int | None, float] = field(default_factory=dict)  # by seed
    mean: float | None = None
    sd: float | None = None
    weights: str = ""
    notes: tuple[str, ...] = ()
    budget: str = ""
    arithmetic: tuple[str, ...] = ()  # of each run

    @property
    def n(self) -> int | None:
        return len(self.scores) if self.state == OK else None


@dataclass(frozen=True)
class _Section:
    heading: str
    grid: list[list[str]]  # header first; label, two counts, then the cells
    notes: list[tuple[str, str]]  # mark and text


def _eligible(
    table: pd.DataFrame, metric: str, limited: bool, best_on_test: bool
) -> tuple[list[_Run], list[str]]:
    """Runs that belong into a table, and a line for each kind of run that does not show."""
    rows = [{"row": i, **row} for i, row in enumerate(_rows(table))]
    out: list[str] = []

    def drop(what: str, reason: Callable[[Mapping[str, Any]], bool]) -> None:
        nonlocal rows
        gone = [row for row in rows if reason(row)]
        rows = [row for row in rows if not reason(row)]
        if gone:
            out.append(what.format(_count(len(gone), "run")))

    drop("{} in the tuning phase, which reports val", lambda row: row["phase"] != "final")
    if not limited:
        drop("{} limited to a part of the images", lambda row: row["limit"] is not None)
    if not best_on_test:
        drop("{} selected on test", lambda row: "test" in _text(row["selection"]))
    drop(
        f"{{}} finished without test/{metric}",
        lambda row: row["status"] == Status.OK and row[metric] is None,
    )
    runs = _runs(rows, metric)
    failed = [run for run in runs if run.status not in (Status.OK, Status.UNSUPPORTED)]
    unsupported = [run for run in runs if run.status == Status.UNSUPPORTED]
    out += _listed("{} failed", failed, by_dataset=True)
    out += _listed("{} of an unsupported pair", unsupported, by_dataset=False)
    return runs, out


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame; a missing value is None."""
    values = (table[name].astype(object).where(table[name].notna(), None) for name in table)
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _listed(what: str, runs: Sequence[_Run], *, by_dataset: bool, most: int = 5) -> list[str]:
    """One text of several lines: the number of runs, then each kind of failure with its seeds."""
    if not runs:
        return []
    seeds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        pair = f"{run.method} x {run.heading}" + (f" x {run.dataset}" if by_dataset else "")
        reason = " ".join(run.error.split()) or "no reason given"
        reason = reason if len(reason) <= 160 else f"{reason[:159]}…"
        seeds[pair, f"{run.status}: {reason}" if by_dataset else reason].append(str(run.seed))
    lines = [
        f"{pair}, {'seed' if len(numbers) == 1 else 'seeds'} {_some(numbers)}: {reason}"
        if by_dataset
        else f"{pair}: {reason}"
        for (pair, reason), numbers in seeds.items()
    ]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    body = [f"  - {line}" for line in lines[:most] + more]
    return ["\n".join([f"{what.format(_count(len(runs), 'run'))}:", *body])]


def _runs(rows: Sequence[Mapping[str, Any]], metric: str) -> list[_Run]:
    tags: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        tags[_text(row["backbone"])].add(_text(row["backbone_tag"]))
    runs = []
    for row in rows:
        backbone, tag = _text(row["backbone"]), _text(row["backbone_tag"])
        tuned, head = row["params_tuned"], row["params_head"]
        runs.append(
            _Run(
                row=row["row"],
                heading=backbone if len(tags[backbone]) == 1 else f"{backbone} [{tag}]",
                suite=_text(row["suite"]),
                group=_text(row["group"]),
                dataset=_text(row["dataset"]),
                method=_text(row["method"]),
                settings=_settings(row),
                seed=None if row["seed"] is None else int(row["seed"]),
                status=_text(row["status"]),
                error=_text(row["error"]),
                score=None if row[metric] is None else float(row[metric]),
                tuned=None if tuned is None else int(tuned),
                with_head=None if tuned is None or head is None else int(tuned + head),
                weights=_text(row["backbone_sha256"]),
                suite_version=_text(row["suite_version"]),
                manifest=_text(row["manifest"]),
                arithmetic=arithmetic(_text(row["dtype"]), _text(row["device"])),
                budget=_budget(row),
            )
        )
    return runs


def _budget(row: Mapping[str, Any]) -> str:
    """As "grid: 12 trials x 50 epochs"; a method that was searched longer has an advantage."""
    if row["tuner"] is None:
        return ""
    trials, epochs = (
        "unknown" if row[name] is None else f"{row[name]}" for name in ("trials", "trial_epochs")
    )
    return f"{row['tuner']}: {trials} trials x {epochs} epochs"


def _settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Every declared setting by name; one of the recipe gives way to one of the method."""
    settings = settings_of(_text(row["hyperparameters"]))
    others = {
        "recipe": _text(row["recipe"]),
        "limit": _text(row["limit"]) or "null",
        **settings_of(_text(row["recipe_settings"])),
        "version": _text(row["method_version"]),
        **settings_of(_text(row["preprocessing"])),
        **settings_of(_text(row["data_settings"])),
        **{name: _text(row[name]) for name in ("image_size", "drop_path", "precision")},
        "selection": _text(row["selection"]),
    }
    for name, value in others.items():
        settings[f"recipe.{name}" if name in settings else name] = value
    return settings


def _variants(runs: Sequence[_Run]) -> dict[int, tuple[str, frozenset[str]]]:
    """For each run, by `id`: the text that tells its row, and the settings named in it.

    Recipes, limits and rules of selection always make rows. Of the other settings, as few as needed
    do so that a row has one setting on each data set and one number of tuned parameters: a learning
    rate chosen for each data set leaves a method in one row.
    """
    by_method: dict[str, list[_Run]] = defaultdict(list)
    for run in runs:
        by_method[run.method].append(run)
    variants: dict[int, tuple[str, frozenset[str]]] = {}
    for members in by_method.values():
        names = list(dict.fromkeys(name for run in members for name in run.settings))
        varying = [n for n in names if len({run.settings.get(n) for run in members}) > 1]
        chosen = [name for name in varying if name in ("recipe", "limit", "selection")]
        while any(conflicts := _conflicts(members, chosen)):
            ranked = [
                (_conflicts(members, [*chosen, name]), _groups(members, [*chosen, name]), i, name)
                for i, name in enumerate(varying)
                if name not in chosen
            ]
            if not ranked or min(ranked)[0] >= conflicts:
                break
            chosen.append(min(ranked)[-1])
        for run in members:
            text = ", ".join(f"{name}={run.settings.get(name, 'unset')}" for name in chosen)
            variants[id(run)] = (text, frozenset(chosen))
    return variants


def _conflicts(runs: Sequence[_Run], names: Sequence[str]) -> tuple[int, int]:
    """Settings that would share a cell and sizes that would share a row, if `names` told rows."""
    settings: dict[Any, set[Any]] = defaultdict(set)
    sizes: dict[Any, set[int]] = defaultdict(set)
    for run in runs:
        row = (run.heading, *(run.settings.get(name) for name in names))
        settings[row, run.suite, run.dataset].add(frozenset(run.settings.items()))
        if run.tuned is not None:
            sizes[row].add(run.tuned)
    return (
        sum(len(values) - 1 for values in settings.values()),
        sum(len(values) - 1 for values in sizes.values()),
    )


def _groups(runs: Sequence[_Run], names: Sequence[str]) -> int:
    return len({tuple(run.settings.get(name) for name in names) for run in runs})


def _section(
    runs: Sequence[_Run], variants: Mapping[int, tuple[str, frozenset[str]]]
) -> list[dict[str, Any]]:
    """Cells of one backbone and suite, row after row."""
    group_of = {run.dataset: run.group for run in runs}
    datasets = sorted(group_of, key=lambda name: (group_of[name], name))
    usual = Usual.of(runs)
    members: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for run in runs:
        members[run.method, variants[id(run)][0]].append(run)
    rows: list[tuple[Any, list[dict[str, Any]]]] = []
    for (method, variant), mine in members.items():
        cells = {d: measure([run for run in mine if run.dataset == d], usual) for d in datasets}
        tuned, row_notes = _tuned(mine)
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
            "params_tuned": tuned,
            "params_with_head": with_head,
        }
        shown = [{**shared, "kind": kind, "column": name, **_shown(c)} for kind, name, c in columns]
        rows.append(((tuned is None, tuned or 0, label), shown))
    return [cell for _, row in sorted(rows, key=lambda row: row[0]) for cell in row]


def _shown(cell: Cell) -> dict[str, Any]:
    note = "\n".join(cell.notes)
    numbers = {"n": cell.n, "mean": cell.mean, "sd": cell.sd}
    return {**numbers, "budget": cell.budget, "state": cell.state, "note": note}


@dataclass(frozen=True)
class Usual:
    """Weights and budget of most runs of a section; of a column its files, version, arithmetic."""

    weights: str
    budget: str
    data: Mapping[str, tuple[str, str]]  # by data set
    arithmetic: Mapping[str, str]  # by data set

    @classmethod
    def of(cls, runs: Sequence[_Run]) -> Usual:
        done = [run for run in runs if run.status == Status.OK]
        data: dict[str, list[tuple[str, str]]] = defaultdict(list)
        computed: dict[str, list[str]] = defaultdict(list)
        for run in done:
            data[run.dataset].append((run.suite_version, run.manifest))
            if run.arithmetic:
                computed[run.dataset].append(run.arithmetic)
        return cls(
            _commonest(run.weights for run in done),
            _commonest(run.budget for run in done),
            {name: _commonest(values) for name, values in data.items()},
            {name: _commonest(values) for name, values in computed.items()},
        )


def measure(runs: Sequence[_Run], usual: Usual) -> Cell:
    """One row on one data set; `mixed`, with the reason, where its runs cannot be averaged."""
    done = [run for run in runs if run.status == Status.OK]
    if not done:
        states = {run.status for run in runs}
        if not states:
            return Cell(MISSING)
        return Cell(UNSUPPORTED if states == {Status.UNSUPPORTED} else FAILED)
    differing: dict[str, set[Any]] = {
        "backbone weights": {_short(run.weights) for run in done},
        "suite versions": {run.suite_version or "unknown" for run in done},
        "manifests": {_short(run.manifest) for run in done},
        "search budgets": {run.budget or "no search" for run in done},
        "settings": {frozenset(run.settings.items()) for run in done},
    }
    notes = [
        f"not averaged: {len(values)} different {name}"
        + ("" if name == "settings" else f" ({', '.join(sorted(map(str, values)))})")
        for name, values in differing.items()
        if len(values) > 1
    ]
    seeds = Counter(run.seed for run in done)
    repeated = sorted(str(seed) for seed, times in seeds.items() if times > 1)
    if repeated and not notes:
        notes.append(f"not averaged: seed {', '.join(repeated)} was run more than once")
    if notes:
        return Cell(MIXED, notes=tuple(notes))
    first = done[0]
    if first.weights != usual.weights:
        notes.append(
            f"backbone weights {_short(first.weights)}, "
            f"while most runs of this table have {_short(usual.weights)}"
        )
    data = usual.data[first.dataset]
    if (first.suite_version, first.manifest) != data:
        notes.append(
            f"{first.dataset} version {first.suite_version or 'unknown'} with manifest "
            f"{_short(first.manifest)}, while most runs have version {data[0] or 'unknown'} "
            f"with {_short(data[1])}"
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
    lost = sorted({run.status for run in runs if run.status != Status.OK})
    if lost:
        notes.append(f"{len(runs) - len(done)} of {len(runs)} seeds failed: {', '.join(lost)}")
    scores = {run.seed: run.score for run in done if run.score is not None}
    mean, sd = mean_and_sd(scores.values())
    return Cell(OK, scores, mean, sd, first.weights, tuple(notes), first.budget, computed)


def _averages(
    cells: Mapping[str, Cell], group_of: Mapping[str, str], row_notes: Sequence[str]
) -> list[tuple[str, str, Cell]]:
    """Kind, heading and cell of each average; none over a single data set."""
    if len(cells) < 2:
        return []
    even = dict.fromkeys(cells, 1 / len(cells))
    averages = [(MEAN_OF_TASKS, f"mean of {len(cells)} tasks", even)]
    groups = Counter(group_of[name] for name in cells)
    if len(groups) > 1 and "" not in groups:
        weighted = {d: 1 / len(groups) / groups[group_of[d]] for d in cells}
        averages.append((MEAN_OF_GROUPS, f"mean of {len(groups)} groups", weighted))
        for group, size in sorted(groups.items()):
            inside = {name: 1 / size for name in cells if group_of[name] == group}
            averages.append((GROUP_MEAN, f"{group} ({size})", inside))
    return [
        (kind, name, average(cells, weights, row_notes if kind == MEAN_OF_TASKS else ()))
        for kind, name, weights in averages
    ]


def average(
    cells: Mapping[str, Cell], weights: Mapping[str, float], row_notes: Sequence[str]
) -> Cell:
    """Weighted mean of the cells; its spread is that of the weighted means of single seeds."""
    if all(cells[name].state == UNSUPPORTED for name in weights):
        return Cell(UNSUPPORTED)
    holes = [name for name in weights if cells[name].state != OK]
    if holes:
        return Cell(INCOMPLETE, notes=(f"no average without {_some(holes)}",))
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
    by_seed = {s: sum(w * cells[d].scores[s] for d, w in weights.items()) for s in common}
    mean = sum(w * (cells[d].mean or 0.0) for d, w in weights.items())
    budgets = {cell.budget for cell in used}
    if len(budgets) > 1:
        notes.append(f"search budgets differ: {_some(sorted(b or 'no search' for b in budgets))}")
    budget = used[0].budget if len(budgets) == 1 else ""
    computed = tuple(text for cell in used for text in cell.arithmetic)
    if mixed := several(computed):
        notes.append(f"runs computed in {' and '.join(mixed)} are averaged")
    sd = mean_and_sd(by_seed.values())[1]
    return Cell(OK, by_seed, mean, sd, "", tuple(notes), budget, computed)


def mean_and_sd(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Mean, and sample standard deviation (divisor n - 1) where there are two values."""
    found = list(values)
    if not found:
        return None, None
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def _tuned(runs: Sequence[_Run]) -> tuple[int | None, list[str]]:
    counts = sorted({run.tuned for run in runs if run.tuned is not None})
    if len(counts) < 2:
        return (counts[0] if counts else None), []
    return None, [f"tuned parameters differ between data sets: {counts[0]} to {counts[-1]}"]


def _mean_with_head(runs: Sequence[_Run]) -> float | None:
    """Mean over data sets, since heads differ in their classes."""
    counts = {run.dataset: run.with_head for run in runs if run.with_head is not None}
    return statistics.fmean(counts.values()) if counts else None


def chosen_by_dataset(runs: Sequence[_Run], named: frozenset[str]) -> list[str]:
    """A remark on the settings that differ between the data sets of one row."""
    done = [run for run in runs if run.status == Status.OK]
    differing = []
    for name in dict.fromkeys(name for run in done for name in run.settings):
        values = {run.settings.get(name, "unset") for run in done}
        if len(values) > 1 and name not in named:
            differing.append(f"{name} ({_some(sorted(values))})")
    return [f"chosen for each data set: {', '.join(differing)}"] if differing else []


def _layout(cells: pd.DataFrame) -> list[_Section]:
    """Cells as texts, one section for each backbone and suite."""
    sections: list[_Section] = []
    keyed = cells.assign(suite=cells["suite"].fillna(""))
    for (backbone, suite), part in keyed.groupby(["backbone", "suite"], sort=False):
        columns = list(dict.fromkeys(part["column"]))
        grid = [["method", "tuned", "with head", *columns]]
        marks: dict[str, str] = {}
        for label, row in part.groupby("label", sort=False):
            first = row.iloc[0]
            counts = [_magnitude(first[name]) for name in ("params_tuned", "params_with_head")]
            by_column = {cell["column"]: cell for cell in row.to_dict("records")}
            texts = [_cell_text(by_column[name], marks) for name in columns]
            grid.append([str(label), *counts, *texts])
        heading = f"{backbone} · {suite}" if suite else str(backbone)
        done = part.loc[(part["kind"] == TASK) & (part["state"] == OK), "budget"]
        if budget := _commonest(done.fillna("").tolist()):
            heading += f" · hyper-parameters from {budget}"
        sections.append(_Section(heading, grid, [(mark, note) for note, mark in marks.items()]))
    return sections


def _cell_text(cell: Any, marks: dict[str, str]) -> str:
    """`81.2 ± 0.4 (3) [a]`; a new remark takes the next free mark."""
    if cell["state"] == OK:
        text = f"{100 * cell['mean']:.1f}"
        if not pd.isna(cell["sd"]):
            text += f" ± {100 * cell['sd']:.1f}"
        text += f" ({cell['n']})"
    else:
        text = SHOWN[cell["state"]]
    if pd.isna(cell["note"]):
        return text
    notes = str(cell["note"]).split("\n")
    return f"{text} [{','.join(marks.setdefault(n, _mark(len(marks))) for n in notes)}]"


def _mark(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = string.ascii_lowercase
    return (_mark(index // 26 - 1) if index >= 26 else "") + letters[index % 26]


def _blocks(grid: Sequence[Sequence[str]], width: int | None) -> list[list[list[str]]]:
    """`grid` cut between columns so that each block fits; every block starts with the labels."""
    sizes = [max(len(row[i]) for row in grid) + 2 for i in range(len(grid[0]))]
    blocks: list[list[int]] = [[0, 1, 2]]
    used = sum(sizes[:3])
    for i in range(3, len(sizes)):
        if width is not None and used + sizes[i] - 2 > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = sizes[0]
        blocks[-1].append(i)
        used += sizes[i]
    return [[[row[i] for i in block] for row in grid] for block in blocks]


def _padded(grid: Sequence[Sequence[str]]) -> list[list[str]]:
    """`grid` with spaces after unmarked cells, so that numbers line up beside marked ones."""
    marks = [[len(text) - len(text.partition(" [")[0]) for text in row] for row in grid[1:]]
    room = [0, *(max(column) for column in list(zip(*marks, strict=True))[1:])]
    rows = [
        [text + " " * max(0, r - m) for text, m, r in zip(row, mark, room, strict=True)]
        for row, mark in zip(grid[1:], marks, strict=True)
    ]
    return [list(grid[0]), *rows]


def _aligned(grid: Sequence[Sequence[str]]) -> str:
    """Labels to the left, numbers to the right."""
    sizes = [max(map(len, column)) for column in zip(*grid, strict=True)]
    head, *body = [
        row[0].ljust(sizes[0])
        + "".join(f"  {text:>{size}}" for text, size in zip(row[1:], sizes[1:], strict=True))
        for row in grid
    ]
    return "\n".join([head, "─" * len(head), *(line.rstrip() for line in body)])


def _closing(cells: pd.DataFrame, bullet: str) -> str:
    """What the numbers are, and what is not among them."""
    metric = SCORES[cells.attrs.get("metric", "top1")]
    lines = [f"No finished final run has a test {metric} yet."]
    if len(cells):
        lines = [
            f"Test {metric} in %: mean ± sample standard deviation over seeds (number of seeds).",
            "tuned: parameters that the method adds or unfreezes. "
            "with head: and the classifier, mean over the data sets.",
        ]
    left_out = cells.attrs.get("left_out", [])
    if left_out:
        lines += ["", "Left out:", *(f"{bullet}{line}" for line in left_out)]
    return "\n".join(lines)


def _magnitude(count: Any) -> str:
    """A count with three digits: 768, 36.9k, 85.8M."""
    if pd.isna(count):
        return "–"
    for unit, text in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            value = count / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{text}"
    return f"{count:.0f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _some(texts: Iterable[str], most: int = 5) -> str:
    """The first few different texts and the number of the others."""
    unique = list(dict.fromkeys(texts))
    more = [f"and {len(unique) - most} more"] if len(unique) > most else []
    return ", ".join([*unique[:most], *more])


def _short(digest: str) -> str:
    return digest[:8] or "unknown"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _commonest(values: Iterable[Any]) -> Any:
    """The most frequent value; of equally frequent ones, the first in order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value), default="")


def _dtype(column: Column) -> Any:
    return column.dtype
