"""Whether what a file says of a run can be what a run is: types, ranges, finite numbers, sizes.

Types come from the annotations of the dataclasses that a record and its `spec` are made of, so a
new field is checked as soon as it is declared. A float may be `None`: that is what a value that is
not finite is recorded as. Keys that no dataclass knows may hold any plain value.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from operator import itemgetter
from typing import Any

from peftbench.spec import (
    SPLIT_OF_PHASE,
    BackboneSpec,
    DatasetSpec,
    Phase,
    Precision,
    Preprocessing,
    PreprocessingSpec,
    Protocol,
    Recipe,
    Selection,
)
from peftbench.tasks import CLASSIFICATION, TASKS, judged_by, task_of
from peftbench.untrusted import printable

DEEPEST = 32  # lists and mappings within one another
LARGEST = 2**63 - 1  # what a column of integers holds
MOST_VALUES = 100_000  # of one record outside its epochs; real ones have about 200
MOST_SETTINGS = 256  # of one part of a spec, each of which a table may compare with each other
LONGEST_NAME = 143  # bytes of a file name in an encrypted home folder; elsewhere 255
SLACK = 1e-9  # by which rounding may take a mean of fractions above 1
# parts of a spec by the dataclass that declares them; the method has a form of its own
SPEC_PARTS: Mapping[str, Any] = {
    "backbone": BackboneSpec,
    "dataset": DatasetSpec,
    "preprocessing": PreprocessingSpec,
    "recipe": Recipe,
    "selection": Selection,
    "protocol": Protocol,
}
NAMED = ("method", "backbone", "dataset")  # parts of a spec without whose name there is no run

Check = Callable[[Any, str], None]


def check_record(raw: Mapping[str, Any], kind: Any, epoch: Any) -> None:
    """Refuse what cannot be the values of a record; `kind` and `epoch` are its dataclasses.

    Raises:
        ValueError: one clause that names the field, what it holds and what belongs there.
    """
    epochs = raw.get("history") or []
    rest = {key: value for key, value in raw.items() if key != "history"}
    _plain(rest)
    _dataclass(kind)(rest, "")
    if not isinstance(epochs, list):
        raise ValueError(f"history is {_told(epochs)}, not a list")
    _check_epochs(epochs, epoch)
    _check_spec(raw["spec"])
    _check_numbers(raw)
    for name in ("started", "finished"):
        _check_time(raw.get(name) or "", name)
    _check_time((raw.get("cost") or {}).get("latency_measured") or "", "cost.latency_measured")


def check_plain(value: Any) -> None:
    """Refuse numbers that are not finite or too large, and lists that lie too deep.

    Raises:
        ValueError: it is no plain value of bounded size.
    """
    _plain(value)


def _check_spec(spec: Mapping[str, Any]) -> None:
    for name, kind in SPEC_PARTS.items():
        if spec.get(name) is not None:
            _dataclass(kind)(spec[name], f"spec.{name}")
    for name in NAMED:
        _check_named(spec.get(name), f"spec.{name}")
    method = spec["method"]
    _check_folder_name(method["name"], "spec.method.name")
    if not isinstance(method.get("hyperparameters", {}), dict):
        raise ValueError("spec.method.hyperparameters is not a mapping")
    for part in ("recipe", "dataset", "preprocessing"):
        _check_settings(spec.get(part) or {}, f"spec.{part}")
    _check_settings(method.get("hyperparameters", {}), "spec.method.hyperparameters")
    _check_natural(method.get("version", 1), "spec.method.version")
    _check_natural(spec.get("seed"), "spec.seed")
    if type(task := spec.get("task", CLASSIFICATION.name)) is not str or task not in TASKS:
        raise ValueError(f"spec.task is {_told(task)}, and there are {', '.join(TASKS)}")
    _check_metric(spec)
    for key, known in (("phase", Phase), ("precision", Precision)):
        if key in spec and (type(spec[key]) is not str or spec[key] not in _names(known)):
            names = ", ".join(known)
            raise ValueError(f"spec.{key} is {_told(spec[key])}, and there are {names}")
    least_values = (("dataset", "limit", 1), ("dataset", "folds", 2), ("dataset", "fold", 0))
    for where, key, least in (*least_values, ("recipe", "epochs", 0)):
        value = (spec.get(where) or {}).get(key)
        if value is not None and value < least:
            raise ValueError(f"spec.{where}.{key} is {_told(value)}, below {least}")


def _check_metric(spec: Mapping[str, Any]) -> None:
    metric = (spec.get("selection") or {}).get("metric")
    known = [one.name for one in task_of(spec).scores]
    if metric is not None and metric not in known:
        raise ValueError(
            f"spec.selection.metric is {_told(metric)}, and there are {', '.join(known)}"
        )


def _check_named(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise ValueError(f"{where} is {_told(part)}, not a mapping with a name")
    if not isinstance(part.get("name"), str) or not part["name"]:
        raise ValueError(f"{where}.name is {_told(part.get('name'))}, not a name")


def _check_folder_name(name: str, where: str) -> None:
    if (
        name.startswith(".")
        or set("/\\") & set(name)
        or printable(name) != name
        or len(name.encode()) > LONGEST_NAME
    ):
        raise ValueError(f"{where} is {_told(name)}, which cannot be that of a folder")


def _check_natural(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"{where} is {_told(value)}, not an integer of at least 0")


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    if len(settings) > MOST_SETTINGS:
        raise ValueError(f"{where} has {len(settings):,} entries, more than {MOST_SETTINGS}")


def _check_numbers(raw: Mapping[str, Any]) -> None:
    """Ranges of what was measured, and that a run which ended well has measured something."""
    metrics = raw.get("metrics") or {}
    task = task_of(raw["spec"])
    trained = (f"{part}_{metric.name}" for part in ("val", "train") for metric in task.scores)
    fractions = task.fractions | {"accuracy", *trained}
    for name, value in metrics.items():
        if value is not None and not _measured(name.rpartition("/")[2], value, fractions):
            raise ValueError(f"metrics[{_told(name)}] is {value}, which it cannot be")
    for where in ("merge", "reload", "tuning"):
        for name, value in (raw.get(where) or {}).items():
            if name in fractions and value is not None:
                _check_fraction(value, f"{where}.{name}")
    _check_looks(raw.get("looks") or {})
    for where in ("parameters", "cost"):
        for name, value in (raw.get(where) or {}).items():
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{where}.{name} is {value}, below 0")
    for where, name in _COUNTS:
        _check_count((raw.get(where) or {}).get(name), f"{where}.{name}")
    _check_origin(raw.get("provenance") or {})
    split = SPLIT_OF_PHASE.get(raw["spec"].get("phase"))
    name = f"{split}/{judged_by(raw['spec']).name}"
    if raw["status"] == "OK" and split is not None and metrics.get(name) is None:
        raise ValueError(f"its status is OK, and it has no {name} among its metrics")


def _check_looks(looks: Mapping[str, Any]) -> None:
    """Score by epoch."""
    for epoch, value in looks.items():
        if not (epoch.isascii() and epoch.isdecimal()):
            raise ValueError(f"looks has the epoch {_told(epoch)}")
        if value is not None:
            _check_fraction(value, f"looks[{epoch}]")


def _check_origin(origin: Mapping[str, Any]) -> None:
    _dataclass(Preprocessing)(origin.get("preprocessing") or {}, "provenance.preprocessing")
    data = origin.get("data") or {}
    for name in ("train_images", "report_images", "classes"):
        _check_count(data.get(name), f"provenance.data.{name}")


def _check_count(value: Any, where: str) -> None:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"{where} is {_told(value)}, not a count")


@cache
def _names(known: type[StrEnum]) -> frozenset[str]:
    return frozenset(map(str, known))


_COUNTS = (("tuning", "trials"), ("tuning", "epochs"))


def _measured(name: str, value: float, fractions: frozenset[str]) -> bool:
    """Whether a metric of this name can have this value: a fraction, a loss, a count."""
    if name in fractions:
        return 0 <= value <= 1 + SLACK
    return value >= 0 and (name != "num_images" or (value <= LARGEST and value == int(value)))


def _check_fraction(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is {_told(value)}, not a number")
    if not 0 <= value <= 1 + SLACK:
        raise ValueError(f"{where} is {value}, not within 0 and 1")


def _check_epochs(epochs: list[Any], kind: Any) -> None:
    """Column by column: of a long training the epochs are most of the record."""
    names, row_of = _columns(kind)
    try:
        columns = dict(zip(names, zip(*map(row_of, epochs), strict=True), strict=False))
    except (KeyError, TypeError) as e:
        raise ValueError("not a run record: an epoch lacks a number") from e
    for name, column in columns.items():
        kinds = set(map(type, column))
        if type(None) in kinds and name != "epoch":  # as which infinity is recorded
            column = tuple(value for value in column if value is not None)
            kinds = set(map(type, column))
        if not kinds <= ({int} if name == "epoch" else {int, float}):
            wanted = (int,) if name == "epoch" else (int, float)
            odd = next(value for value in column if type(value) not in wanted)
            raise ValueError(f"{name} of an epoch is {_told(odd)}, not a number")
        low, high = _EPOCH_RANGES[name]
        if kinds and not (low <= min(column) and max(column) <= high):
            odd = next(value for value in column if not low <= value <= high)
            raise ValueError(f"{name} of an epoch is {_told(odd)}, not within {low} and {high:g}")
    if max(map(len, epochs), default=0) > len(names):
        for row in epochs:
            _plain(row)  # keys of a newer writer


@cache
def _columns(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """Names of the fields of a dataclass, and what takes them out of a mapping."""
    names = tuple(field.name for field in fields(kind))
    return names, itemgetter(*names)


_EPOCH_RANGES = {
    "epoch": (0, LARGEST),
    "loss": (-1e300, 1e300),
    "accuracy": (0, 1 + SLACK),
    "lr": (0, 1e300),
    "seconds": (0, 1e300),
}


def _check_time(text: str, where: str) -> None:
    if text:
        try:
            datetime.fromisoformat(text)
        except ValueError as e:
            raise ValueError(f"{where} is {_told(text)}, not an ISO 8601 time") from e


def _plain(value: Any) -> None:
    """Walk over all values, level by level: no recursion that a deep file could exhaust."""
    level, seen = [value], 0
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:  # half of them
                continue
            if kind is dict:
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is float:
                if item - item != 0.0:
                    raise ValueError(f"it holds {item}, which is no finite number")
            elif kind is int and not -LARGEST <= item <= LARGEST:
                raise ValueError("it holds an integer of more than 63 bits")
        seen += len(below)
        if seen > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values outside its epochs")
        if not below:
            return
        level = below
    raise ValueError(f"it has more than {DEEPEST} lists and mappings within one another")


@cache
def _dataclass(kind: Any) -> Check:
    """A check of a mapping against the annotations of a dataclass; unknown keys pass."""
    hints = typing.get_type_hints(kind)
    known = {
        field.name: (_types(hints[field.name]), _annotated(hints[field.name]))
        for field in fields(kind)
    }
    # what any value fits needs no look
    checks = {name: pair for name, pair in known.items() if pair[1] is not _anything}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_told(value)}, not a mapping")
        for name, item in value.items():
            if name in checks:
                fast, thorough = checks[name]
                if type(item) not in fast:
                    thorough(item, f"{where}.{name}" if where else name)

    return check


def _types(hint: Any) -> frozenset[type]:
    """Types of plain values that fit an annotation without a look inside."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return frozenset().union(*map(_types, arguments))
    if hint is float:
        return frozenset((float, int, type(None)))
    if hint is Any:
        return frozenset((dict, list, str, int, float, bool, type(None)))
    if origin in (dict, list) and arguments[-1] is Any:
        return frozenset((origin,))
    return frozenset((hint,)) if hint in (int, str, bool, type(None)) else frozenset()


