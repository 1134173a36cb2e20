"""The table of runs: one row a run, failures kept, derived from the records and never edited."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path

import pandas as pd

from peftbench.errors import ConfigError, StoreError
from peftbench.registry import unknown_name
from peftbench.results.arrays import array_of, lines_of
from peftbench.results.columns import COLUMNS, DTYPES, EPOCH_COLUMNS, ORDER
from peftbench.results.index import Row
from peftbench.results.naming import with_names_apart
from peftbench.results.privacy import public_text
from peftbench.results.record import RunRecord, Status, current, preferred
from peftbench.results.rows import NAMES, stored_rows, values_of
from peftbench.results.store import ResultsStore, StoreWarning
from peftbench.results.table_files import read_table, spell
from peftbench.results.vals import with_vals

# with the columns and the files, so that one import reads results
__all__ = [
    "COLUMNS",
    "committed",
    "epochs",
    "frame",
    "load",
    "public_table",
    "read_table",
    "select",
]

_AGAIN = "Write it again with `peftbench report`."
_RUN_ID = itemgetter(NAMES.index("run_id"))
_ENDING = itemgetter(NAMES.index("status"), NAMES.index("finished"))


def frame(source: ResultsStore | Iterable[RunRecord]) -> pd.DataFrame:
    """One row a run with the columns, order and dtypes of `COLUMNS`, failures kept.

    Rows are sorted by `ORDER`. Of several records of one run id, the current one counts. A store
    gives a `StoreWarning` for each broken file.
    """
    if isinstance(source, ResultsStore):
        table, broken = stored_frame(source)
        for error in broken:
            warnings.warn(str(error), StoreWarning, stacklevel=2)
        return table
    return _table(map(values_of, current(source)))


def stored_frame(store: ResultsStore) -> tuple[pd.DataFrame, list[StoreError]]:
    """The frame of a store, and an error for each broken file."""
    rows, broken = stored_rows(store)
    return _table(_current(rows)), broken


def _table(rows: Iterable[Row]) -> pd.DataFrame:
    """One row each, with the names and dtypes of `COLUMNS`, in the order of `ORDER`."""
    values = dict(zip(NAMES, zip(*rows, strict=True), strict=False))  # none where no row is
    table = pd.DataFrame(
        {
            name: array_of(values.get(name, ()), dtype, lines_of if name == "error" else None)
            for name, dtype in DTYPES.items()
        }
    )
    table = with_vals(with_names_apart(table))
    return table.sort_values(list(ORDER), kind="stable", ignore_index=True)


def load(source: Path | str = "results", *, where: str | Sequence[str] = ()) -> pd.DataFrame:
    """One row a run, failures kept, from a results folder or from one table that it wrote.

    Args:
        source: a results folder, or a `.csv` or `.parquet` file made by `peftbench report`.
        where: conditions that all hold, such as `"method=lora,ssf"`; see `select`.

    Returns:
        Rows in the order of `ORDER` with the columns and dtypes of `COLUMNS`. The column `schema`
        is the version of each record.

    Raises:
        StoreError: there is nothing to read.
        ConfigError: a condition that no row can meet.
    """
    path = Path(source)
    conditions = [where] if isinstance(where, str) else list(where)
    if path.suffix in (".csv", ".parquet"):
        if not path.is_file():
            raise StoreError(f"There is no table {path}. Run: peftbench report")
        try:
            table = read_table(path)
        except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"{path} is not a table of runs: {reason}. {_AGAIN}") from error
        if table["run_id"].isna().any():
            raise StoreError(f"{path} is not a table of runs: rows without run_id. {_AGAIN}")
    elif (path / "runs").is_dir():
        table = frame(ResultsStore(path))
    else:
        raise StoreError(
            f"There are no runs in {path / 'runs'}. Give a results folder, or a .csv or .parquet "
            "file that `peftbench report` wrote."
        )
    return select(table, conditions) if conditions else table


def epochs(source: ResultsStore | Iterable[RunRecord]) -> pd.DataFrame:
    """One row an epoch with the columns of `EPOCH_COLUMNS`; `run_id` leads to the table of runs."""
    records = source.records() if isinstance(source, ResultsStore) else source
    ordered = sorted(current(records), key=lambda record: record.run_id)
    rows = [epoch for record in ordered for epoch in record.history]
    run_ids = [record.run_id for record in ordered for _ in record.history]
    return pd.DataFrame(
        {
            c.name: array_of(
                run_ids if c.name == "run_id" else map(attrgetter(c.name), rows), c.dtype
            )
            for c in EPOCH_COLUMNS
        }
    )


def select(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Rows that meet every condition, each `column=value` or `column=value,value`.

    `null` stands for a missing value. `ConfigError` for a column that does not exist, and for a
    text that no row has.
    """
    chosen = pd.Series(True, index=table.index, dtype=bool)
    for condition in where:
        name, equals, text = condition.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                f"Condition {condition!r} is not column=value or column=value,value. "
                "Example: method=lora,linear"
            )
        if name not in table.columns:
            raise unknown_name("column", name, map(str, table.columns))
        spelled = [spell(value) for value in table[name].array]
        known = set(spelled)
        wanted = {text} if text in known else {value.strip() for value in text.split(",")}
        if DTYPES.get(name) == "string" and known:
            known = known | (set(map(str, Status)) if name == "status" else set())
            for value in sorted(wanted - known - {"null"}):
                raise unknown_name(name, value, known - {"null"})
        chosen &= pd.Series([value in wanted for value in spelled], index=table.index, dtype=bool)
    return table[chosen].reset_index(drop=True)


def committed(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of runs whose code can be had again, and a line about the others if there are any.

    Code that differed from its commit is nowhere kept. Runs of an installed package, which knows
    its version and no commit, count.
    """
    changed = table["git_dirty"].fillna(False).astype(bool)
    if not changed.any():
        return table, []
    several = "s" if changed.sum() > 1 else ""
    line = f"{changed.sum()} run{several} of code that differs from its commit (--dirty shows them)"
    return table[~changed].reset_index(drop=True), [line]


def public_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as they may leave this machine: no host, and no place in the cause of a failure."""
    errors = [pd.NA if value is pd.NA else public_text(value) for value in table["error"].array]
    return table.assign(
        host=array_of([None] * len(table), DTYPES["host"]),
        error=array_of(errors, DTYPES["error"], lambda text: text),
    )


def _current(rows: Sequence[Row]) -> Sequence[Row]:
    """One row per run id, as `record.current` chooses among records."""
    if len(set(map(_RUN_ID, rows))) == len(rows):
        return rows
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(_RUN_ID(row))
        if known is None or _preference(row) > _preference(known):
            best[_RUN_ID(row)] = row
    return list(best.values())


def _preference(row: Row) -> tuple[bool, bool, str]:
    return preferred(*_ENDING(row))
