"""`logger=wandb`: Weights & Biases, spoken to by a process of its own.

Its client starts a server, has exit hooks and retries for minutes. In a child process all of that
can be ended at any moment, and none of its work is done by the process that trains.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import peftbench
from peftbench.loggers import ledger
from peftbench.loggers.base import LOGGERS, Logger, LoggerError, LoggerSettings, flat, history_row
from peftbench.results.privacy import public
from peftbench.results.record import EpochRow, Parameters, RunRecord
from peftbench.spec import called

CHILD = "peftbench.loggers.wandb_child"
DEFAULT_URL = "https://api.wandb.ai"
MAX_TAG, MAX_NAME = 64, 128  # letters; W&B refuses longer ones
LATER = "`peftbench push` uploads it later."


@LOGGERS.register("wandb")
class WandbLogger(Logger):
    """One W&B run a run, of the same id; files go to `wandb/` in the results folder."""

    packages = ("wandb",)

    def __init__(self, settings: LoggerSettings, root: Path) -> None:
        super().__init__(settings, root)
        self._child: Child | None = None
        self._mode = resolve_mode(settings.mode)

    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        if self._mode == "disabled":
            return
        # before anything can fail: `peftbench push` puts the run into the same group
        ledger.write(self.root, run_id, ledger.LedgerEntry(self.settings.group))
        self._child = Child(self.root)
        self._child.tell("start", **start_message(run_id, spec, self.settings, self._mode))

    def epoch(self, row: EpochRow) -> None:
        if self._child is not None:
            self._child.tell("log", row=history_row(row), step=row.epoch)

    def finish(self, record: RunRecord) -> None:
        if self._child is None:
            return
        try:
            answer = self._child.ask("finish", **finish_message(record, self.settings))
        except LoggerError as e:
            raise LoggerError(f"{e} {LATER}") from e
        self._child.end()
        note = answer.get("note")
        if note:
            raise LoggerError(f"{note} The run is kept in {self.root / 'wandb'}; {LATER}")
        ledger.write(self.root, record.run_id, sent(record, self.settings, self._mode))

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()


def resolve_mode(mode: str) -> str:
    """ "online", "offline" or "disabled": what was asked for, or what is possible without asking.

    "auto" is what WANDB_MODE says, else online where there is a key, else offline.
    """
    if mode != "auto":
        return mode
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("online", "offline", "disabled"):
        return wanted
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether WANDB_API_KEY or a netrc file holds a key for the server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(path).authenticators(urlsplit(server_url()).netloc) is not None
    return False


def server_url() -> str:
    """The W&B server that runs go to."""
    return os.environ.get("WANDB_BASE_URL") or DEFAULT_URL


def sent(record: RunRecord, settings: LoggerSettings, mode: str) -> ledger.LedgerEntry:
    """The note that `record` has arrived."""
    return ledger.LedgerEntry(settings.group, place(settings, mode), record.finished)


def place(settings: LoggerSettings, mode: str) -> str:
    """Where runs go, as one text."""
    where = f"{settings.entity}/{settings.project}" if settings.entity else settings.project
    return f"{mode} {where} at {server_url()}"


def start_message(
    run_id: str, spec: Mapping[str, Any], settings: LoggerSettings, mode: str, patience: bool = True
) -> dict[str, Any]:
    """What the child needs to begin a run. Without `patience` an unreachable server is an error."""
    spec = public({"spec": spec})["spec"]
    method, backbone, dataset = (spec[key] for key in ("method", "backbone", "dataset"))
    name = f"{method['name']} {backbone.get('title') or backbone['name']} {called(dataset)}"
    return {
        "init": {
            "id": run_id,
            "resume": "allow",
            "name": f"{name} seed {spec['seed']}"[:MAX_NAME],
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "job_type": spec["phase"],
            "tags": tags(spec, settings.tags),
            "config": {"run_id": run_id, **spec},
        },
        "mode": mode,
        "timeout": settings.timeout,
        "fall_back": patience,
    }


def finish_message(record: RunRecord, settings: LoggerSettings) -> dict[str, Any]:
    """What the child needs to end a run."""
    return {
        "summary": summary(record),
        "tags": [*tags(record.spec, settings.tags), str(record.status)],
        # a pair that makes no sense did what was expected of it; everything else failed
        "exit_code": 0 if record.status.settled else 1,
    }


def tags(spec: Mapping[str, Any], more: Sequence[str] = ()) -> list[str]:
    """Method, backbone, data set, suite and what the user added, each once."""
    backbone, dataset = spec["backbone"], spec["dataset"]
    texts = (
        spec["method"]["name"],
        backbone.get("title") or backbone["name"],
        called(dataset),
        dataset.get("suite"),
        *more,
    )
    return list(dict.fromkeys(str(text)[:MAX_TAG] for text in texts if text))


def summary(record: RunRecord) -> dict[str, Any]:
    """The record as one flat mapping: status, metrics, parameters/..., cost/..., and so on."""
    parts = public(json.loads(record.to_json()))  # values that are not finite become null
    error, notes = parts["error"], parts["notes"]
    for declared in ("spec", "history", "metrics", "notes"):
        del parts[declared]
    values = {**flat(parts), **flat(dict(record.metrics))}
    if isinstance(record.parameters, Parameters):
        values["parameters/tuned"] = record.parameters.method + record.parameters.unfrozen
    # a rerun that succeeds must take back the error of the try before
    return {**values, "error": error, "notes": "\n".join(notes)}


class Child:
    """The process that holds the W&B client. Messages are lines of JSON."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._reading = threading.Lock()
        self._words = ""  # what it printed, once it has ended
        self._late: float | None = None  # seconds after which it was ended for being too slow
        source = str(Path(peftbench.__file__).parents[1])
        search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={
                **os.environ,
                "PYTHONPATH": search,
                "PYTHONWARNINGS": "ignore",
                "WANDB_ERROR_REPORTING": "false",
            },
            start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
        )

    def tell(self, call: str, **arguments: Any) -> None:
        """Send a message that has no answer."""
        assert self._process.stdin is not None
        line = json.dumps({"call": call, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as e:  # gone, or ended by `kill` and closed
            raise LoggerError(self._last_words()) from e

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Send a message and wait for its answer.

        Raises:
            LoggerError: what the child says went wrong, or that it is gone.
        """
        assert self._process.stdout is not None
        self.tell(call, **arguments)
        with self._reading:
            line = self._process.stdout.readline()
        if not line:
            raise LoggerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LoggerError(answer["error"])
        return answer

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """End the process, and so the wait for its answer, after `seconds` in this block."""

        def end() -> None:
            self._late = seconds
            self.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """Wait for the process to end by itself, which it does when nothing more can be sent."""
        self._close_input()
        self._process.wait()
        self._close()

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process now; the server of the W&B client follows when it sees that."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close_input()
        self._close()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what it did not read is lost with it
            self._process.stdin.close()

    def _close(self) -> None:
        """Close what the process that has ended was read from."""
        assert self._process.stdout is not None
        with self._reading:  # a thread that waits for an answer gets an empty line first
            if not self._said.closed:
                self._said.seek(0)
                self._words = self._said.read().decode(errors="replace").strip()
            self._process.stdout.close()
            self._said.close()

    def _last_words(self) -> str:
        """Why the process is gone."""
        status = self._process.wait()
        self._close_input()
        self._close()
        if self._late is not None:
            return f"no answer within {self._late:g} s."
        last = (self._words.splitlines() or ["no output"])[-1]
        return f"the process that logs ended with status {status}: {last}"
