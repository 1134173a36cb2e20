"""Finished runs as one file that another results folder takes in, after checking all of it.

bundle.json                            format, schema, and size and SHA-256 of every other file
rows.csv                               the table of these runs
runs/<method>/<run_id>.json            records, each with its whole configuration
runs/<method>/<run_id>/card.json       cards of the tuned tasks
runs/<method>/<run_id>/predictions.npz on request

The same runs make the same bytes, without the paths, users and hosts of the machine that they ran
on (`peftbench.results.privacy`). A hash of every file finds what was damaged or edited; the run id
is a digest of the configuration, so that one which was changed has another id.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftbench._version import __version__
from peftbench.errors import StoreError
from peftbench.results.arithmetic import arithmetic
from peftbench.results.barrier import MOST_FILES, MOST_WAITING, barrier
from peftbench.results.bundles.contents import (
    CARD,
    EXTRA_NAME,
    PREDICTIONS,
    RECORD_NAME,
    ROWS,
    index_of,
    misfit,
    opened,
    read_file,
    sha256_of,
    short,
)
from peftbench.results.disk import writing
from peftbench.results.identity import run_id_of
from peftbench.results.locks import temporary_tag
from peftbench.results.predictions import (
    LONGEST_NAME,
    MOST_NAMES,
    UNREADABLE,
    has_names,
    predictions_of,
)
from peftbench.results.privacy import public
from peftbench.results.record import (
    SCHEMA,
    RunRecord,
    Status,
    method_of,
    parsed,
    preference,
)
from peftbench.results.store import ResultsStore
from peftbench.results.validation import check_plain
from peftbench.untrusted import (
    MOST_BYTES,
    printable,
    read_npz,
    unguarded,
)

BYTES_OF_IMAGE = 5 * 8  # of its predictions: five numbers, at most of 64 bits
SLACK = 1e-9  # of a recorded score, for sums in another order
BYTES_BESIDE = 64 * 2**10  # of the headers of these arrays and of the zip file around them
ROW_KEYS = ("run_id", "status", "method", "dataset", "seed", "phase", "top1", "loss")


@dataclass(frozen=True)
class Imported:
    """What became of the runs of a bundle, as run ids."""

    digest: str
    added: tuple[str, ...]
    present: tuple[str, ...]  # the same record was here already
    kept: tuple[str, ...]  # another record was here and stays


def import_results(
    path: Path | str, root: Path | str, *, keep: bool = False, dry_run: bool = False
) -> Imported:
    """Take the runs of a bundle into the results folder `root`, all of them or none.

    A finished run that is here with another result is a conflict and refuses the bundle; with
    `keep` the run that is here stays and the others come in. A failed run that is here gives way to
    a finished one, and never the other way round.

    Raises:
        StoreError: the file is no bundle, is of a newer format or schema, or was altered: a file
            that is missing, unlisted or of another hash, a record of another run id than its
            configuration has, a row or predictions that do not belong to their record; or a
            conflict.
    """
    path = Path(path)
    store = ResultsStore(root)
    with opened(path) as archive:
        index, raw = index_of(path, archive)
        records: dict[str, RunRecord] = {}
        fates: dict[str, str] = {}
        for name in index:  # everything, before anything is written
            data = read_file(path, archive, name, index)
            if RECORD_NAME.fullmatch(name):
                record = _record(path, data, name)
                fates[name] = _fate(store, record, data)
                records[name] = record
        _check_extras(path, archive, index, records)
        _check_rows(path, read_file(path, archive, ROWS, index), list(records.values()))
        clashes = [name for name, fate in fates.items() if fate == "conflict"]
        if clashes and not keep:
            raise StoreError(_conflicts(path, store, [records[name] for name in clashes]))
        added = [name for name, fate in fates.items() if fate == "new"]
        if added and not dry_run:
            with _staging(store) as folder:
                members = [member for name in added for member in (*_extras(index, name), name)]
                read = partial(read_file, path, archive, index=index)
                _stage(path, folder, {member: partial(read, member) for member in members})
                _move_in(store, folder, [records[name] for name in added])
    ids = {name: record.run_id for name, record in records.items()}
    return Imported(
        sha256_of(raw)[:16],
        tuple(ids[name] for name in added),
        tuple(ids[name] for name, fate in fates.items() if fate == "present"),
        tuple(ids[name] for name, fate in fates.items() if fate in ("kept", "conflict")),
    )


def _record(path: Path, data: bytes, name: str) -> RunRecord:
    """The record in one file of the bundle, which fits its name and its run id.

    Without its epochs, which are most of its memory; they are checked.
    """
    try:
        record = RunRecord.from_json(data.decode(), history=False)
        if not 1 <= record.schema <= SCHEMA:
            raise ValueError(
                f"its schema is {record.schema}, and peftbench {__version__} knows 1 to "
                f"{SCHEMA}; install a newer peftbench"
            )
        if name != f"runs/{method_of(record)}/{record.run_id}.json":
            raise ValueError(f"it holds run {record.run_id} of {method_of(record)}")
        if reason := misfit(record):
            raise ValueError(reason)
    except (*UNREADABLE, StoreError) as error:
        raise _refusal(path, name, error) from error
    return record


def _refusal(path: Path, name: str, error: BaseException) -> StoreError:
    reason = printable(str(error) or type(error).__name__).removesuffix(".")
    return StoreError(f"{path} is refused: {short(name)}: {reason}.")


def _check_extras(
    path: Path,
    archive: zipfile.ZipFile,
    index: Mapping[str, Any],
    records: Mapping[str, RunRecord],
) -> None:
    """Cards and predictions belong to a record of the bundle and say what it says."""
    for name in index:
        match = EXTRA_NAME.fullmatch(name)
        if not match:
            continue
        record = records.get(f"runs/{match[1]}/{match[2]}.json")
        if record is None:
            raise StoreError(f"{path} was altered: {short(name)} belongs to no record in it.")
        data = read_file(path, archive, name, index)
        check = _check_card if match[3] == CARD else _check_predictions
        try:
            check(data, record)
        except UNREADABLE as error:
            raise _refusal(path, name, error) from error


def _check_card(data: bytes, record: RunRecord) -> None:
    card = parsed(data)
    if not isinstance(card, dict):
        raise ValueError("it is no card but another kind of value")
    classes = card.get("classes", [])
    check_plain({key: value for key, value in card.items() if key != "classes"})
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    if card.get("run_id") != record.run_id:
        raise ValueError(f"it is the card of run {short(str(card.get('run_id')))}")
    spec = card.get("spec")
    if spec is not None and run_id_of(spec) != record.run_id:
        raise ValueError("it declares another configuration than its record")


def _check_predictions(data: bytes, record: RunRecord) -> None:
    """One prediction of each image of the record, with the scores that the record has."""
    import numpy as np

    images = _images(record)
    most = MOST_BYTES if images is None else min(MOST_BYTES, _most_predictions(data, images))
    arrays = read_npz(io.BytesIO(data), most)
    classes, labels = arrays["classes"], arrays["labels"]
    if classes.ndim != 1 or classes.shape != labels.shape or not len(labels):
        raise ValueError(f"its arrays have the shapes {classes.shape} and {labels.shape}")
    for metric in record.task.scores:
        recorded = record.reported(metric.name)
        if recorded is None and metric != record.judged_by:
            continue
        found, slack = metric.of(arrays), metric.rounding(arrays) + SLACK
        if recorded is None or not abs(recorded - found) <= slack:
            raise ValueError(f"its {metric.title} is {found}, and that of the record {recorded}")
    predictions = predictions_of(arrays)
    if images is not None and len(predictions.labels) != images:
        raise ValueError(f"it has {len(predictions.labels)} images, and the record {images}")
    for name in ("confidence", "margin"):
        array = getattr(predictions, name)
        if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1 + 1e-5).all()):
            raise ValueError(f"{name} is not within 0 and 1 everywhere")


def _images(record: RunRecord) -> int | None:
    """How many images were reported, where the record says it."""
    measured = record.reported("num_images")
    counted = record.provenance.data.get("report_images") if record.provenance else None
    return counted if measured is None else int(measured)


def _most_predictions(data: bytes, images: int) -> int:
    """Bytes that a file of predictions of so many images may unpack to."""
    names = min(MOST_NAMES, 4 * LONGEST_NAME * images) if has_names(data) else 0
    return images * BYTES_OF_IMAGE + names + BYTES_BESIDE


def _check_rows(path: Path, data: bytes, records: Sequence[RunRecord]) -> None:
    """`rows.csv` says of each run what its record says."""
    from peftbench.results.frame import frame
    from peftbench.results.table_files import csv_text

    def keys(text: str) -> list[tuple[str, ...]]:
        keys_of_rows = []
        for row in csv.DictReader(io.StringIO(text), strict=True):
            keys_of_rows.append(tuple(printable(unguarded(row.get(key) or "")) for key in ROW_KEYS))
            if len(keys_of_rows) > len(records):
                raise ValueError("more rows than records")
        return sorted(keys_of_rows)

    try:
        same = keys(data.decode()) == keys(csv_text(frame(records)))
    except (ValueError, TypeError, csv.Error):
        same = False
    if not same:
        raise StoreError(f"{path} was altered: {ROWS} does not say what its records say.")


def _fate(store: ResultsStore, record: RunRecord, data: bytes) -> str:
    """`new`, `present`, `kept` or `conflict`, by the record of the run that is here already."""
    here = store.get(record.run_id, method_of(record))
    if here is None:
        return "new"
    if _told(here) == _told(RunRecord.from_json(data)):
        return "present"
    if here.status is Status.OK and record.status is Status.OK:
        return "conflict"
    return "new" if preference(record) > preference(here) else "kept"


def _told(record: RunRecord) -> dict[str, Any]:
    """What both sides of a transfer have of a record."""
    return public(json.loads(record.to_json()))


def _conflicts(path: Path, store: ResultsStore, records: Sequence[RunRecord], most: int = 5) -> str:
    lines = []
    for record in records[:most]:
        here = store.get(record.run_id, method_of(record))
        ours, theirs = (one and one.score for one in (here, record))
        name = record.judged_by.name
        mine, other = (_arithmetic(one) for one in (here, record))
        there = f"{ours} here, {theirs} there"
        if mine != other:
            there = f"{ours} here in {mine}, {theirs} there in {other}"
        lines.append(f"{record.run_id} of {short(method_of(record))} ({name} {there})")
    more = f" and {len(records) - most} more" if len(records) > most else ""
    return (
        f"{path} is refused: {store.root} has other results of {len(records)} of its runs: "
        f"{', '.join(lines)}{more}. Import it into another folder to compare, or keep what is "
        "here with --keep."
    )


def _arithmetic(record: RunRecord | None) -> str:
    cost = record.cost if record else None
    return (arithmetic(cost.dtype, cost.device) if cost else "") or "unknown arithmetic"


def _extras(index: Mapping[str, Any], record_name: str) -> list[str]:
    """Names in the bundle of the files beside a record."""
    folder = record_name.removesuffix(".json")
    return [f"{folder}/{name}" for name in (CARD, PREDICTIONS) if f"{folder}/{name}" in index]


def _stage(path: Path, folder: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    """Write files into the staging folder; all of them are on the disk when this returns."""
    waiting: list[Path] = []
    size = 0
    for number, (name, read) in enumerate(files.items(), 1):
        data, target = read(), folder / name
        size += len(data)
        waiting.append(target)
        try:
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as file:
                    file.write(data)
                if len(waiting) == MOST_FILES or size >= MOST_WAITING or number == len(files):
                    barrier(waiting)
                    waiting, size = [], 0
        except StoreError as error:
            reason = getattr(error.__cause__, "strerror", None) or str(error)
            raise StoreError(
                f"{path} is not imported, none of its runs: {short(name)} cannot be written to "
                f"{folder.parent}: {reason}."
            ) from error


@contextmanager
def _staging(store: ResultsStore) -> Iterator[Path]:
    """A folder on the file system of the store, for files that all come in or none does."""
    there = store.root.exists()
    folder = store.root / f".import.{temporary_tag()}.part"
    done = False
    try:
        yield folder
        done = True
    except OSError as error:
        raise StoreError(
            f"{store.root} cannot be written: {error.strerror or error}. Nothing was imported. "
            "Free some space, choose another results folder or make this one writable."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not there and not done:  # as if nothing had been tried
            _remove_empty(store.root)


def _move_in(store: ResultsStore, folder: Path, records: Sequence[RunRecord]) -> None:
    """Put staged runs where they belong; whatever goes wrong, what was there before is there again.

    The record of a run comes last: one that is here has all its files. They are there to stay when
    this returns.
    """
    undo: list[Callable[[], object]] = []
    touched = {store.root, store.root.parent}
    try:
        for number, record in enumerate(records):
            method, run_id = method_of(record), record.run_id
            staged = folder / "runs" / method
            with store.claim(run_id, method, brief=True):
                artefacts = store.artefacts(record)
                new = artefacts if not artefacts.exists() else None
                if new is not None:
                    undo.append(partial(_rmdir, new))
                moves = [(staged / run_id / name, artefacts / name) for name in (CARD, PREDICTIONS)]
                moves.append((staged / f"{run_id}.json", store.path(method, run_id)))
                for source, target in moves:
                    if source.is_file():
                        touched |= {target.parent, target.parent.parent}
                        before = folder / "before" / f"{number}-{target.name}"
                        _replace(source, target, before, undo)
        barrier([], [store.runs, *sorted(touched)])
    except BaseException:
        for step in reversed(undo):
            with contextlib.suppress(OSError):
                step()
        for method in {method_of(record) for record in records}:
            _rmdir(store.runs / method)
        raise


def _replace(source: Path, target: Path, before: Path, undo: list[Callable[[], object]]) -> None:
    """Move a file over another one, which is kept until all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        before.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(target, before)
        undo.append(partial(os.replace, before, target))
    else:
        undo.append(partial(target.unlink, missing_ok=True))
    os.replace(source, target)


def _rmdir(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or not there
        folder.rmdir()


def _remove_empty(root: Path) -> None:
    """A results folder that was made for nothing: its locks alone are in it."""
    runs = root / "runs"
    with contextlib.suppress(OSError):
        for folder in runs.iterdir():
            if folder.is_dir():
                _rmdir(folder)
        if not any(path.is_dir() for path in runs.iterdir()):
            (runs / ".store.lock").unlink(missing_ok=True)
    for folder in (runs, root):
        _rmdir(folder)
