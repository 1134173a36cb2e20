"""A queue of jobs over the machines of a cluster; knows submissions and nothing of experiments."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from peftbench.results.locks import BEAT_SECONDS
from peftbench.sweep.queues.pool import Command, Finished
from peftbench.sweep.queues.processes import STOP_SECONDS
from peftbench.sweep.queues.slots import Slot
from peftbench.sweep.queues.submission import (
    CANCELLED,
    TIME_LIMIT,
    Gone,
    Handle,
    Submission,
    SubmissionProgress,
    launcher_lives,
    note_launcher,
    progress,
    submitted,
    write_handle,
)

T = TypeVar("T")


class Engine(ABC):
    """What takes submissions to the machines of a cluster."""

    name: str  # in handles; with the host where only that knows them, like `ray@node7`
    pause: float  # seconds between two looks at what has happened
    grace: float = 0.0  # seconds that a shared file system may lag behind the end of a submission
    vanishes: bool = False  # whether what has not begun is gone at once when it is cancelled
    starts_again: bool = False  # whether what a signal stopped may be started again
    anywhere: Slot  # what a submission has for itself, where their number is not limited
    free: deque[Slot] | None = None  # places that are not taken up, where it is

    @abstractmethod
    def submit(self, paths: Sequence[Path]) -> list[Handle]:
        """Submit `serve(path)` for each path; handles are JSON values, in the same order."""

    @abstractmethod
    def gone(self, handle: Handle) -> Gone | None:
        """How a submission ended, `None` while it waits or runs; it may be an earlier launch's."""

    def expect(self, handles: Sequence[Handle]) -> None:
        """Submissions of earlier launches that `gone` will be asked about, one after another."""
        return

    def forget(self, handle: Handle) -> None:
        """A submission that `gone` is not asked about any more."""
        return

    @abstractmethod
    def cancel(self, handles: Sequence[Handle]) -> None:
        """Ask submissions to end; returns before they have."""

    @abstractmethod
    def title(self, handle: Handle) -> str:
        """Like `slurm 123_4`."""

    def log(self, handle: Handle) -> Path | None:
        """What a submission printed, where that is kept."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the cluster; called once nothing of ours is waited for any more."""


@dataclass(eq=False)
class _Active(Generic[T]):
    """A submission that may be waiting, running or just over."""

    submission: Submission
    folder: Path
    handle: Handle
    ours: bool  # submitted by this launch
    commands: dict[int, Command[T]] = field(default_factory=dict)  # that we wait for
    began: dict[int, tuple[float, str]] = field(default_factory=dict)  # when and where
    gone: float | None = None  # when its engine said first that it is over

    @property
    def events(self) -> Path:
        return self.folder / f"{self.submission.name}.events"


@dataclass(frozen=True)
class Terms:
    """On which terms jobs are submitted."""

    timeout: float | None = None  # seconds of one job
    retries: int = 0  # how often a job goes again whose machine failed or was taken away
    detach: bool = False  # submit and return


PLAIN = Terms()  # no limit of time, nothing goes again, all is waited for


