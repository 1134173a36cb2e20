"""What a sweep shows while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftbench.untrusted import printable_lines

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

SHOWN = 20  # slots; a cluster runs hundreds of jobs at a time


@dataclass
class _Running:
    title: str
    began: float
    expected: float | None  # seconds, from earlier runs of its kind


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

    def __enter__(self) -> StatusView:
        if sys.stderr.isatty() and self.total:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True),
                get_renderable=self._render,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, title: str, slot: str, expected: float | None) -> None:
        """A job has started on a slot."""
        self.running[slot] = _Running(title, time.monotonic(), expected)

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
        queued = self.total - self.done - sum(r is not None for r in self.running.values())
        mean = sum(self.seconds) / len(self.seconds)
        now = time.monotonic()
        rest = [
            max(0.0, (r.expected or mean) - (now - r.began)) for r in self.running.values() if r
        ]
        return (queued * mean + sum(rest)) / len(self.running)

    def _render(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        eta = self.eta()
        left = "" if eta is None else f", about {duration(eta)} left"
        head = Text(
            f"{self.done} of {self.total} done, {self.failed} failed, "
            f"{duration(time.monotonic() - self.began)} so far{left}"
        )
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for slot, job in list(self.running.items())[:SHOWN]:
            took = "" if job is None else duration(now - job.began)
            of = "" if job is None or not job.expected else f"of {duration(job.expected)}"
            table.add_row(Text(slot), Text("" if job is None else job.title), took, of)
        if len(self.running) > SHOWN:
            table.add_row(Text(f"and {len(self.running) - SHOWN} more"))
        return Group(head, ProgressBar(total=self.total, completed=self.done), table)


def duration(seconds: float) -> str:
    """Like `45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