@cache
def _annotated(hint: Any) -> Check:
    """A check of one value against an annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _anything
    if origin in (types.UnionType, typing.Union):
        checks = tuple(_annotated(one) for one in arguments if one is not type(None))
        # `None` is among the types that need no look
        return checks[0] if len(checks) == 1 else _one_of(checks)
    if origin in (list, tuple):
        fast, inner = _types(arguments[0]), _annotated(arguments[0])
        return lambda value, where: _each(value, where, fast, inner)
    if origin is dict:
        fast, inner = _types(arguments[1]), _annotated(arguments[1])
        return lambda value, where: _every(value, where, fast, inner)
    if is_dataclass(hint):
        return _dataclass(typing.cast(Any, hint))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        known = frozenset(map(str, hint))
        return lambda value, where: _among(value, where, known)
    simple = _types(hint)
    return lambda value, where: _of(value, where, simple, _words(hint))


def _anything(value: Any, where: str) -> None:
    """`Any`: what `_plain` has walked over."""


def _one_of(checks: tuple[Check, ...]) -> Check:
    def check(value: Any, where: str) -> None:
        refusal: ValueError | None = None
        for one in checks:
            try:
                return one(value, where)
            except ValueError as e:
                refusal = refusal or e
        raise refusal or ValueError(f"{where} is {_told(value)}")

    return check


def _each(value: Any, where: str, fast: frozenset[Any], check: Check) -> None:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} is {_told(value)}, not a list")
    for number, item in enumerate(value, 1):
        if type(item) not in fast:
            check(item, f"{where}[{number}]")


def _every(value: Any, where: str, fast: frozenset[Any], check: Check) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_told(value)}, not a mapping")
    if not fast.issuperset(map(type, value.values())):
        for name, item in value.items():
            check(item, f"{where}[{_told(name)}]")


def _among(value: Any, where: str, known: frozenset[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{where} is {_told(value)}, not one of {', '.join(sorted(known))}")


def _of(value: Any, where: str, simple: frozenset[type], words: str) -> None:
    if type(value) not in simple:
        raise ValueError(f"{where} is {_told(value)}, not {words}")


def _words(hint: Any) -> str:
    known: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "a switch"}
    return known.get(hint, "empty")


def _told(value: Any) -> str:
    """An odd value in a few characters."""
    if isinstance(value, Mapping | list | tuple):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    if value is None:
        return "missing"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return "an integer of more than 63 bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
