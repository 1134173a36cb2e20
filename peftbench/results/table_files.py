"""The table of runs as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from peftbench.results.arrays import array_of, lines_of
from peftbench.results.atomic import write_atomic
from peftbench.results.columns import DTYPES
from peftbench.untrusted import guarded, unguarded


@dataclass(frozen=True)
class Written:
    """Files that were written, and a line for each that could not be."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def write_table(table: pd.DataFrame, root: Path | str) -> Written:
    """`root/table.csv` and `root/table.parquet`, each replaced as a whole.

    Numbers keep every digit: `read_table` gives back an equal frame. Without pyarrow the csv file
    is written, an outdated parquet file is removed, and a note says so.
    """
    csv, parquet = Path(root) / "table.csv", Path(root) / "table.parquet"
    text = csv_text(table)
    write_atomic(csv, lambda file: file.write(text.encode()))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        parquet.unlink(missing_ok=True)
        note = f"{parquet} was not written: pyarrow is missing. Run: pip install pyarrow"
        return Written((csv,), (note,))
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    write_atomic(parquet, lambda file: file.write(buffer.getvalue()))
    return Written((csv, parquet))


def epochs_name() -> str:
    """`epochs.parquet`, or without pyarrow `epochs.csv`."""
    return "epochs.csv" if find_spec("pyarrow") is None else "epochs.parquet"


def write_epochs(epochs: pd.DataFrame, root: Path | str) -> Path:
    """One row an epoch as the file of that name below `root`, replaced as a whole."""
    path = Path(root) / epochs_name()
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        epochs.to_parquet(buffer, engine="pyarrow", index=False)
    else:
        buffer.write(csv_text(epochs).encode())
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    return path


def read_table(path: Path | str) -> pd.DataFrame:
    """The frame in a `.csv` or `.parquet` file made by `write_table`, every bit of it.

    A column that an older table lacks is missing in every row.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        stored = pd.read_parquet(path)
        return stored.reindex(columns=list(DTYPES)).astype(DTYPES)
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8")
    blank = [None] * len(raw)
    return pd.DataFrame(
        {
            name: array_of(
                (_parse(value, dtype) for value in raw.get(name, blank)),
                dtype,
                lines_of if name == "error" else None,
            )
            for name, dtype in DTYPES.items()
        }
    )


def spell(value: Any) -> str:
    """A cell as it is written in csv; `null` where it is missing."""
    if value is pd.NA or value is None:
        return "null"
    return repr(float(value)) if isinstance(value, float) else str(value)


def csv_text(table: pd.DataFrame) -> str:
    """The frame as csv with every digit; an empty field is a missing value."""
    spelled = pd.DataFrame(
        {name: _cells(table[name].array) for name in map(str, table.columns)}, dtype=object
    )
    return spelled.to_csv(index=False, lineterminator="\n")


def _cells(column: Any) -> list[Any]:
    """What each value of a column is written as; `pd.NA` is an empty field."""
    kind = str(column.dtype)
    if kind in ("Float64", "Int64"):  # no number is a formula
        there = (~column.isna()).tolist()
        numbers = column.to_numpy(dtype=kind.lower(), na_value=0).tolist()
        return [
            repr(number) if known else pd.NA for number, known in zip(numbers, there, strict=True)
        ]
    if kind == "string":  # an id stands in every epoch of its run
        texts = column.to_numpy(dtype=object, na_value=pd.NA).tolist()
        once = {text: text if text is pd.NA else guarded(text) for text in set(texts)}
        return [once[text] for text in texts]
    return [value if value is pd.NA else guarded(spell(value)) for value in column]


def _parse(text: Any, dtype: str) -> Any:
    if not isinstance(text, str):
        return None
    if dtype == "boolean":
        return {"True": True, "False": False}.get(text)
    readers: dict[str, Callable[[str], Any]] = {
        "Int64": int,
        "Float64": float,
        "string": unguarded,
    }
    return readers[dtype](text)
