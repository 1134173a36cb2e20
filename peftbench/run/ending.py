"""How a run ends: an exception becomes a status, and what is known becomes a record."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.errors import (
    Diverged,
    NoEffect,
    PeftbenchError,
    Unsupported,
)
from peftbench.results.disk import explained, full_number
from peftbench.results.record import (
    Cost,
    EpochRow,
    Parameters,
    Provenance,
    RunRecord,
    Status,
)
from peftbench.results.store import ResultsStore
from peftbench.spec import BEST_ON_TEST, LAST, RunSpec
from peftbench.training.world import World

ENDINGS: dict[type[PeftbenchError], Status] = {  # the last one is the base of the others
    Unsupported: Status.UNSUPPORTED,
    NoEffect: Status.NO_EFFECT,
    Diverged: Status.DIVERGED,
    PeftbenchError: Status.ERROR,
}
RESUMABLE = (Status.INTERRUPTED, Status.ERROR, Status.OUT_OF_MEMORY)  # where the state was left


@dataclass(slots=True)
class PendingRecord:
    """What is known of a run so far; becomes its record whichever way it ends."""

    spec: RunSpec
    started: str
    status: Status = Status.OK
    error: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    selected_epoch: int | None = None
    parameters: Parameters | None = None
    cost: Cost | None = None
    merge: dict[str, float] | None = None
    reload: dict[str, float] | None = None
    history: list[EpochRow] = field(default_factory=list)
    provenance: Provenance | None = None
    notes: list[str] = field(default_factory=list)
    looks: dict[str, float] = field(default_factory=dict)
    stopped_epoch: int | None = None
    tuning: dict[str, Any] | None = None
    micro_batch: int | None = None

    def record(self) -> RunRecord:
        """The record of a run that ends now."""
        return RunRecord(
            run_id=self.spec.run_id,
            spec=self.spec.describe(),
            status=self.status,
            error=self.error,
            metrics=self.metrics,
            selection=BEST_ON_TEST if self.spec.selects_on_test else LAST,
            selected_epoch=self.selected_epoch,
            parameters=self.parameters,
            cost=self.cost,
            merge=self.merge,
            reload=self.reload,
            history=self.history,
            provenance=self.provenance,
            notes=self.notes,
            looks=self.looks,
            stopped_epoch=self.stopped_epoch,
            tuning=self.tuning,
            micro_batch=self.micro_batch,
            started=self.started,
            finished=now(),
        )


@contextlib.contextmanager
def reporting(folder: Path, world: World, spec: RunSpec) -> Iterator[None]:
    """What ends a process that does not lead is left in `folder` for the one that does."""
    try:
        yield
    except BaseException as e:
        status, error = status_of(e, spec)
        text = json.dumps({"status": status, "error": error})
        with contextlib.suppress(OSError):  # what is raised is the cause
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"process{world.rank}.json").write_text(text, encoding="utf-8")
        raise


def worker_failures(
    folder: Path, world: World, patience: float = 3.0
) -> dict[int, tuple[Status, str]]:
    """The first report of another process, by its rank; a broken connection is seen before it."""
    deadline = time.monotonic() + patience
    while not world.is_single and time.monotonic() < deadline:
        for path in sorted(folder.glob("process*.json")):
            with contextlib.suppress(ValueError):  # it is being written
                report = json.loads(path.read_text(encoding="utf-8"))
                rank = int(path.stem.removeprefix("process"))
                return {rank: (Status(report["status"]), report["error"])}
        time.sleep(0.05)
    return {}


@contextlib.contextmanager
def recording(pending: PendingRecord, store: ResultsStore) -> Iterator[None]:
    """Turn an exception into the status of `pending`; unexpected ones leave a trace in a log."""
    log = store.artefacts((pending.spec.method.name, pending.spec.run_id)) / "log.txt"
    try:
        yield
    except (PeftbenchError, KeyboardInterrupt) as e:
        pending.status, pending.error = status_of(e, pending.spec)
    except Exception as e:
        pending.status, pending.error = status_of(e, pending.spec)
        if full_number(e) is not None:  # no fault of the program, and no room for its trace
            return
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            if pending.status is Status.ERROR:
                pending.error += f" (trace in {log})"


def status_of(error: BaseException, spec: RunSpec) -> tuple[Status, str]:
    """The status of a run that an exception ended, and what its record says of it."""
    for kind, status in ENDINGS.items():
        if isinstance(error, kind):
            return status, str(error)
    if isinstance(error, Exception) and full_number(error) is not None:
        return Status.ERROR, str(explained(error))
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED, "stopped before its end; the same command goes on from there"
    if _out_of_memory(error):
        return Status.OUT_OF_MEMORY, (
            f"{_first_line(error)} Lower recipe.batch_size (now {spec.recipe.batch_size}) "
            "or backbone.image_size."
        )
    return Status.ERROR, f"{type(error).__name__}: {_first_line(error)}"


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0][:300]
    return line if line.endswith(".") else f"{line}."


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
