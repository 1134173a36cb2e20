"""The tables in `experiments/tables`: found, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench import mappings, shipped
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.report.papers.description import (
    ACCURACIES,
    KINDS,
    MEAN,
    MEAN_OF_GROUPS,
    OVER_GROUPS,
    OVER_TASKS,
    TASK,
    WINS,
    Block,
    PaperColumn,
    PaperTable,
    PaperTask,
    Row,
    Series,
)
from peftbench.report.scores import SCORE
from peftbench.results.settings import settings_of, settings_text

SUITES = "_suites.yaml"  # the data sets that tables share
TABLE_KEYS = {
    *("title", "source", "experiment", "protocol", "weights", "published", "columns", "rows"),
    *("blocks", "tolerance", "differs", "notes"),
}
COLUMN_KEYS = {
    *("key", "kind", "title", "over", "heading", "decimals", "published", "against", "head"),
    "average",
}
ROW_KEYS = {"title", "method", "settings", "published", "printed", "notes", "weights"}
BLOCK_KEYS = {"title", "weights", "published", "values", "rows"}
TASK_KEYS = {"title", "dataset", "metric", "lower_is_better", "published"}
SUITE_KEYS = {"published", "suite", "draws", "groups"}
DECIMALS = {TASK: 1, MEAN: 2, MEAN_OF_GROUPS: 2, WINS: 0}


def folders() -> list[Path]:
    """Our tables, then those of the working directory."""
    ours = shipped.folder("experiments/tables", "experiments/tables", SUITES)
    local = Path.cwd() / "experiments" / "tables"
    return [ours, local] if local.is_dir() and not local.samefile(ours) else [ours]


def names() -> list[str]:
    """Every table, by name."""
    return sorted(_paths())


def experiments() -> list[str]:
    """Every experiment that there is a file of."""
    return sorted({path.stem for place in folders() for path in place.parent.glob("*.yaml")})


def find(name: str) -> PaperTable:
    """The table called `name`.

    Raises:
        UnknownName: there is none.
        ConfigError: its file is not of the form that this module documents.
    """
    paths = _paths()
    if name not in paths:
        raise unknown_name("table", name, paths)
    return read(paths[name])


def of_experiment(name: str) -> list[PaperTable]:
    """The tables that an experiment measures, or the one table of that name; maybe none.

    Raises:
        UnknownName: neither an experiment nor a table is called so.
    """
    tables = [find(table) for table in names()]
    measured = [table for table in tables if table.experiment == name]
    if measured:
        return sorted(measured, key=lambda table: (table.name != name, table.name))
    if name in names():
        return [find(name)]
    known = {*experiments(), *names()}
    if name not in known:
        raise unknown_name("experiment", name, known)
    return []


def read(path: Path) -> PaperTable:
    """The table in a file; `ConfigError` names what is wrong with it."""
    raw = _mapping(path, "the file", mappings.read(path), TABLE_KEYS)
    for key in ("title", "source", "experiment", "protocol", "published", "columns"):
        if not raw.get(key):
            raise ConfigError(f"{path} has no {key}. A table needs one.")
    tasks, averages = _suites()
    columns = [
        column
        for entry in _list(path, "columns", raw["columns"])
        for column in _columns(path, entry, tasks, averages)
    ]
    base = _mapping(path, "published", raw["published"], {"paper", "backbone", "pretrain"})
    series = Series(**{key: str(base.get(key, "")) for key in ("paper", "backbone", "pretrain")})
    blocks = tuple(
        _block(path, raw, _mapping(path, "a block", entry, BLOCK_KEYS), series)
        for entry in raw.get("blocks") or [{}]
    )
    used = dict.fromkeys(key for column in columns for key in column.tasks)
    table = PaperTable(
        name=path.stem,
        title=str(raw["title"]),
        source=str(raw["source"]),
        experiment=str(raw["experiment"]),
        protocol=str(raw["protocol"]),
        tasks={key: tasks[key] for key in used},
        columns=tuple(columns),
        blocks=blocks,
        tolerance={str(k): float(v) for k, v in (raw.get("tolerance") or {}).items()},
        differs=tuple(map(str, raw.get("differs") or ())),
        notes=tuple(map(str, raw.get("notes") or ())),
    )
    _check(path, table)
    return table


def _check(path: Path, table: PaperTable) -> None:
    """What no part of the file can be wrong in by itself."""
    keys = [column.key for column in table.columns]
    for key in _repeated(keys):
        raise ConfigError(f"{path} has two columns with key {key}. Give one of them another key.")
    for key in table.tolerance:
        if key not in (*KINDS, *keys):
            raise unknown_name(f"column in tolerance of {path}:", key, {*KINDS, *keys})
    for block in table.blocks:
        _check_titles(path, block, table.columns)
        for row in block.rows:
            for key in row.printed:
                if key not in keys:
                    raise unknown_name(f"column in {path}:", key, keys)
            _check_values(path, row, table.tasks.values())


def _check_titles(path: Path, block: Block, columns: Iterable[PaperColumn]) -> None:
    """Each row has a title of its own, and columns of wins name one of them."""
    titles = [row.title for row in block.rows]
    for title in _repeated(titles):
        raise ConfigError(f"{path} has two rows with title {title}. Rename one of them.")
    for column in columns:
        if column.kind == WINS and column.against not in titles:
            raise unknown_name(f"row in {path}:", column.against, titles)


def _check_values(path: Path, row: Row, tasks: Iterable[PaperTask]) -> None:
    """A row has a value for each suite of its tasks that its texts name."""
    for task in tasks:
        try:
            row.fill(task.suite), row.fill(task.published_suite)
        except KeyError as error:
            raise ConfigError(
                f"{path}: the row {row.title} has no value for {error} of {task.key}. "
                "Give its block one under values."
            ) from error


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _paths() -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for place in folders():
        for path in sorted(place.glob("*.yaml")):
            if not path.name.startswith("_"):
                paths.setdefault(path.stem, path)
    return paths


def _mapping(path: Path, what: str, raw: Any, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {what} must be a mapping, found {raw!r}.")
    for key in raw:
        if key not in keys:
            raise unknown_name(f"key of {what} in {path}:", str(key), keys)
    return raw


def _list(path: Path, what: str, raw: Any) -> Sequence[Any]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{path}: {what} must be a list that is not empty, found {raw!r}.")
    return raw


PaperTasks = dict[str, PaperTask]
Averages = dict[tuple[str, ...], tuple[str, str]]  # data sets -> suite and name of their average


def _suites() -> tuple[PaperTasks, Averages]:
    """Data sets by key, and the averages that published numbers have of them."""
    tasks: PaperTasks = {}
    averages: Averages = {}
    for place in reversed(folders()):
        path = place / SUITES
        for name, raw in (mappings.read(path) if path.is_file() else {}).items():
            suite = _mapping(path, name, raw, SUITE_KEYS)
            for group, entry in suite["groups"].items():
                members = [
                    _task(path, str(name), str(group), str(key), declared, suite)
                    for key, declared in entry["tasks"].items()
                ]
                tasks |= {task.key: task for task in members}
                if entry.get("average"):
                    keys = tuple(task.key for task in members)
                    averages[keys] = (members[0].published_suite, str(entry["average"]))
    return tasks, averages


def _task(
    path: Path, suite: str, group: str, key: str, declared: Any, raw: Mapping[str, Any]
) -> PaperTask:
    entry = {"title": declared} if isinstance(declared, str) else declared
    _mapping(path, f"{suite}/{key}", entry, TASK_KEYS)
    return PaperTask(
        key=f"{suite}/{key}",
        title=str(entry["title"]),
        group=f"{suite}.{group}",
        dataset=str(entry.get("dataset", f"{suite}/{key}")),
        published_suite=str(raw.get("published", "")),
        published_dataset=str(entry.get("published", key)),
        suite=str(raw.get("suite", "")),
        metric=str(entry.get("metric", SCORE)),
        lower_is_better=bool(entry.get("lower_is_better", False)),
        draws=int(raw.get("draws", 1)),
    )


def _columns(path: Path, raw: Any, tasks: PaperTasks, averages: Averages) -> list[PaperColumn]:
    """One column, or for kind `task` one for each data set."""
    entry = _mapping(path, "a column", raw, COLUMN_KEYS)
    kind = str(entry.get("kind"))
    if kind not in KINDS:
        raise unknown_name(f"kind of a column in {path}:", kind, KINDS)
    over = entry.get("over")
    chosen = _chosen(path, [over] if isinstance(over, str) else over, tasks)
    decimals = int(entry.get("decimals", DECIMALS.get(kind, 2)))
    heading = str(entry.get("heading", ""))
    if kind == TASK:
        return [
            PaperColumn(key, kind, tasks[key].title, (key,), heading, decimals) for key in chosen
        ]
    if entry.get("average", OVER_TASKS) not in (OVER_TASKS, OVER_GROUPS):
        raise unknown_name(f"average in {path}:", str(entry["average"]), (OVER_TASKS, OVER_GROUPS))
    title = str(entry.get("title", ""))
    if not title:
        raise ConfigError(f"{path}: a column of kind {kind} has no title.")
    published = averages.get(chosen) if kind == MEAN else None
    if entry.get("published"):
        published = (tasks[chosen[0]].published_suite, str(entry["published"]))
    return [
        PaperColumn(
            key=str(entry.get("key", title)),
            kind=kind,
            title=title,
            tasks=chosen,
            heading=heading,
            decimals=decimals,
            published=published if kind in ACCURACIES else None,
            against=str(entry.get("against", "")),
            head=bool(entry.get("head", True)),
            average=str(entry.get("average", OVER_TASKS)),
        )
    ]


def _chosen(path: Path, over: Any, tasks: PaperTasks) -> tuple[str, ...]:
    """Keys of the data sets in `over`: suites (vtab), groups (vtab.natural), sets (vtab/kitti)."""
    keys: list[str] = []
    for name in _list(path, "over", over):
        matching = [
            key
            for key, task in tasks.items()
            if name in (key, task.group, task.group.partition(".")[0])
        ]
        if not matching:
            known = {part for task in tasks.values() for part in (task.key, task.group)}
            raise unknown_name(f"data set, group or suite in {path}:", str(name), known)
        keys += matching
    return tuple(dict.fromkeys(keys))


def _block(path: Path, table: Mapping[str, Any], raw: Mapping[str, Any], base: Series) -> Block:
    entries = raw.get("rows") or table.get("rows")
    series = _series(path, raw.get("published") or {}, base)
    values = {str(key): str(value) for key, value in (raw.get("values") or {}).items()}
    weights = raw.get("weights", table.get("weights"))
    rows = [
        _row(path, _mapping(path, "a row", entry, ROW_KEYS), series, values, weights)
        for entry in _list(path, "rows", entries)
    ]
    return Block(str(raw.get("title", "")), tuple(rows), series)


def _row(
    path: Path, raw: Mapping[str, Any], base: Series, values: Mapping[str, str], weights: Any
) -> Row:
    for key in ("title", "method"):
        if key not in raw:
            raise ConfigError(f"{path}: the row {dict(raw)} has no {key}. Give it one.")
    published = raw.get("published")
    series = None if published is None else _series(path, published, base)
    used = raw.get("weights", weights)
    return Row(
        title=str(raw["title"]),
        method=None if raw["method"] is None else str(raw["method"]),
        settings=settings_of(settings_text(raw.get("settings") or {})),
        weights=tuple([used] if isinstance(used, str) else used or ()),
        published=series if series is not None and series.paper and series.method else None,
        printed={str(k): float(v) for k, v in (raw.get("printed") or {}).items()},
        values=values,
        notes=tuple(map(str, raw.get("notes") or ())),
    )


def _series(path: Path, published: Any, base: Series) -> Series:
    """`published` is a method, or a mapping that replaces parts of `base`; paper: null is none."""
    entry = {"method": published} if isinstance(published, str) else published
    _mapping(path, "published", entry, ("paper", "backbone", "pretrain", "method"))
    values = {**vars(base), **entry}
    return Series(**{key: str(value or "") for key, value in values.items()})
