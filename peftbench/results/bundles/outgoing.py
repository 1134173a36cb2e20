"""Finished runs as one file for others."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftbench._version import __version__
from peftbench.errors import ConfigError, StoreError
from peftbench.results.atomic import write_atomic
from peftbench.results.bundles.contents import (
    CARD,
    FORMAT,
    INDEX,
    MADE,
    PREDICTIONS,
    ROWS,
    misfit,
    sha256_of,
)
from peftbench.results.predictions import UNREADABLE, without_names
from peftbench.results.privacy import identified_paths, public
from peftbench.results.record import (
    SCHEMA,
    RunRecord,
    current,
    method_of,
    parsed,
)
from peftbench.results.store import ResultsStore
from peftbench.results.validation import check_plain
from peftbench.untrusted import (
    MOST_RECORD,
    read_bounded,
)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written."""

    path: Path
    runs: int
    digest: str  # of its index: the same on both sides of a transfer
    broken: tuple[StoreError, ...] = ()  # files of the store that are not readable records


def export_results(
    root: Path | str,
    out: Path | str | None = None,
    where: Sequence[str] = (),
    *,
    predictions: bool = False,
    names: bool = False,
) -> Bundle:
    """A bundle of the runs below `root` that meet `where` (`peftbench.results.frame.select`).

    Args:
        root: a results folder.
        out: `peftbench-results-<digest>.zip` in the working directory unless given.
        where: conditions.
        predictions: whether those of single images are in it.
        names: whether these have the names of the files. Names may tell of people, so that they
            stay on this machine unless asked for.

    Raises:
        ConfigError: no run meets the conditions, or `out` exists with other contents.
        StoreError: a record is not what its run id says, or cannot be read or written.
    """
    from peftbench.results.frame import frame, select
    from peftbench.results.table_files import csv_text

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
            read = partial(_predictions_file, artefacts / PREDICTIONS, names)
            files[f"runs/{method}/{run_id}/{PREDICTIONS}"] = read
    content, index = _packed(files, len(rows))
    digest = sha256_of(index)[:16]
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
    return misfit(record)


def _public(record: RunRecord) -> RunRecord:
    """The record as it may leave this machine."""
    return RunRecord.from_json(json.dumps(public(json.loads(record.to_json()))))


def _public_file(path: Path) -> bytes:
    """A record or a card as it may leave this machine; as it is where it tells nothing."""
    data = read_bounded(path, MOST_RECORD)
    try:
        content = parsed(data)
        check_plain(content) if path.name == CARD else None
        cleaned = public(content)
    except UNREADABLE as error:
        raise StoreError(f"{path} cannot be exported: {error}. Remove it.") from error
    if cleaned == content:
        return data
    return (json.dumps(cleaned, indent=1) + "\n").encode()


def _predictions_file(path: Path, names: bool) -> bytes:
    """Predictions as they leave this machine: with the names of files only where asked for."""
    try:
        data = read_bounded(path)
        return data if names else without_names(data)
    except UNREADABLE as error:
        raise StoreError(f"{path} cannot be exported: {error}. Remove it.") from error


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
            listed[name] = {"sha256": sha256_of(data), "bytes": len(data)}
            put(name, data)
        about = {"format": FORMAT, "schema": SCHEMA, "peftbench": __version__, "runs": runs}
        index = (json.dumps({**about, "files": listed}, indent=1) + "\n").encode()
        put(INDEX, index)
    return buffer.getvalue(), index
