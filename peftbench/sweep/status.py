"""What a sweep shows while it runs: a live view on a terminal, plain lines elsewhere.

How far a job has come is read off the last line that it printed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.durations import duration
from peftbench.untrusted import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

SHOWN = 20  # slots; a cluster runs hundreds of jobs at a time
TOLD = 2  # jobs of which a line tells how far they are
QUIET_SECONDS = 30.0  # without a line, after which one says how far the sweep is
END_BYTES = 4096  # of a job's output, in which its last line is looked for


@dataclass
class _Running:
    title: str
    began: float
    expected: float | None  # seconds, from earlier runs of its kind
    output: Path | None = None  # where it prints

    def place(self) -> str:
        """How far it says that it is, without its name; empty where it has not said anything."""
        line = "" if self.output is None else _last_line(self.output)
        name, _, place = line.partition(f"{self.title}: ")
        return place if not name else ""


class StatusView:
    """Counts, time left and what each slot does; finished jobs scroll by above it.

    Slots that are not known beforehand are shown while a job is on them.
    """

    def __init__(self, total: int, slots: Sequence[str]) -> None:
        self.total = total
        self.slots = frozenset(slots)
        self.running: dict[str, _Running | None] = dict.fromkeys(slots)
        self.done = self.failed = 0
        self.began = time.monotonic()
        self.seconds: list[float] = []  # that finished jobs took
        self._live: Live | None = None
        self._said = time.monotonic()
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> StatusView:
        if not self.total:
            return self
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True),
                get_renderable=self._render,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        else:
            self._ticker = threading.Thread(target=self._tick, name="status", daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._ticker is not None:
            self._over.set()
            self._ticker.join()

    def begin(
        self, title: str, slot: str, expected: float | None, output: Path | None = None
    ) -> None:
        """A job has started on a slot, and prints into a file."""
        self.running[slot] = _Running(title, time.monotonic(), expected, output)

    def end(self, line: str, slot: str, seconds: float, failed: bool) -> None:
        """A job has ended; `line` says how."""
        if slot in self.slots:
            self.running[slot] = None
        else:
            self.running.pop(slot, None)
        self.done += 1
        self.failed += failed
        self.seconds.append(seconds)
        self.say(f"[{self.done}/{self.total}] {line}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._said = time.monotonic()
        if self._live is not None:
            self._live.console.print(
                printable_lines(line), markup=False, highlight=False, soft_wrap=True
            )
        else:
            print(printable_lines(line), flush=True)

    def warn(self, line: str) -> None:
        """A line that stays, about something that went wrong beside the jobs."""
        if self._live is not None:
            self._live.console.print(
                printable_lines(line), markup=False, highlight=False, soft_wrap=True
            )
        else:
            print(printable_lines(line), file=sys.stderr, flush=True)

    def eta(self) -> float | None:
        """Seconds until the sweep is done, from the mean of what has ended; `None` before that."""
        if not self.seconds or not self.running:
            return None
        running = [job for job in list(self.running.values()) if job is not None]
        queued = self.total - self.done - len(running)
        mean = sum(self.seconds) / len(self.seconds)
        now = time.monotonic()
        rest = [max(0.0, (job.expected or mean) - (now - job.began)) for job in running]
        return (queued * mean + sum(rest)) / len(self.running)

    def counts(self) -> str:
        """How many jobs are done, and the time so far and left."""
        eta = self.eta()
        left = "" if eta is None else f", about {duration(eta)} left"
        return (
            f"{self.done} of {self.total} done, {self.failed} failed, "
            f"{duration(time.monotonic() - self.began)} so far{left}"
        )

    def line(self) -> str:
        """The counts, and how far the jobs are that have run longest."""
        running = [job for job in list(self.running.values()) if job is not None]
        running.sort(key=lambda job: job.began)
        places = [f"{job.title}: {place}" for job in running if (place := job.place())]
        more = [f"and {len(running) - TOLD} more"] if len(running) > TOLD else []
        return "; ".join([self.counts(), *places[:TOLD], *(more if places else [])])

    def _tick(self) -> None:
        """Say how far the sweep is wherever nothing else was said for a while."""
        while not self._over.wait(1.0):
            if time.monotonic() - self._said >= QUIET_SECONDS:
                self._said = time.monotonic()
                print(printable_lines(self.line()), file=sys.stderr, flush=True)

    def _render(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Text(self.counts())
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for slot, job in list(self.running.items())[:SHOWN]:
            took = "" if job is None else duration(now - job.began)
            of = "" if job is None or not job.expected else f"of {duration(job.expected)}"
            title, place = ("", "") if job is None else (job.title, printable(job.place()))
            table.add_row(Text(slot), Text(title), took, of, Text(place))
        if len(self.running) > SHOWN:
            table.add_row(Text(f"and {len(self.running) - SHOWN} more"))
        return Group(head, ProgressBar(total=self.total, completed=self.done), table)


def _last_line(path: Path) -> str:
    """The last whole line of a file that is being written; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return ""
    return lines[-1].decode(errors="replace") if lines else ""
