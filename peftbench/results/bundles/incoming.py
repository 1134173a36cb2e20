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
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from peftbench import __version__
from peftbench.errors import ConfigError, StoreError
from peftbench.results.arithmetic import arithmetic
from peftbench.results.identity import run_id_of
from peftbench.results.locks import temporary_tag
from peftbench.results.privacy import identified_paths, public
from peftbench.results.record import SCHEMA, RunRecord, Status, parsed
from peftbench.results.store import (
    UNREADABLE,
    ResultsStore,
    current,
    method_of,
    predictions_of,
    preference,
    write_atomic,
)
from peftbench.results.validation import check_plain
from peftbench.untrusted import (
    MOST_BYTES,
    MOST_RECORD,
    check_directory,
    check_plain_file,
    printable,
    read_bounded,
    read_member,
    read_npz,
    unguarded,
)

FORMAT = 1  # raised when a bundle is laid out in another way
INDEX, ROWS = "bundle.json", "rows.csv"
CARD, PREDICTIONS = "card.json", "predictions.npz"
RECORD_NAME = re.compile(r"runs/([^/\\.][^/\\]*)/([0-9a-f]{16})\.json")
EXTRA_NAME = re.compile(
    rf"runs/([^/\\.][^/\\]*)/([0-9a-f]{{16}})/({re.escape(CARD)}|{PREDICTIONS})"
)
MADE = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip file can hold: no date of its own
MOST_INDEX = 32 * 2**20  # bytes of the index of about 70,000 runs
MOST_ROW = 64 * 2**10  # bytes of one run in the table of a bundle
# bytes that a bundle of this many unpacks to; records and predictions shrink to a fifth
MOST_UNPACKED, MOST_RATIO = 64 * 2**20, 100
BYTES_OF_IMAGE = 4 * 8  # of its predictions: four numbers, at most of 64 bits
BYTES_BESIDE = 64 * 2**10  # of the headers of these arrays and of the zip file around them
SPLIT = {"final": "test", "tune": "val"}
ROW_KEYS = ("run_id", "status", "method", "dataset", "seed", "phase", "top1", "loss")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written."""

    path: Path
    runs: int
    digest: str  # of its index: the same on both sides of a transfer
    broken: tuple[StoreError, ...] = ()  # files of the store that are not readable records


@dataclass(frozen=True)
class Imported:
    """What became of the runs of a bundle, as run ids."""

    digest: str
    added: tuple[str, ...]
    present: tuple[str, ...]  # the same record was here already
    kept: tuple[str, ...]  # another record was here and stays


def export_results(
    root: Path | str,
    out: Path | str | None = None,
    where: Sequence[str] = (),
    *,
    predictions: bool = False,
) -> Bundle:
    """A bundle of the runs below `root` that meet `where` (`peftbench.results.frame.select`).

    `out` is `peftbench-results-<digest>.zip` in the working directory unless given.

    Raises:
        ConfigError: no run meets the conditions, or `out` exists with other contents.
        StoreError: a record is not what its run id says, or cannot be read or written.
    """
    from peftbench.results.frame import csv_text, frame, select

    store = ResultsStore(root)
    scan = store.scan(history=False)
    unfit: list[StoreError] = []
    records: dict[str, RunRecord] = {}
    files: dict[str, Callable[[], bytes]] = {}
    for record in current(scan.records):
        if reason := _unfit(store, record):
            path = store.path(method_of(record), record.run_id)
            unfit.append(StoreError(f"{path} cannot be exported: {reason}. Run it again."))
        else:
            records[record.run_id] = record
    rows = select(frame(map(_public, records.values())), where)
    if rows.empty:
        if unfit:
            raise unfit[0]
        wanted = f" has {' and '.join(where)}" if where else " is there"
        raise ConfigError(f"No run{wanted} in {store.runs}, so there is nothing to export.")
    files[ROWS] = csv_text(rows).encode
    for run_id in sorted(map(str, rows["run_id"])):
        record = records[run_id]
        method = method_of(record)
        files[f"runs/{method}/{run_id}.json"] = partial(_public_file, store.path(method, run_id))
        artefacts = store.artefacts(record)
        if (artefacts / CARD).is_file():
            files[f"runs/{method}/{run_id}/{CARD}"] = partial(_public_file, artefacts / CARD)
        if predictions and (artefacts / PREDICTIONS).is_file():
            read = partial(read_bounded, artefacts / PREDICTIONS)
            files[f"runs/{method}/{run_id}/{PREDICTIONS}"] = read
    content, index = _packed(files, len(rows))
    digest = _sha256(index)[:16]
    path = Path(f"peftbench-results-{digest}.zip") if out is None else Path(out)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name a file, such as --out {path / 'runs.zip'}.")
    if path.exists() and path.read_bytes() != content:
        raise ConfigError(f"{path} exists already. Remove it or choose another --out.")
    write_atomic(path, lambda file: file.write(content))
    return Bundle(path, len(rows), digest, (*scan.broken, *unfit))


def _unfit(store: ResultsStore, record: RunRecord) -> str | None:
    """Why a record cannot leave this machine, if it cannot."""
    path = store.path(method_of(record), record.run_id)
    if not path.is_file():
        return f"its record lies in the folder of another method than {method_of(record)!r}"
    if places := identified_paths(record.spec):
        return f"its run id is made from a path of this machine, {places[0]}"
    return _misfit(record)


def _public(record: RunRecord) -> RunRecord:
    """The record as it may leave this machine."""
    return RunRecord.from_json(json.dumps(public(json.loads(record.to_json()))))


def _public_file(path: Path) -> bytes:
    """A record or a card as it may leave this machine; as it is where it tells nothing."""
    data = read_bounded(path, MOST_RECORD)
    try:
        content = parsed(data)
        check_plain(content) if path.name == CARD else None
        told = public(content)
    except UNREADABLE as error:
        raise StoreError(f"{path} cannot be exported: {error}. Remove it.") from error
    if told == content:
        return data
    return (json.dumps(told, indent=1) + "\n").encode()


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
    with _opened(path) as archive:
        index, raw = _index(path, archive)
        records: dict[str, RunRecord] = {}
        fates: dict[str, str] = {}
        for name in index:  # everything, before anything is written
            data = _read(path, archive, name, index)
            if RECORD_NAME.fullmatch(name):
                record = _record(path, data, name)
                fates[name] = _fate(store, record)
                records[name] = dataclasses.replace(record, history=[])  # most of its memory
        _check_extras(path, archive, index, records)
        _check_rows(path, _read(path, archive, ROWS, index), list(records.values()))
        clashes = [name for name, fate in fates.items() if fate == "conflict"]
        if clashes and not keep:
            raise StoreError(_conflicts(path, store, [records[name] for name in clashes]))
        added = [name for name, fate in fates.items() if fate == "new"]
        if added and not dry_run:
            with _staging(store) as folder:
                for name in added:
                    for member in (*_extras(index, name), name):
                        data = _read(path, archive, member, index)
                        _stage(path, folder, member, data)
                _move_in(store, folder, [records[name] for name in added])
    ids = {name: record.run_id for name, record in records.items()}
    return Imported(
        _sha256(raw)[:16],
        tuple(ids[name] for name in added),
        tuple(ids[name] for name, fate in fates.items() if fate == "present"),
        tuple(ids[name] for name, fate in fates.items() if fate in ("kept", "conflict")),
    )


def _packed(files: Mapping[str, Callable[[], bytes]], runs: int) -> tuple[bytes, bytes]:
    """The zip file and its index."""
    listed: dict[str, dict[str, Any]] = {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, MADE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # alike on every system
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        for name, read in files.items():
            try:
                data = read()
            except OSError as error:
                raise StoreError(f"{name} cannot be read: {error.strerror}.") from error
            listed[name] = {"sha256": _sha256(data), "bytes": len(data)}
            put(name, data)
        about = {"format": FORMAT, "schema": SCHEMA, "peftbench": __version__, "runs": runs}
        index = (json.dumps({**about, "files": listed}, indent=1) + "\n").encode()
        put(INDEX, index)
    return buffer.getvalue(), index


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        try:
            check_plain_file(path)
            file = stack.enter_context(open(path, "rb"))
            check_directory(file)
            archive = stack.enter_context(zipfile.ZipFile(file))
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"{path} cannot be read as a bundle of results: {printable(str(reason))}."
            ) from error
        try:
            yield archive
        except UNREADABLE as error:
            raise StoreError(
                f"{path} is damaged or encrypted: {printable(str(error))}. Copy it again."
            ) from error


def _index(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, Any], bytes]:
    """What the bundle lists, checked against what it holds, and the bytes of the index."""
    names = [info.filename for info in archive.infolist()]
    if INDEX not in names:
        raise StoreError(
            f"{path} holds no {INDEX}, so it is no bundle of results. "
            "`peftbench export-results` writes one."
        )
    try:
        raw = read_member(archive, INDEX, MOST_INDEX)
        about = parsed(raw)
        listed = dict(about["files"])
        versions = {key: _integer(about, key) for key in ("format", "schema")}
        runs = _integer(about, "runs")
        sizes = [_integer(entry, "bytes") for entry in listed.values()]
        if not all(isinstance(entry["sha256"], str) for entry in listed.values()):
            raise ValueError("a hash is no text")
    except (zipfile.BadZipFile, EOFError) as error:
        raise StoreError(f"{path} is damaged: {error}. Copy it again.") from error
    except UNREADABLE as error:
        raise StoreError(
            f"{path} was altered: its {INDEX} cannot be read ({printable(str(error))})."
        ) from error
    for (name, version), known in zip(versions.items(), (FORMAT, SCHEMA), strict=True):
        if not 1 <= version <= known:
            raise StoreError(
                f"{path} has {name} {version}, written by peftbench "
                f"{printable(str(about.get('peftbench')))[:40]}; "
                f"peftbench {__version__} knows {name} 1 to {known}. Install a newer peftbench."
            )
    if sorted(names) != sorted([*listed, INDEX]):
        odd = sorted(set(names) ^ {*listed, INDEX}) or ["a name that is there twice"]
        raise StoreError(
            f"{path} was altered: {_short(odd[0])} is in it or in its list, but not in both."
        )
    strange = [
        name
        for name in listed
        if name != ROWS and not RECORD_NAME.fullmatch(name) and not EXTRA_NAME.fullmatch(name)
    ]
    if strange or ROWS not in listed:
        odd_name = _short((strange or [ROWS])[0])
        raise StoreError(f"{path} was altered: '{odd_name}' does not belong there.")
    if runs != sum(bool(RECORD_NAME.fullmatch(name)) for name in listed):
        raise StoreError(f"{path} was altered: it does not hold the {runs} runs that it announces.")
    most = max(MOST_UNPACKED, MOST_RATIO * path.stat().st_size)
    if sum(sizes) > most:
        raise StoreError(
            f"{path} is refused: it unpacks to {sum(sizes) / 2**20:,.0f} MB, more than "
            f"{most / 2**20:,.0f} MB, which no bundle of its size does."
        )
    return listed, raw


def _integer(about: Mapping[str, Any], key: str) -> int:
    value = about[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {_short(repr(value))}, not a count")
    return value


def _short(text: str) -> str:
    """A name of somebody else's for a message."""
    text = printable(text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _read(path: Path, archive: zipfile.ZipFile, name: str, index: Mapping[str, Any]) -> bytes:
    """One file of the bundle, of the size and hash that its index says."""
    size, sha256 = index[name]["bytes"], index[name]["sha256"]
    runs = sum(1 for listed in index if RECORD_NAME.fullmatch(listed)) if name == ROWS else 0
    most = (
        MOST_ROW * (runs + 1)
        if name == ROWS
        else MOST_BYTES
        if name.endswith(PREDICTIONS)
        else MOST_RECORD
    )
    if size > most or archive.getinfo(name).file_size != size:
        raise StoreError(
            f"{path} was altered: {_short(name)} does not have the size that {INDEX} says, or more "
            "than any such file."
            if size > most
            else f"{path} was altered: {_short(name)} does not have the size that {INDEX} says."
        )
    data = read_member(archive, name, most)
    if _sha256(data) != sha256:
        raise StoreError(f"{path} was altered: the hash of {_short(name)} is not that in {INDEX}.")
    return data


def _record(path: Path, data: bytes, name: str) -> RunRecord:
    """The record in one file of the bundle, which fits its name and its run id."""
    try:
        record = RunRecord.from_json(data.decode())
        if not 1 <= record.schema <= SCHEMA:
            raise ValueError(
                f"its schema is {record.schema}, and peftbench {__version__} knows 1 to "
                f"{SCHEMA}; install a newer peftbench"
            )
        if name != f"runs/{method_of(record)}/{record.run_id}.json":
            raise ValueError(f"it holds run {record.run_id} of {method_of(record)}")
        if reason := _misfit(record):
            raise ValueError(reason)
    except (*UNREADABLE, StoreError) as error:
        raise _refusal(path, name, error) from error
    return record


def _refusal(path: Path, name: str, error: BaseException) -> StoreError:
    told = printable(str(error) or type(error).__name__).removesuffix(".")
    return StoreError(f"{path} is refused: {_short(name)}: {told}.")


def _misfit(record: RunRecord) -> str | None:
    """Why a record does not belong to its run id, if it does not."""
    try:
        expected = run_id_of(record.spec)
    except UNREADABLE as error:
        return str(error)
    if expected != record.run_id:
        return f"its configuration has run id {expected}, so one of them was changed"
    return None


def _check_extras(
    path: Path,
    archive: zipfile.ZipFile,
    index: Mapping[str, Any],
    records: Mapping[str, RunRecord],
) -> None:
    """Cards and predictions belong to a record of the bundle and say what it says."""
    for name in index:
        found = EXTRA_NAME.fullmatch(name)
        if not found:
            continue
        record = records.get(f"runs/{found[1]}/{found[2]}.json")
        if record is None:
            raise StoreError(f"{path} was altered: {_short(name)} belongs to no record in it.")
        data = _read(path, archive, name, index)
        check = _check_card if found[3] == CARD else _check_predictions
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
        raise ValueError(f"it is the card of run {_short(str(card.get('run_id')))}")
    spec = card.get("spec")
    if spec is not None and run_id_of(spec) != record.run_id:
        raise ValueError("it declares another configuration than its record")


def _check_predictions(data: bytes, record: RunRecord) -> None:
    """One prediction of each image of the record, with the accuracy that the record has."""
    import numpy as np

    images = _images(record)
    most = MOST_BYTES if images is None else min(MOST_BYTES, _most_predictions(images))
    arrays = read_npz(io.BytesIO(data), most)
    classes, labels = arrays["classes"], arrays["labels"]
    if classes.ndim != 1 or classes.shape != labels.shape or not len(labels):
        raise ValueError(f"its arrays have the shapes {classes.shape} and {labels.shape}")
    accuracy = float(np.mean(classes == labels))
    recorded = record.metrics.get(f"{SPLIT.get(str(record.spec.get('phase')), 'test')}/top1")
    if recorded is None or abs(recorded - accuracy) > 1e-9:
        raise ValueError(f"its accuracy is {accuracy}, and that of the record {recorded}")
    made = predictions_of(arrays)
    if images is not None and len(made.labels) != images:
        raise ValueError(f"it has {len(made.labels)} images, and the record {images}")
    for name in ("confidence", "margin"):
        array = getattr(made, name)
        if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1 + 1e-5).all()):
            raise ValueError(f"{name} is not within 0 and 1 everywhere")


