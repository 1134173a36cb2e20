"""What stands between a run and its logger: nothing a logger does reaches the run."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from peftbench.loggers.base import Logger
from peftbench.results.record import EpochRow, RunRecord
from peftbench.untrusted import printable

WARNING = "peftbench: warning: "  # what the line begins with


class Guard:
    """Calls a logger about one run, from a thread of its own, and never raises.

    `start` and `epoch` return at once. `finish` waits for what is left, at most `timeout` seconds.
    The first failure is one line on standard error; after it the logger is not called again.
    """

    def __init__(self, logger: Logger | None, timeout: float = 20.0) -> None:
        self._logger = logger
        self._timeout = timeout
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="logger", daemon=True)
        self._lock = threading.Lock()
        self._over = logger is None
        self._leave: Callable[[str], object] | None = None

    def start(
        self, run_id: str, spec: Mapping[str, Any], leave: Callable[[str], object] | None = None
    ) -> None:
        """A run begins; `leave` gets a failure as well, without what its line begins with."""
        if self._logger is None:
            return
        self._leave = leave
        logger = self._logger
        self._calls.put(lambda: logger.start(run_id, spec))
        try:
            self._worker.start()
        except RuntimeError as e:  # no thread to be had
            self._give_up(str(e))

    def epoch(self, row: EpochRow) -> None:
        """An epoch of training is over."""
        if self._logger is not None:
            logger = self._logger
            self._calls.put(lambda: logger.epoch(row))

    def finish(self, record: RunRecord) -> None:
        """The run is over: wait for the logger, but not for long."""
        if self._logger is None or not self._worker.is_alive():
            return
        logger = self._logger
        self._calls.put(lambda: logger.finish(record))
        self._calls.put(None)
        self._worker.join(self._timeout)
        if self._worker.is_alive():
            self._give_up(f"no answer within {self._timeout:g} s of the end of the run.")
        else:
            self._over = True

    def close(self) -> None:
        """Let go of a logger whose run ended without a record; does nothing after `finish`."""
        with self._lock:
            over, self._over = self._over, True
        if not over:
            self._calls.put(None)
            self._release()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._over:
            try:
                call()
            except BaseException as e:  # SystemExit too: libraries have been seen to raise it
                self._give_up(str(e).strip() or type(e).__name__)
                return

    def _give_up(self, reason: str) -> None:
        with self._lock:
            over, self._over = self._over, True
        if over:
            return
        assert self._logger is not None
        name = self._logger.settings.name
        said = printable(" ".join(reason.split()))
        line = f"logger={name}: {said} The record is complete without it."
        print(f"{WARNING}{line}", file=sys.stderr)
        if self._leave is not None:
            self._leave(line)
        self._release()

    def _release(self) -> None:
        # the one warning has been given, or the run has ended for a reason of its own
        with contextlib.suppress(Exception, SystemExit):
            if self._logger is not None:
                self._logger.close()
