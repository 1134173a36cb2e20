"""What a person sees of a training: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Timer
from typing import TYPE_CHECKING, Protocol

from peftbench.durations import duration
from peftbench.results.record import EpochRow
from peftbench.spec import RunSpec
from peftbench.untrusted import printable

if TYPE_CHECKING:
    from peftbench.training.progress import Place

FIRST_SECONDS = 10.0  # until the first line
EVERY_SECONDS = 30.0  # between two


class Follower(Protocol):
    """Is told how far training has come."""

    def kept(self, done: int, images: int) -> None:
        """Before training: frozen layers were computed of so many of the images."""

    def step(self, place: Place) -> None:
        """A step is done."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over, and what was evaluated after it."""


Showing = AbstractContextManager[Follower]


@dataclass
class _Nobody:
    """Shows nothing."""

    def kept(self, done: int, images: int) -> None:
        return

    def step(self, place: Place) -> None:
        return

    def epoch(self, row: EpochRow) -> None:
        return


@contextlib.contextmanager
def nowhere(spec: RunSpec) -> Iterator[Follower]:
    """Nobody looks."""
    yield _Nobody()


@contextlib.contextmanager
def as_bar(spec: RunSpec) -> Iterator[Follower]:
    """A bar on standard error, which is a terminal."""
    from tqdm import tqdm

    with tqdm(total=spec.recipe.total_epochs, desc=printable(str(spec)), unit="epoch") as bar:

        class Bar(_Nobody):
            def kept(self, done: int, images: int) -> None:
                bar.set_postfix_str(f"frozen layers of {done:,} of {images:,} images")

            def epoch(self, row: EpochRow) -> None:
                bar.set_postfix(loss=f"{row.loss:.3f}", train=f"{100 * row.accuracy:.1f}")
                bar.update(row.epoch - bar.n)  # more than one after a run was taken up again

        yield Bar()


@contextlib.contextmanager
def in_lines(spec: RunSpec) -> Iterator[Follower]:
    """Lines on standard error, which is a file or a pipe."""

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # it is full, or nobody reads it any more
            print(printable(line), file=sys.stderr, flush=True)

    yield Lines(str(spec), spec.recipe.total_epochs, say)


def here() -> Callable[[RunSpec], Showing]:
    """What suits standard error."""
    return as_bar if sys.stderr.isatty() else in_lines


class Lines:
    """Says epoch, loss and time left, at most every `EVERY_SECONDS`.

    The time is that of as many steps as are left, each as long as those of the last whole epoch
    were, evaluation included; before there is one, as those of this process so far. While frozen
    layers are computed before training, it is that of the images that are left.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.epochs = epochs
        self.say = say
        self.clock = clock
        self._began = self._epoch_began = clock()
        self._due = self._began + FIRST_SECONDS
        self._first: int | None = None  # steps that were done before this process
        self._of_epoch: float | None = None  # seconds that the last whole epoch took
        self._whole = False  # whether the epoch under way was begun here
        self._timer = Timer(0, say)  # says that the first images take long
        self._images: tuple[int, float] | None = None  # first ones that were computed, and when

    def kept(self, done: int, images: int) -> None:
        """Say how many images are done, unless that was said a moment ago.

        The first images of a large network may take minutes, so that their beginning is told of.
        """
        now = self.clock()
        self._timer.cancel()
        if done == 0:
            words = f"{self.title}: frozen layers are computed of {images:,} images"
            self._timer = Timer(FIRST_SECONDS, self.say, [words])
            self._timer.daemon = True
            self._timer.start()
            return
        if self._images is None or done <= self._images[0]:  # of these, or of others
            self._images = done, now
        known, since = self._images
        self._began = self._epoch_began = now  # of the steps, which follow
        if now < self._due or done >= images or done == known:
            return
        self._due = now + EVERY_SECONDS
        left = (now - since) / (done - known) * (images - done)
        self.say(
            f"{self.title}: frozen layers computed of {done:,} of {images:,} images, "
            f"about {duration(left)} left"
        )

    def step(self, place: Place) -> None:
        """Say where training is, unless that was said a moment ago."""
        now = self.clock()
        done = place.epoch * place.steps + place.position
        if self._first is None:
            self._first = done - 1
            self._whole = place.position == 1
        if now < self._due:
            return
        self._due = now + EVERY_SECONDS
        each = (now - self._began) / (done - self._first)
        if self._of_epoch is not None:
            each = self._of_epoch / place.steps
        left = each * (self.epochs * place.steps - done)
        loss, percent = place.loss(), 100 * place.position // place.steps
        self.say(
            f"{self.title}: epoch {place.epoch + 1} of {self.epochs}"
            f"{f' ({percent} %)' if percent < 100 else ''}"
            f"{'' if loss is None else f', loss {loss:.3f}'}, about {duration(left)} left"
        )

    def epoch(self, row: EpochRow) -> None:
        """Take the time that it took."""
        now = self.clock()
        if self._whole:
            self._of_epoch = now - self._epoch_began
        self._whole, self._epoch_began = True, now
