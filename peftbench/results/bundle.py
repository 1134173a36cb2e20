"""Finished runs as one file that another results folder takes in, after checking all of it.

bundle.json                            format, schema, and size and SHA-256 of every other file
rows.csv                               the table of these runs
runs/<method>/<run_id>.json            records, each with its whole configuration
runs/<method>/<run_id>/card.json       cards of the tuned tasks
runs/<method>/<run_id>/predictions.npz on request

The same runs make the same bytes. A hash of every file finds what was damaged or edited; the run id
is a digest of the configuration, so that one which was changed has another id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
import zlib
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
from peftbench.results.record import SCHEMA, RunRecord, Status
from peftbench.results.store import ResultsStore, current, method_of, preference, write_atomic

FORMAT = 1  # raised when a bundle is laid out in another way
INDEX, ROWS = "bundle.json", "rows.csv"
CARD, PREDICTIONS = "card.json", "predictions.npz"
RECORD_NAME = re.compile(r"runs/([^/\\.][^/\\]*)/([0-9a-f]{16})\.json")
EXTRA_NAME = re.compile(
    rf"runs/([^/\\.][^/\\]*)/([0-9a-f]{{16}})/({re.escape(CARD)}|{PREDICTIONS})"
)
MADE = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip file can hold: no date of its own
LARGEST = 256 * 2**20  # bytes of one file, far above any record, card or predictions
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
    scan = store.scan()
    rows = select(frame(scan.records), where)
    if rows.empty:
        wanted = f" has {' and '.join(where)}" if where else " is there"
        raise ConfigError(f"No run{wanted} in {store.runs}, so there is nothing to export.")
    records = {record.run_id: record for record in current(scan.records)}
    files: dict[str, Callable[[], bytes]] = {ROWS: csv_text(rows).encode}
    for run_id in sorted(map(str, rows["run_id"])):
        record = records[run_id]
        method = method_of(record)
        path = store.path(method, run_id)
        if reason := _misfit(record):
            raise StoreError(f"{path} cannot be exported: {reason}. Run it again.")
        files[f"runs/{method}/{run_id}.json"] = path.read_bytes
        for name in (CARD, *([PREDICTIONS] if predictions else [])):
            extra = store.artefacts(record) / name
            if extra.is_file():
                files[f"runs/{method}/{run_id}/{name}"] = extra.read_bytes
    content, index = _packed(files, len(rows))
    digest = _sha256(index)[:16]
    path = Path(f"peftbench-results-{digest}.zip") if out is None else Path(out)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name a file, such as --out {path / 'runs.zip'}.")
    if path.exists() and path.read_bytes() != content:
        raise ConfigError(f"{path} exists already. Remove it or choose another --out.")
    write_atomic(path, lambda file: file.write(content))
    return Bundle(path, len(rows), digest, scan.broken)


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
        for name in index:
            _read(path, archive, name, index)  # everything, before anything is written
        records = {
            name: _record(path, _read(path, archive, name, index), name)
            for name in index
            if RECORD_NAME.fullmatch(name)
        }
        _check_extras(path, archive, index, records)
        _check_rows(path, _read(path, archive, ROWS, index), list(records.values()))
        fates = {name: _fate(store, record) for name, record in records.items()}
        clashes = [name for name, fate in fates.items() if fate == "conflict"]
        if clashes and not keep:
            raise StoreError(_conflicts(path, store, [records[name] for name in clashes]))
        added = [name for name, fate in fates.items() if fate == "new"]
        if not dry_run:
            for name in added:
                data = _read(path, archive, name, index)
                _add(store, records[name], data, _extras(path, archive, index, name))
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
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{path} cannot be read as a bundle of results: {reason}.") from error
    with archive:
        try:
            yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise StoreError(f"{path} is damaged or encrypted: {error}. Copy it again.") from error


def _index(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, Any], bytes]:
    """What the bundle lists, checked against what it holds, and the bytes of the index."""
    names = [info.filename for info in archive.infolist()]
    if INDEX not in names:
        raise StoreError(
            f"{path} holds no {INDEX}, so it is no bundle of results. "
            "`peftbench export-results` writes one."
        )
    if archive.getinfo(INDEX).file_size > LARGEST:
        raise StoreError(f"{path} was altered: its {INDEX} is too large.")
    raw = archive.read(INDEX)
    try:
        about = json.loads(raw)
        listed = dict(about["files"])
        versions = {"format": int(about["format"]), "schema": int(about["schema"])}
        runs = int(about["runs"])
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} was altered: its {INDEX} cannot be read ({error}).") from error
    for (name, version), known in zip(versions.items(), (FORMAT, SCHEMA), strict=True):
        if not 1 <= version <= known:
            raise StoreError(
                f"{path} has {name} {version}, written by peftbench {about.get('peftbench')}; "
                f"peftbench {__version__} knows {name} 1 to {known}. Install a newer peftbench."
            )
    if sorted(names) != sorted([*listed, INDEX]):
        odd = sorted(set(names) ^ {*listed, INDEX}) or ["a name that is there twice"]
        raise StoreError(f"{path} was altered: {odd[0]} is in it or in its list, but not in both.")
    strange = [
        name
        for name in listed
        if name != ROWS and not RECORD_NAME.fullmatch(name) and not EXTRA_NAME.fullmatch(name)
    ]
    if strange or ROWS not in listed:
        raise StoreError(f"{path} was altered: {(strange or [ROWS])[0]!r} does not belong there.")
    if runs != sum(bool(RECORD_NAME.fullmatch(name)) for name in listed):
        raise StoreError(f"{path} was altered: it does not hold the {runs} runs that it announces.")
    return listed, raw


def _read(path: Path, archive: zipfile.ZipFile, name: str, index: Mapping[str, Any]) -> bytes:
    """One file of the bundle, of the size and hash that its index says."""
    try:
        size, sha256 = int(index[name]["bytes"]), str(index[name]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} was altered: {INDEX} does not describe {name}.") from error
    if size > LARGEST or archive.getinfo(name).file_size != size:
        raise StoreError(f"{path} was altered: {name} does not have the size that {INDEX} says.")
    data = archive.read(name)
    if _sha256(data) != sha256:
        raise StoreError(f"{path} was altered: the hash of {name} is not that in {INDEX}.")
    return data


def _record(path: Path, data: bytes, name: str) -> RunRecord:
    """The record in one file of the bundle, which fits its name and its run id."""
    try:
        raw = json.loads(data)
        record = RunRecord.from_json(data.decode())
        if not isinstance(raw.get("schema"), int) or not 1 <= raw["schema"] <= SCHEMA:
            raise ValueError(
                f"its schema is {raw.get('schema')}, and peftbench {__version__} knows 1 to "
                f"{SCHEMA}; install a newer peftbench"
            )
        if name != f"runs/{method_of(record)}/{record.run_id}.json":
            raise ValueError(f"it holds run {record.run_id} of {method_of(record)}")
        if reason := _misfit(record):
            raise ValueError(reason)
    except (ValueError, AttributeError, RecursionError, StoreError) as error:
        raise StoreError(f"{path} is refused: {name}: {error}.") from error
    return record


def _misfit(record: RunRecord) -> str | None:
    """Why a record does not belong to its run id, if it does not."""
    try:
        expected = run_id_of(record.spec)
    except (ValueError, TypeError, AttributeError) as error:
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
            raise StoreError(f"{path} was altered: {name} belongs to no record in it.")
        data = _read(path, archive, name, index)
        check = _check_card if found[3] == CARD else _check_predictions
        try:
            check(data, record)
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path} is refused: {name}: {error}.") from error


def _check_card(data: bytes, record: RunRecord) -> None:
    run_id = json.loads(data).get("run_id")
    if run_id != record.run_id:
        raise ValueError(f"it is the card of run {run_id}")


def _check_predictions(data: bytes, record: RunRecord) -> None:
    """The predictions have the accuracy that the record has."""
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        accuracy = float(np.mean(arrays["classes"] == arrays["labels"]))
    recorded = record.metrics.get("test/top1")
    if recorded is None or abs(recorded - accuracy) > 1e-9:
        raise ValueError(f"its accuracy is {accuracy}, and that of the record {recorded}")


def _check_rows(path: Path, data: bytes, records: Sequence[RunRecord]) -> None:
    """`rows.csv` says of each run what its record says."""
    from peftbench.results.frame import csv_text, frame

    def keys(text: str) -> list[tuple[str | None, ...]]:
        return sorted(tuple(map(row.get, ROW_KEYS)) for row in csv.DictReader(io.StringIO(text)))

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
    if here.to_json() == record.to_json():
        return "present"
    if here.status is Status.OK and record.status is Status.OK:
        return "conflict"
    return "new" if preference(record) > preference(here) else "kept"


def _conflicts(path: Path, store: ResultsStore, records: Sequence[RunRecord], most: int = 5) -> str:
    lines = []
    for record in records[:most]:
        here = store.get(record.run_id, method_of(record))
        ours, theirs = (_top1(one) for one in (here, record))
        mine, other = (_arithmetic(one) for one in (here, record))
        there = f"{ours} here, {theirs} there"
        if mine != other:
            there = f"{ours} here in {mine}, {theirs} there in {other}"
        lines.append(f"{record.run_id} of {method_of(record)} (top1 {there})")
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


def _extras(
    path: Path, archive: zipfile.ZipFile, index: Mapping[str, Any], record_name: str
) -> dict[str, bytes]:
    """Files beside a record, by name."""
    folder = record_name.removesuffix(".json")
    return {
        name: _read(path, archive, f"{folder}/{name}", index)
        for name in (CARD, PREDICTIONS)
        if f"{folder}/{name}" in index
    }


def _add(store: ResultsStore, record: RunRecord, data: bytes, extras: Mapping[str, bytes]) -> None:
    """The record comes last: one that is here has all its files."""
    with store.claim(record.run_id, method_of(record)):
        for name, extra in extras.items():
            write_atomic(store.artefacts(record) / name, partial(_write, extra))
        store.add(record, data=data)


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
