"""What a person sees of a training that has no terminal."""

from __future__ import annotations

import threading

import pytest

from peftbench.results.record import EpochRow
from peftbench.run import shown
from peftbench.run.shown import Lines
from peftbench.training.progress import Place


class Clock:
    """Says the time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def trained(lines: Lines, clock: Clock, epochs: int, *, steps: int, seconds: float) -> None:
    """Epochs of so many steps, each of which takes so long."""
    for epoch in range(epochs):
        for position in range(1, steps + 1):
            clock.now += seconds
            lines.step(Place(epoch, position, steps, lambda: 0.5))
        lines.epoch(EpochRow(epoch + 1, 0.5, 0.9, 0.1, steps * seconds))


def test_a_line_has_epoch_loss_and_time_left_and_comes_every_half_minute() -> None:
    said: list[str] = []
    clock = Clock()
    trained(Lines("lora", 10, said.append, clock), clock, 2, steps=100, seconds=0.5)
    # at 10 s 20 of 1000 steps are done and 980 half seconds are left, 490 s; then at 40, 70 and
    # 100 s: 460 s, 430 s, 400 s
    assert said == [
        "lora: epoch 1 of 10 (20 %), loss 0.500, about 8 min left",
        "lora: epoch 1 of 10 (80 %), loss 0.500, about 8 min left",
        "lora: epoch 2 of 10 (40 %), loss 0.500, about 7 min left",
        "lora: epoch 2 of 10, loss 0.500, about 7 min left",
    ]


def test_a_run_of_seconds_says_nothing() -> None:
    said: list[str] = []
    clock = Clock()
    trained(Lines("lora", 10, said.append, clock), clock, 10, steps=3, seconds=0.3)
    assert said == []


def test_the_time_left_is_that_of_the_last_epoch_with_its_evaluation() -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines("lora", 11, said.append, clock)
    lines.step(Place(0, 1, 1, lambda: None))
    clock.now = 60.0  # an epoch of one step, and its evaluation
    lines.epoch(EpochRow(1, 0.5, 0.9, 0.1, 60.0))
    lines.step(Place(1, 1, 1, lambda: None))
    assert said == ["lora: epoch 2 of 11, about 9 min left"]  # nine of them


@pytest.mark.parametrize("position", [1, 7])
def test_a_run_that_goes_on_counts_its_own_steps_alone(position: int) -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines("lora", 10, said.append, clock)
    for step in range(position, position + 3):
        clock.now += 20.0
        lines.step(Place(5, step, 10, lambda: 1.25))
    # the first step took 20 s: of 100 steps in all, 50 + position are done
    left = round(20.0 * (100 - 50 - position) / 60)
    percent = 10 * position
    assert said[0] == f"lora: epoch 6 of 10 ({percent} %), loss 1.250, about {left} min left"


def test_frozen_layers_that_are_computed_before_training_are_told_of() -> None:
    said: list[str] = []
    clock = Clock()
    lines = Lines("linear", 10, said.append, clock)
    for done in range(128, 128 * 20 + 1, 128):
        clock.now += 3.0
        lines.kept(min(done, 2500), 2500)
    # at 12 s 384 images took 9 s since the first 128, and 1,988 are left; then after 30 s more
    assert said == [
        "linear: frozen layers computed of 512 of 2,500 images, about 47 s left",
        "linear: frozen layers computed of 1,792 of 2,500 images, about 17 s left",
    ]
    lines.kept(10, 10)  # of others, and all of them at once
    # training begins now: its steps take 31 s each
    clock.now += 31.0
    lines.step(Place(0, 1, 2, lambda: None))
    assert said[2:] == ["linear: epoch 1 of 10 (50 %), about 10 min left"]


def test_first_images_that_take_long_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "FIRST_SECONDS", 0.01)
    said: list[str] = []
    heard = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        heard.set()

    lines = Lines("linear", 10, say, Clock())
    lines.kept(0, 2500)
    assert heard.wait(20)
    assert said == ["linear: frozen layers are computed of 2,500 images"]
    monkeypatch.setattr(shown, "FIRST_SECONDS", 3600.0)
    lines.kept(0, 2500)
    waiting = lines._timer
    lines.kept(128, 2500)
    assert waiting.finished.is_set()  # cancelled: nothing keeps the process
