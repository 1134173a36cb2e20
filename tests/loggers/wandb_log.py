"""Reads what an offline W&B run wrote: a LevelDB log of protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes
FULL, LAST = 1, 4  # kinds of chunks that end a record


@dataclass(frozen=True)
class OfflineRun:
    """One offline run as a server would see it."""

    run_id: str
    project: str
    group: str
    job_type: str
    host: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    exit_code: int | None
    artifacts: tuple[tuple[str, tuple[str, ...]], ...]  # name and files


def read_runs(root: Path) -> list[OfflineRun]:
    """Every offline run below a results folder."""
    return [read(path) for path in sorted(root.glob("wandb/offline-run-*/run-*.wandb"))]


def read(path: Path) -> OfflineRun:
    """The run in a transaction log."""
    from wandb.proto import wandb_internal_pb2

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history, artifacts = [], []
    run, exit_code = None, None
    for data in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run  # the last one holds the final tags
            config |= values(run.config.update)
        elif kind == "history":
            history.append(values(record.history.item))
        elif kind == "summary":
            summary |= values(record.summary.update)
        elif kind == "exit":
            exit_code = record.exit.exit_code
        elif kind == "artifact" or (
            kind == "request" and record.request.WhichOneof("request_type") == "log_artifact"
        ):
            artifact = (
                record.artifact if kind == "artifact" else record.request.log_artifact.artifact
            )
            files = tuple(sorted(entry.path for entry in artifact.manifest.contents))
            artifacts.append((artifact.name, files))
    assert run is not None
    return OfflineRun(
        run_id=run.run_id,
        project=run.project,
        group=run.run_group,
        job_type=run.job_type,
        host=run.host,
        tags=tuple(run.tags),
        config={key: value for key, value in config.items() if key != "_wandb"},
        history=tuple(history),
        summary=summary,
        exit_code=exit_code,
        artifacts=tuple(artifacts),
    )


def chunks(data: bytes) -> Iterator[bytes]:
    """The records of a log, put together from their chunks."""
    assert data[:4] == b":W&B"
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if kind == 0:
            return
        position += HEADER
        record += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield record
            record = b""


def values(items: Any) -> dict[str, Any]:
    """Keys and JSON values as Python values."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
