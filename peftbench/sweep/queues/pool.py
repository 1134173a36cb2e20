"""A queue of jobs over the slots of one machine; knows processes and nothing of experiments."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar

from peftbench.results.disk import explained, full_number
from peftbench.sweep.queues.processes import STOP_SECONDS
from peftbench.sweep.queues.slots import Slot

START_ATTEMPTS = 3  # of a server that dies before it is ready
T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """One job: the arguments of a command line, where its output goes, whose it is."""

    job: T
    arguments: tuple[str, ...]
    output: Path


@dataclass(frozen=True)
class Finished(Generic[T]):
    """How the process of one job ended."""

    job: T
    slot: str
    seconds: float
    status: int  # exit status, negative for a signal
    timed_out: bool = False
    cause: str = ""  # why it ended, where more than its status is known


@dataclass
class _Server(Generic[T]):
    """A slot's process and what it is doing."""

    slot: Slot
    process: subprocess.Popen[bytes]
    unread: bytes = b""
    ready: bool = False
    busy: bool = False  # with a request, until the process that runs it is gone
    commands: deque[Command[T]] = field(default_factory=deque)  # of the request, not ended yet
    pid: int | None = None  # of the process that runs them
    began: float = 0.0  # the first of them
    deadline: float | None = None
    timed_out: bool = False
    last_signal: float | None = None  # when the job was asked to stop


class Queue(Protocol[T]):
    """Runs commands somewhere and tells how each ended."""

    on_begin: Callable[[T, str], None]  # called with the job and where it runs
    on_stop: Callable[[], None]  # called before jobs under way are stopped, which takes a while
    stopping: bool  # start nothing more
    left: int  # jobs that were started and not waited for

    def add(self, batch: Iterable[Command[T]], *, first: bool = False) -> None:
        """Queue jobs that share a process; `first` puts them in front."""

    def run(self) -> Iterator[Finished[T]]:
        """Endings in the order in which jobs end, until the queue is empty."""