class RemoteQueue(Generic[T]):
    """Runs commands through an engine, each batch as a submission; same methods as a `Pool`.

    Submissions of an earlier launch that are still under way are followed, not repeated.

    Args:
        engine: where submissions run.
        folder: for their files, new, on a file system that all machines share; its neighbours are
            those of earlier launches.
        release: called with the output of a job and the submission whose process is gone, so that
            a lock of that process can be removed.
        say: told in one line what a person should know.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        terms: Terms = PLAIN,
        *,
        release: Callable[[Path, str], None] = lambda output, submission: None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder.absolute()
        self.terms = terms
        self.release = release
        self.say = say or partial(print, flush=True)
        self.on_begin: Callable[[T, str], None] = lambda job, slot: None
        self.on_stop: Callable[[], None] = lambda: None
        self.stopping = False
        self.left = 0  # jobs that were submitted and not waited for
        self._queue: deque[list[Command[T]]] = deque()
        self._active: list[_Active[T]] = []
        self._elsewhere: dict[str, tuple[_Active[T], int]] = {}  # output -> job of an earlier one
        self._count = 0
        self._died = False  # a submission, without a word of its own
        self._lost: Counter[str] = Counter()  # machines that a job lost, by its output
        self._touched = time.monotonic()  # our name in the folder
        note_launcher(self.folder)
        self._find_earlier()

    def add(self, batch: Iterable[Command[T]], *, first: bool = False) -> None:
        """Queue jobs that share a submission; `first` puts them in front."""
        rest: list[Command[T]] = []
        for command in batch:
            active, index = self._elsewhere.pop(str(command.output.absolute()), (None, 0))
            if active is None:
                rest.append(command)
                continue
            active.commands[index] = command
            if active not in self._active:
                self._active.append(active)
        if rest:
            self._queue.insert(0 if first else len(self._queue), rest)

    def run(self) -> Iterator[Finished[T]]:
        """Endings in the order in which jobs end, until the queue is empty.

        Jobs may be added while it runs. On an exception in the consumer, or Ctrl-C, what this
        launch submitted is cancelled.
        """
        finished = False
        try:
            if self._active:
                jobs = sum(len(active.commands) for active in self._active)
                titles = self._titles(self._active)
                self.say(f"{jobs} of the jobs are under way since an earlier launch: {titles}")
            while True:
                if self.stopping:
                    self._drop_waiting()
                else:
                    self._submit()
                if self.terms.detach:
                    self.left = sum(len(active.commands) for active in self._active)
                    ours = [active for active in self._active if active.ours]
                    if ours:
                        self.say(f"submitted: {self._titles(ours)}")
                    break
                if not self._active and (self.stopping or not self._queue):
                    break
                self._say_that_we_live()
                ended = 0
                for job in self._look():
                    ended += 1
                    yield job
                if not ended:
                    time.sleep(self.engine.pause)
            finished = True
        finally:
            if not finished:
                self._cancel()
            self._clean()
            self.engine.close()

    def _say_that_we_live(self) -> None:
        """So that no later launch takes our folder for that of a dead one."""
        if time.monotonic() - self._touched >= BEAT_SECONDS:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.folder / "launcher")

    def _find_earlier(self) -> None:
        """Take note of submissions that earlier launches left, and clean up behind dead ones."""
        folders = [f for f in sorted(self.folder.parent.glob("*/")) if f != self.folder]
        earlier = {folder: list(submitted(folder)) for folder in folders}
        name = self.engine.name
        ours = [handle for pairs in earlier.values() for _, handle in pairs]
        self.engine.expect([handle for handle in ours if handle["engine"] == name])
        for folder, pairs in earlier.items():
            lives = launcher_lives(folder)
            known = False  # that something may still be under way
            for submission, handle in pairs:
                if handle["engine"] != name:
                    # what runs on a machine ends with its launcher there; a cluster knows its own
                    known = known or lives or "@" not in handle["engine"]
                    continue
                active: _Active[T] = _Active(submission, folder, handle, ours=False)
                so_far = progress(active.events)
                cause = self._cause(active, so_far)
                if cause is None:
                    known = True
                    self._take_up(submission.slot)
                    for index, output in enumerate(submission.outputs):
                        if index not in so_far.ended:
                            self._elsewhere[output] = (active, index)
                    continue
                self.engine.forget(handle)
                for output in submission.outputs:
                    self.release(Path(output), submission.name)
                lost = len(submission.outputs) - len(so_far.ended)
                if lost and cause.cause != CANCELLED:
                    title = self.engine.title(handle)
                    self.say(
                        f"{title} of an earlier launch {cause.cause}; {lost} of its jobs are left"
                    )
            if not known and not lives:
                shutil.rmtree(folder, ignore_errors=True)

    def _cause(self, active: _Active[T], so_far: SubmissionProgress) -> Gone | None:
        """Why a submission is over, by its own word or that of its engine; `None` if it is not."""
        if so_far.over is not None:
            return Gone(so_far.over)
        if so_far.stopped and not self.engine.starts_again:
            return Gone(CANCELLED)
        return self.engine.gone(active.handle)

    def _take_up(self, slot: str) -> None:
        if self.engine.free is not None:
            self.engine.free = deque(s for s in self.engine.free if s.name != slot)

    def _submit(self) -> None:
        """Submit what is queued, as far as there is room for it."""
        new: list[_Active[T]] = []
        while self._queue and (self.engine.free is None or self.engine.free):
            slot = self.engine.anywhere if self.engine.free is None else self.engine.free.popleft()
            batch = self._queue.popleft()
            self._count += 1
            submission = Submission(
                name=f"{self.folder.name}-{self._count}",
                directory=os.getcwd(),
                arguments=tuple(command.arguments for command in batch),
                outputs=tuple(str(command.output.absolute()) for command in batch),
                slot=slot.name,
                devices=slot.devices,
                threads=slot.threads,
                timeout=self.terms.timeout,
            )
            submission.write(self.folder)
            active: _Active[T] = _Active(submission, self.folder, {}, ours=True)
            active.commands = dict(enumerate(batch))
            new.append(active)
        if not new:
            return
        paths = [self.folder / f"{active.submission.name}.json" for active in new]
        for active, handle in zip(new, self.engine.submit(paths), strict=True):
            active.handle = handle
            write_handle(self.folder, active.submission.name, self.engine.name, handle)
            self._active.append(active)

    def _look(self) -> Iterator[Finished[T]]:
        """What has happened since the last look."""
        for folder in {active.folder for active in self._active}:
            _refresh(folder)
        for active in list(self._active):
            so_far = progress(active.events)
            for index, host in so_far.begun.items():
                if index in active.commands and index not in active.began:
                    slot = f"{self.engine.title(active.handle)} on {host}"
                    active.began[index] = (time.monotonic(), slot)
                    self.on_begin(active.commands[index].job, slot)
            for index, ended in so_far.ended.items():
                command = active.commands.pop(index, None)
                if command is not None:
                    self._settle(active, command)
                    _, slot = active.began[index]
                    yield Finished(command.job, slot, ended.seconds, ended.status, ended.timed_out)
            cause = self._cause(active, so_far)
            said = so_far.over is not None or (so_far.stopped and not self.engine.starts_again)
            if cause is None:
                active.gone = None
            elif said or self._is_sure(active):
                yield from self._over(active, cause, so_far)

    def _is_sure(self, active: _Active[T]) -> bool:
        """Whether a submission is over that does not say so itself: its files must have come, and
        what a cluster starts again seems to be over for a moment."""
        if active.gone is None:
            active.gone = time.monotonic()
            return False  # it may have told of its end after we looked
        return time.monotonic() - active.gone >= self.engine.grace

    def _over(
        self, active: _Active[T], gone: Gone, so_far: SubmissionProgress
    ) -> Iterator[Finished[T]]:
        """A submission is over: the job that it was at, and those behind it.

        Those run in another one, unless it was cancelled or died before it began its first. So
        does the one that it was at, where its machine is to blame, or where it was stopped and
        nobody cancelled it: a bounded number of times.
        """
        cause = gone.cause
        self._active.remove(active)
        submission = active.submission
        if self.engine.free is not None:
            self.engine.free.append(Slot(submission.slot, submission.devices, submission.threads))
        title = self.engine.title(active.handle)
        stopped = so_far.stopped and cause not in (CANCELLED, TIME_LIMIT)
        blameless = (gone.machine or stopped) and not self.stopping
        tries = 0
        again = []
        for index, command in sorted(active.commands.items()):
            if active.began and index not in active.began and cause != CANCELLED:
                again.append(command)
                continue
            lost = self._lost[str(command.output)]
            if blameless and lost < self.terms.retries:
                self._lost[str(command.output)] = lost + 1
                tries = max(tries, lost + 1)
                self._settle(active, command)
                again.append(command)
                continue
            said_so = so_far.over is not None or so_far.stopped
            last = "" if said_so else self._last_line(active)
            began, slot = active.began.get(index, (time.monotonic(), title))
            self._settle(active, command)
            yield Finished(
                command.job,
                slot,
                seconds=time.monotonic() - began,
                status=1,
                timed_out=cause == TIME_LIMIT and index in active.began,
                cause=f"{title} {cause or 'left it out'}{last}",
            )
        self.engine.forget(active.handle)
        if tries:
            self.say(
                f"{title} {cause}; its jobs are submitted again, {tries} of {self.terms.retries}"
            )
        if again:
            self.add(again, first=True)
        for suffix in (".handle", ".events", ".json"):
            (active.folder / f"{submission.name}{suffix}").unlink(missing_ok=True)

    def _last_line(self, active: _Active[T]) -> str:
        """The end of what a submission printed that died, and where the rest is."""
        log = self.engine.log(active.handle)
        if log is None:
            return ""
        self._died = True
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f": {lines[-1] if lines else 'no output'} (see {log})"

    def _settle(self, active: _Active[T], command: Command[T]) -> None:
        """See to it that what a job left is seen from here, and that it holds no lock."""
        _refresh(command.output.parent.parent)  # of its record
        _refresh(command.output.parent)
        self.release(command.output.absolute(), active.submission.name)

    def _drop_waiting(self) -> None:
        """Cancel our submissions that have not begun."""
        waiting = [a for a in self._active if a.ours and not a.began and not a.events.exists()]
        if waiting:
            self.engine.cancel([active.handle for active in waiting])
            self._active = [active for active in self._active if active not in waiting]
        self._active = [a for a in self._active if a.ours or a.began]

    def _cancel(self) -> None:
        """Cancel what this launch submitted and wait until it has written its records."""
        ours = [active for active in self._active if active.ours and not self.terms.detach]
        if ours:
            self.on_stop()
            self.engine.cancel([active.handle for active in ours])
        if len(ours) < len(self._active):
            others = [active for active in self._active if active not in ours]
            self.say(f"going on, as this launch did not submit them: {self._titles(others)}")
        deadline = time.monotonic() + STOP_SECONDS + self.engine.grace
        while ours and time.monotonic() < deadline:
            _refresh(self.folder)
            over = [a for a in ours if self._ended(a)]
            for active in over:
                ours.remove(active)
                self._active.remove(active)
                for output in active.submission.outputs:
                    self.release(Path(output), active.submission.name)
            if ours and not over:
                time.sleep(min(self.engine.pause, 0.5))

    def _ended(self, active: _Active[T]) -> bool:
        if not active.events.exists() and self.engine.vanishes:
            return True
        so_far = progress(active.events)
        return (
            so_far.over is not None or so_far.stopped or self.engine.gone(active.handle) is not None
        )

    def _clean(self) -> None:
        """Remove our files, unless something is still under way or died and left a log."""
        if not any(active.ours for active in self._active) and not self._died:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # unless an earlier launch has files in it

    def _titles(self, actives: Sequence[_Active[T]]) -> str:
        titles = [self.engine.title(active.handle) for active in actives]
        more = f" and {len(titles) - 4} more" if len(titles) > 5 else ""
        return ", ".join(titles[: 4 if more else 5]) + more


def _refresh(folder: Path) -> None:
    """Have a network file system look which files are there; reading a listing makes it ask."""
    with contextlib.suppress(OSError):
        os.listdir(folder)
