"""Submissions to a cluster, and the files through which a launcher and other machines speak.

A submission is a few jobs, one after another in one allocation. Below RESULTS/submitted/<launch>/
it has three files, on a file system that the machines share:

<name>.json     what to run, written before it is submitted
<name>.handle   how its engine calls it, written after that
<name>.events   one JSON line for each job that begins or ends, for a signal that stopped it, which
                a cluster may take back, and for the end of it all

`launcher` beside them names the process that submitted them, which touches it while it lives.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peftbench.results.atomic import write_atomic
from peftbench.results.locks import Owner, age_of, gone, time_at

CANCELLED = "was cancelled"
TIME_LIMIT = "reached its time limit"


@dataclass(frozen=True)
class Submission:
    """What one allocation runs."""

    name: str  # unique
    directory: str  # where the launcher runs
    arguments: tuple[tuple[str, ...], ...]  # of each job
    outputs: tuple[str, ...]  # absolute path of what each job prints
    slot: str  # name of the place that it takes up
    devices: tuple[str, ...] = ()  # empty: what the cluster makes visible
    threads: int = 1
    timeout: float | None = None  # seconds of one job

    def write(self, folder: Path) -> Path:
        """Its file, complete on disk."""
        path = folder / f"{self.name}.json"
        text = json.dumps(dataclasses.asdict(self))
        write_atomic(path, lambda file: file.write(text.encode()))
        return path

    @classmethod
    def read(cls, path: Path) -> Submission:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["arguments"] = tuple(tuple(job) for job in raw["arguments"])
        raw["outputs"], raw["devices"] = tuple(raw["outputs"]), tuple(raw["devices"])
        return cls(**raw)


Handle = dict[str, Any]  # JSON values by which an engine finds a submission again


@dataclass(frozen=True)
class Ended:
    """How one job of a submission ended."""

    status: int  # exit status, negative for a signal
    seconds: float
    timed_out: bool


@dataclass(frozen=True)
class Gone:
    """Why a submission is over that does not say so itself."""

    cause: str  # like "ended as NODE_FAIL"
    machine: bool = False  # whether its machine failed or was taken away, and the jobs did nothing


@dataclass
class SubmissionProgress:
    """What a submission has told so far; jobs go by their index."""

    begun: dict[int, str] = field(default_factory=dict)  # host on which a job runs or ran
    ended: dict[int, Ended] = field(default_factory=dict)
    over: str | None = None  # why it ended, "" where it ran all its jobs; None while it may go on
    stopped: bool = False  # by a signal, which says that it is cancelled or to begin again


def tell(path: Path, **event: Any) -> None:
    """Append an event; it is on disk, and seen by other machines, on return."""
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):  # the last word of a machine that failed may be cut short
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(event).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def progress(path: Path) -> SubmissionProgress:
    """What the events in `path` amount to; a line that is being written is not there yet."""
    so_far = SubmissionProgress()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return so_far
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            event = json.loads(line)
        except ValueError:  # cut short
            continue
        if "begun" in event:  # its cluster may have started it again
            so_far.begun[event["begun"]] = event["host"]
            so_far.over, so_far.stopped = None, False
        elif "ended" in event:
            ended = Ended(event["status"], event["seconds"], event["timed_out"])
            so_far.ended[event["ended"]] = ended
        elif "stopped" in event:
            so_far.stopped = True
        elif "over" in event:
            so_far.over = event["over"]
    return so_far


def write_handle(folder: Path, name: str, engine: str, handle: Handle) -> None:
    """Note how `engine` calls a submission, for a launcher that comes later."""
    text = json.dumps({"engine": engine, **handle})
    write_atomic(folder / f"{name}.handle", lambda file: file.write(text.encode()))


def new_folder(root: Path) -> Path:
    """Name for the folder of a launch, which is not made here."""
    return root / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def note_launcher(folder: Path) -> None:
    """Note that this process is the launcher of `folder`."""
    text = Owner.current().text()
    write_atomic(folder / "launcher", lambda file: file.write(text.encode()))


def launcher_lives(folder: Path) -> bool:
    """Whether the launcher of a folder may still run, as its file there says or its age."""
    path = folder / "launcher"
    try:
        now = time_at(folder.parent)
        if not path.exists():
            return not gone(None, age_of(folder, now))
        return not gone(_launcher(path), age_of(path, now))
    except OSError:
        return folder.exists()


def _launcher(path: Path) -> Owner | None:
    """The process that a file names, also one of an earlier version."""
    owner = Owner.read(path)
    if owner is not None:
        return owner
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        here = Owner.current()
        if raw["host"] != here.host:
            return Owner(str(raw["host"]), 0, "", "", 0, 0.0)
        return here if runs(raw) else dataclasses.replace(here, process_start=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def process(pid: int) -> Handle:
    """What tells a process from any other of this host, before and after."""
    try:
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "started": 0.0}


def runs(known: Handle) -> bool:
    """Whether what `process` told apart still runs."""
    try:
        process = psutil.Process(known["pid"])
        # corrections of the system's clock move the time at which a process began
        same = abs(process.create_time() - known["started"]) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def submitted(folder: Path) -> Iterator[tuple[Submission, Handle]]:
    """Submissions of one launch that are known to an engine."""
    for path in sorted(folder.glob("*.handle")):
        try:
            yield Submission.read(path.with_suffix(".json")), json.loads(path.read_text())
        except (OSError, ValueError, KeyError, TypeError):
            continue  # removed since it was listed, or not ours
