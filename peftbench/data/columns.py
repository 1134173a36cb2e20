"""Which columns of a list say what: paths, labels, and the split under any of its usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftbench.data import roles
from peftbench.errors import DataError

SPLIT_COLUMN = "split"
# a column of this name is told of, or refused, where it is no split that can be used
LIKE_SPLITS = frozenset(
    (
        *("set", "sets", "subset", "fold", "folds", "kfold", "partition", "part", "phase", "usage"),
        *("splits", "split name", "dataset split", "data split", "split set", "train test split"),
        *("train test", "train val test", "train test val", "data set", "data type", "stage", "cv"),
    )
)
# yes means train, or test
YES_IS = {
    **dict.fromkeys(("is train", "train", "training", "is training", "training img"), "train"),
    **dict.fromkeys(("is training img", "is training image", "in train", "for training"), "train"),
    **dict.fromkeys(("is test", "test", "testing", "is testing", "in test", "for test"), "test"),
}
BOOLEANS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "y", "t"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "n", "f"), False),
}
SHOWN = 4  # values that a line names


@dataclass(frozen=True)
class SplitColumn:
    """Where the splits of a list stand: a column and what its values mean; or none."""

    column: int | None = None
    roles: Mapping[str, str] | None = None  # by the value, stripped
    remarks: tuple[str, ...] = ()


def split_column(
    names: Sequence[str],
    rows: Sequence[tuple[int, Sequence[str]]],
    others: Sequence[int],
    where: str,
) -> SplitColumn:
    """The column that says which split a row is in, `others` than those of paths and labels.

    Args:
        names: of all columns, in small letters.
        rows: cells below the header, with their lines.

    Raises:
        DataError: a column is one of splits by its name or values, and some value is none.
    """
    if SPLIT_COLUMN in names:
        column = names.index(SPLIT_COLUMN)
        return SplitColumn(column, _named_split(column, rows, where))
    splitting: dict[int, dict[str, str]] = {}
    remarks: list[str] = []
    for column in others:
        values = list(dict.fromkeys(cells[column].strip() for _, cells in rows))
        meant = _meaning(names[column], values)
        missing = [value for value in values if value not in meant]
        used = set(meant.values())
        if meant and not missing and "train" in used and len(used) > 1:
            splitting[column] = meant
        elif {"train", "test"} <= used or (_like_split(names[column]) and "train" in used):
            _check_complete(names[column], column, missing, rows, where)
        elif _like_split(names[column]) and len(values) > 1:
            remarks.append(_unread(names[column], values))
    if len(splitting) > 1 and len({_assignment(c, m, rows) for c, m in splitting.items()}) > 1:
        named = " and ".join(repr(names[column]) for column in splitting)
        raise DataError(
            f"{where}: columns {named} say different things of the splits. Rename the one that is "
            "meant to split, or remove the others."
        )
    for column, meant in splitting.items():
        meanings = ", ".join(f"{value!r} is {role}" for value, role in list(meant.items())[:SHOWN])
        return SplitColumn(
            column,
            meant,
            (f"Splits are those of its column {names[column]!r}: {meanings}.", *remarks),
        )
    return SplitColumn(remarks=tuple(remarks))


def _named_split(
    column: int, rows: Sequence[tuple[int, Sequence[str]]], where: str
) -> dict[str, str]:
    meant: dict[str, str] = {}
    for line, cells in rows:
        value = cells[column].strip()
        role = roles.role(value)
        if role is None:
            raise DataError(
                f"{where}, line {line}: {value!r} is no split. Use one of: train, test, "
                f"{', '.join(roles.WORDS['val'][:3])}."
            )
        meant[value] = role
    return meant


def _plain(name: str) -> str:
    return " ".join(roles.words(name.replace("-", " ")))


def _like_split(name: str) -> bool:
    plain = _plain(name)
    return plain in LIKE_SPLITS or plain in YES_IS or "split" in plain.split()


def _meaning(name: str, values: Sequence[str]) -> dict[str, str]:
    """What the values of a column mean, those that mean no split left out."""
    yes = YES_IS.get(_plain(name))
    if yes is not None and all(value.casefold() in BOOLEANS for value in values):
        no = "test" if yes == "train" else "train"
        return {value: yes if BOOLEANS[value.casefold()] else no for value in values}
    meanings = ((value, roles.role(value)) for value in values)
    return {value: role for value, role in meanings if role is not None}


def _check_complete(
    name: str,
    column: int,
    missing: Sequence[str],
    rows: Sequence[tuple[int, Sequence[str]]],
    where: str,
) -> None:
    """Refuse a column of splits with values that are none."""
    if not missing:
        return  # train alone, of all: nothing is split by it
    line = next(line for line, cells in rows if cells[column].strip() == missing[0])
    raise DataError(
        f"{where}, line {line}: column {name!r} names splits, and {missing[0]!r} is none. Write "
        "train, val or test there, remove the line, or rename the column to have all three drawn."
        if not _like_split(name)
        else f"{where}, line {line}: column {name!r} names splits, and {missing[0]!r} is none. "
        "Write train, val or test there, or remove the line or the column."
    )


def _unread(name: str, values: Sequence[str]) -> str:
    examples = ", ".join(map(repr, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
    return (
        f"Its column {name!r} ({examples}) names no train and test and is not read, so images that "
        "belong together there may be in different splits. Write train, val and test into a "
        "column split to split by it."
    )


def _assignment(
    column: int, meant: Mapping[str, str], rows: Sequence[tuple[int, Sequence[str]]]
) -> tuple[str, ...]:
    return tuple(meant[cells[column].strip()] for _, cells in rows)