class Pool(Generic[T]):
    """Runs commands on slots, each in a process of its own unless told to share.

    Slots start one after another, `stagger` seconds apart, so that hundreds of gigabytes of
    weights are not read at the same moment.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        timeout: float | None = None,
        stagger: float = 0.0,
        on_begin: Callable[[T, str], None] = lambda job, slot: None,
    ) -> None:
        self.slots = list(slots)
        self.timeout = timeout
        self.stagger = stagger
        self.on_begin = on_begin
        self.on_stop: Callable[[], None] = lambda: None
        self.stopping = False  # start nothing more
        self.left = 0  # it waits for every job
        self._queue: deque[list[Command[T]]] = deque()
        self._servers: list[_Server[T]] = []
        self._failed_starts = 0

    def add(self, batch: Iterable[Command[T]], *, first: bool = False) -> None:
        """Queue jobs that share a process; `first` puts them in front."""
        if first:
            self._queue.appendleft(list(batch))
        else:
            self._queue.append(list(batch))

    def run(self) -> Iterator[Finished[T]]:
        """Endings in the order in which jobs end, until the queue is empty.

        Jobs may be added while it runs. On an exception in the consumer, or Ctrl-C, the jobs under
        way are asked to stop, and killed if they take longer than `STOP_SECONDS`.
        """
        selector = selectors.DefaultSelector()
        try:
            yield from self._serve(selector)
        finally:
            self.stopping = True
            self._close(selector)

    def _serve(self, selector: selectors.BaseSelector) -> Iterator[Finished[T]]:
        free = deque(self.slots)
        next_start = 0.0
        while True:
            wanted = bool(self._queue) and not self.stopping
            idle = any(s.ready and not s.busy for s in self._servers)
            starting = sum(not s.ready for s in self._servers)
            due = free and time.monotonic() >= next_start
            if wanted and due and not idle and starting < len(self._queue):
                server = self._start(free.popleft())
                selector.register(server.process.stdout or -1, selectors.EVENT_READ, server)
                next_start = time.monotonic() + self.stagger
                continue
            for server in self._servers:
                if server.ready and not server.busy and self._queue and not self.stopping:
                    self._send(server, self._queue.popleft())
            if not any(s.busy for s in self._servers) and (self.stopping or not self._queue):
                return
            for key, _ in selector.select(timeout=0.1):
                gone: _Server[T] = key.data
                chunk = os.read(key.fd, 65536)
                if chunk:
                    yield from self._read(gone, chunk)
                    continue
                selector.unregister(key.fileobj)
                self._servers.remove(gone)
                free.append(gone.slot)
                yield from self._lost(gone)
            self._check_deadlines()

    def _start(self, slot: Slot) -> _Server[T]:
        process = subprocess.Popen(
            [sys.executable, "-m", "peftbench.cli.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=slot.environment(os.environ),
            start_new_session=True,  # Ctrl-C goes to the launcher alone
        )
        server: _Server[T] = _Server(slot, process)
        self._servers.append(server)
        return server

    def _send(self, server: _Server[T], batch: list[Command[T]]) -> None:
        server.busy, server.commands, server.began = True, deque(batch), time.monotonic()
        jobs = [{"arguments": list(c.arguments), "output": str(c.output)} for c in batch]
        for command in batch:
            try:
                command.output.parent.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                if full_number(e) is None:
                    raise explained(e, command.output.parent) from e
        assert server.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; its output ends too
            server.process.stdin.write(json.dumps({"jobs": jobs}).encode() + b"\n")
            server.process.stdin.flush()

    def _read(self, server: _Server[T], chunk: bytes) -> Iterator[Finished[T]]:
        server.unread += chunk
        while b"\n" in server.unread:
            line, _, server.unread = server.unread.partition(b"\n")
            reply = json.loads(line)
            if "ready" in reply:
                server.ready = True
                self._failed_starts = 0
            elif "started" in reply:
                server.pid = reply["started"]
            elif "begun" in reply:
                server.began = time.monotonic()
                server.deadline = None if self.timeout is None else server.began + self.timeout
                self.on_begin(server.commands[0].job, server.slot.name)
            elif "ended" in reply:
                yield self._ended(server, reply["status"])
            elif "exited" in reply:
                yield from self._exited(server, reply["exited"])

    def _ended(self, server: _Server[T], status: int) -> Finished[T]:
        """The first job that a server has left is over."""
        job = server.commands.popleft().job
        seconds = time.monotonic() - server.began
        finished = Finished(job, server.slot.name, seconds, status, server.timed_out)
        server.deadline, server.timed_out, server.last_signal = None, False, None
        return finished

    def _exited(self, server: _Server[T], status: int) -> Iterator[Finished[T]]:
        """The process of a request is gone: the job that it died in or could not begin, if any.

        The jobs behind that one run in another process.
        """
        server.busy, server.pid = False, None
        if server.commands:
            ended = self._ended(server, status)
            if server.commands:
                self.add(server.commands, first=True)
                server.commands = deque()
            yield ended

    def _lost(self, server: _Server[T]) -> Iterator[Finished[T]]:
        """A server died, and the process of its request with it."""
        status = server.process.wait()
        if not server.ready:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                raise RuntimeError(
                    f"the process of slot {server.slot.name!r} ended with status {status} before "
                    f"it could run a job, {START_ATTEMPTS} times in a row"
                )
            return
        yield from self._exited(server, status)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for server in self._servers:
            if server.deadline is None or server.pid is None or now < server.deadline:
                continue
            if server.last_signal is None:
                server.timed_out, server.last_signal = True, now
                _signal(server.pid, signal.SIGTERM)
            elif now - server.last_signal > STOP_SECONDS:
                server.last_signal = now
                _signal(server.pid, signal.SIGKILL)

    def _close(self, selector: selectors.BaseSelector) -> None:
        """End every process: jobs first, so that they can write their records."""
        running = [s for s in self._servers if s.pid is not None]
        if running:
            self.on_stop()
        for server in self._servers:
            _shut(server.process.stdin)  # no further job of a shared process begins
        for server in running:
            _signal(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while any(_alive(s.pid) for s in running) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:  # a second Ctrl-C insists
            for server in running:
                _signal(server.pid, signal.SIGKILL)
            for server in self._servers:
                _shut(server.process.stdout)
                server.process.kill()
                server.process.wait()
            self._servers.clear()
            selector.close()


def _shut(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()


def _signal(pid: int | None, signum: int) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signum)


def _alive(pid: int | None) -> bool:
    """Whether a process that is not our child still runs; its server reaps it."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