def _images(record: RunRecord) -> int | None:
    """How many images were reported, where the record says it."""
    measured = record.metrics.get(f"{SPLIT.get(str(record.spec.get('phase')), 'test')}/num_images")
    counted = record.provenance.data.get("report_images") if record.provenance else None
    return counted if measured is None else int(measured)


def _most_predictions(images: int) -> int:
    return images * BYTES_OF_IMAGE + BYTES_BESIDE


def _check_rows(path: Path, data: bytes, records: Sequence[RunRecord]) -> None:
    """`rows.csv` says of each run what its record says."""
    from peftbench.results.frame import csv_text, frame

    def keys(text: str) -> list[tuple[str, ...]]:
        found = []
        for row in csv.DictReader(io.StringIO(text), strict=True):
            found.append(tuple(printable(unguarded(row.get(key) or "")) for key in ROW_KEYS))
            if len(found) > len(records):
                raise ValueError("more rows than records")
        return sorted(found)

    try:
        same = keys(data.decode()) == keys(csv_text(frame(records)))
    except (ValueError, TypeError, csv.Error):
        same = False
    if not same:
        raise StoreError(f"{path} was altered: {ROWS} does not say what its records say.")


def _fate(store: ResultsStore, record: RunRecord) -> str:
    """`new`, `present`, `kept` or `conflict`, by the record of the run that is here already."""
    here = store.get(record.run_id, method_of(record))
    if here is None:
        return "new"
    if _told(here) == _told(record):
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
        ours, theirs = (_top1(one) for one in (here, record))
        mine, other = (_arithmetic(one) for one in (here, record))
        there = f"{ours} here, {theirs} there"
        if mine != other:
            there = f"{ours} here in {mine}, {theirs} there in {other}"
        lines.append(f"{record.run_id} of {_short(method_of(record))} (top1 {there})")
    more = f" and {len(records) - most} more" if len(records) > most else ""
    return (
        f"{path} is refused: {store.root} has other results of {len(records)} of its runs: "
        f"{', '.join(lines)}{more}. Import it into another folder to compare, or keep what is "
        "here with --keep."
    )


