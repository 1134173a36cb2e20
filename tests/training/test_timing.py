"""Which timings can be believed: on made-up timings and clocks, whatever this machine does."""

from __future__ import annotations

import pytest

from peftbench.run.timing import Clock, disturbance
from peftbench.training.progress import Timing

EVEN = [0.1] * 20  # two seconds


def clocks(
    own: float, busy: float | None, wall: float = 2.0, cores: int = 4
) -> tuple[Clock, Clock]:
    """Two moments, between which `own` of `busy` seconds on the cores were this process's."""
    before = Clock(10.0, 3.0, None if busy is None else 100.0, cores)
    after = Clock(10.0 + wall, 3.0 + own, None if busy is None else 100.0 + busy, cores)
    return before, after


def test_even_timings_of_a_quiet_machine_can_be_believed() -> None:
    assert disturbance(EVEN, *clocks(own=2.0, busy=2.1), threads=1) is None
    assert disturbance(EVEN, *clocks(own=7.9, busy=8.0), threads=4) is None


def test_timings_between_whose_quartiles_a_quarter_lies_are_disturbed() -> None:
    # quartiles of eight of 1 s and eight of 1.5 s: 1 and 1.5, around 1.25
    assert disturbance([1.0] * 8 + [1.5] * 8, None, None, threads=1) == "spread 40 %"
    # and of 1 s and 1.2 s: 0.2 of 1.1
    assert disturbance([1.0] * 8 + [1.2] * 8, None, None, threads=1) is None


def test_a_few_slow_repetitions_disturb_no_median() -> None:
    assert disturbance([1.0] * 16 + [9.0] * 4, None, None, threads=1) is None


def test_seven_timings_have_no_quartiles_to_speak_of() -> None:
    assert disturbance([1.0, 9.0] * 3 + [1.0], None, None, threads=1) is None


def test_a_process_that_did_not_get_a_core_is_disturbed() -> None:
    # of 2 s it computed 1.2
    found = disturbance(EVEN, *clocks(own=1.2, busy=None), threads=1)
    assert found == "waited for a core 40 % of the time"
    assert disturbance(EVEN, *clocks(own=1.85, busy=None), threads=1) is None


def test_others_disturb_where_they_take_what_the_threads_could_use() -> None:
    # of 8 core seconds others took 4.8; three threads leave one core of four to them
    found = disturbance(EVEN, *clocks(own=3.0, busy=7.8), threads=3)
    assert found == "other programs took 60 % of the cores"
    # one thread leaves three quarters
    assert disturbance(EVEN, *clocks(own=2.0, busy=6.8), threads=1) is None


def test_more_threads_than_cores_leave_none_to_others() -> None:
    found = disturbance(EVEN, *clocks(own=6.0, busy=7.0), threads=16)
    assert found == "other programs took 12 % of the cores"


def test_all_that_disturbed_is_told_in_one_line() -> None:
    found = disturbance([1.0] * 8 + [1.5] * 8, *clocks(own=1.0, busy=7.4), threads=4)
    assert found == (
        "spread 40 %, waited for a core 50 % of the time, other programs took 80 % of the cores"
    )


def test_a_moment_is_too_short_for_what_the_kernel_counts() -> None:
    assert disturbance(EVEN, *clocks(own=0.0, busy=0.8, wall=0.2), threads=4) is None


def test_the_clocks_of_this_machine_go_forward() -> None:
    before, after = Clock.now(), Clock.now()
    assert before.wall <= after.wall
    assert before.own <= after.own
    assert before.cores >= 1
    if before.busy is not None and after.busy is not None:
        assert before.busy <= after.busy


@pytest.mark.parametrize("text", ["", "cpu  1 2 3\n", "cpu0 1 2\n", "cpux a b c d e f g h\n"])
def test_a_system_that_does_not_tell_what_it_does_is_not_asked_again(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **options: text)
    assert Clock.now().busy is None


def test_steps_of_a_smaller_last_batch_are_not_held_against_the_others() -> None:
    timing = Timing(steps_per_epoch=2, per_epoch=False)
    for step, (seconds, images) in enumerate([(0.2, 8), (0.1, 3)] * 3, 1):
        timing.end_step(step, seconds, images)
    # three steps warm up
    assert timing.step_seconds == [0.1, 0.2, 0.1]
    assert timing.whole == [0.2]
