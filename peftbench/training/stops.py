"""When training stops because it was asked to: after the same step in every process."""

from __future__ import annotations

import time

from peftbench import stopping
from peftbench.training.world import World

ASKED_EVERY = 1.0  # seconds; agreeing costs a message, and makes a GPU wait
MOST_STEPS = 1000  # between two questions


class Stops:
    """Whether one of the processes that train together was asked to stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._every = 1  # steps between two questions, as the process that leads has found
        self._asked_at = 0  # the step of the latest
        self._clock = time.monotonic()

    def asked_after(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; the same answer in every process.

        Several processes agree about once a second.
        """
        if self.world.is_single:
            return stopping.asked() is not None
        if self._asked_at and step < self._asked_at + self._every:
            return False
        now = time.monotonic()
        steps = step - self._asked_at
        wanted = int(steps * ASKED_EVERY / max(now - self._clock, 1e-6))
        answers = self.world.all_gather((stopping.asked(), wanted))
        self._every = max(1, min(answers[0][1], 2 * self._every, MOST_STEPS))
        self._asked_at, self._clock = step, now
        signals = [signum for signum, _ in answers if signum is not None]
        if signals:
            stopping.agree(signals[0])
        return bool(signals)