def _top1(record: RunRecord | None) -> float | None:
    metrics = record.metrics if record else {}
    return metrics.get("test/top1", metrics.get("val/top1"))


def _arithmetic(record: RunRecord | None) -> str:
    cost = record.cost if record else None
    return (arithmetic(cost.dtype, cost.device) if cost else "") or "unknown arithmetic"


def _extras(index: Mapping[str, Any], record_name: str) -> list[str]:
    """Names in the bundle of the files beside a record."""
    folder = record_name.removesuffix(".json")
    return [f"{folder}/{name}" for name in (CARD, PREDICTIONS) if f"{folder}/{name}" in index]


def _stage(path: Path, folder: Path, name: str, data: bytes) -> None:
    try:
        write_atomic(folder / name, partial(_write, data))
    except StoreError as error:
        reason = getattr(error.__cause__, "strerror", None) or str(error)
        raise StoreError(
            f"{path} is not imported, none of its runs: {_short(name)} cannot be written to "
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

    The record of a run comes last: one that is here has all its files.
    """
    undo: list[Callable[[], object]] = []
    try:
        for number, record in enumerate(records):
            method, run_id = method_of(record), record.run_id
            staged = folder / "runs" / method
            with store.claim(run_id, method):
                artefacts = store.artefacts(record)
                new = artefacts if not artefacts.exists() else None
                if new is not None:
                    undo.append(partial(_rmdir, new))
                moves = [(staged / run_id / name, artefacts / name) for name in (CARD, PREDICTIONS)]
                moves.append((staged / f"{run_id}.json", store.path(method, run_id)))
                for source, target in moves:
                    if source.is_file():
                        before = folder / "before" / f"{number}-{target.name}"
                        _replace(source, target, before, undo)
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


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
