"""What Slurm's commands say of jobs, read from their answers; no Slurm is asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from peftbench.sweep.queues.states import FORGOTTEN, UNDER_WAY, States, how_it_ended
from peftbench.sweep.queues.submission import CANCELLED, TIME_LIMIT, Gone

UNKNOWN = (1, "", "slurm_load_jobs error: Invalid job id specified")
AWAY = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
ABSENT = (1, "", "[Errno 2] No such file or directory: 'sacct'")
DISABLED = (1, "", "Slurm accounting storage is disabled")


class Slurm:
    """Answers, and how often they were given."""

    def __init__(self, squeue: tuple[int, str, str], sacct: tuple[int, str, str]) -> None:
        self.answers = {"squeue": squeue, "sacct": sacct}
        self.asked: list[str] = []
        self.now = 0.0

    def states(self) -> States:
        return States(10.0, self.ask, lambda: self.now)

    def ask(self, command: Sequence[str]) -> tuple[int, str, str]:
        self.asked.append(f"{command[0]} {command[-1]}")
        return self.answers[command[0]]


@pytest.mark.parametrize(
    ("squeue", "sacct", "state"),
    [
        ((0, "17_0|RUNNING\n17_1|PENDING\n", ""), DISABLED, "RUNNING"),
        # accounts still tell of the time before a requeue
        ((0, "17_0|PENDING\n", ""), (0, "17_0|PREEMPTED\n", ""), "PENDING"),
        ((0, "17_[0-3%2]|PENDING\n", ""), DISABLED, "PENDING"),
        ((0, "17_[5,0,9]|PENDING\n", ""), DISABLED, "PENDING"),
        ((0, "17_0|REQUEUE_HOLD\n", ""), DISABLED, "REQUEUE_HOLD"),
        ((0, "18|RUNNING\n", ""), (0, "17_0|CANCELLED by 1000|node7\n", ""), "CANCELLED"),
        (UNKNOWN, (0, "17_0.batch|FAILED\n17_0|OUT_OF_MEMORY\n", ""), "OUT_OF_MEMORY"),
        (UNKNOWN, (0, "17_0|CANCELLED+\n", ""), "CANCELLED"),
        (UNKNOWN, DISABLED, FORGOTTEN),
        (UNKNOWN, ABSENT, FORGOTTEN),
        (UNKNOWN, (0, "17_7|COMPLETED\n", ""), FORGOTTEN),
        (AWAY, (0, "17_0|NODE_FAIL\n", ""), "NODE_FAIL"),
        (AWAY, DISABLED, None),  # nobody says anything: it may well be running
        (ABSENT, ABSENT, None),
        ((0, "some words\n\n", ""), DISABLED, FORGOTTEN),
    ],
)
def test_squeue_counts_and_sacct_tells_of_the_rest(
    squeue: tuple[int, str, str], sacct: tuple[int, str, str], state: str | None
) -> None:
    assert Slurm(squeue, sacct).states()("17_0") == state


def test_slurm_is_asked_seldom_and_for_all_jobs_at_once() -> None:
    slurm = Slurm((0, "17|RUNNING\n18_0|RUNNING\n18_1|FAILED\n", ""), DISABLED)
    states = slurm.states()
    states.follow(["17", "18_0", "18_1"])
    assert [states(n) for n in ("17", "18_0", "18_1")] == ["RUNNING", "RUNNING", "FAILED"]
    assert slurm.asked == ["squeue --jobs=17,18"]
    slurm.now = 9.0
    states("17")
    assert len(slurm.asked) == 1
    slurm.now = 10.0
    states.forget("17")
    assert states("18_0") == "RUNNING"
    assert slurm.asked[1:] == ["squeue --jobs=18"]


def test_what_was_just_submitted_is_asked_for_when_it_is_time() -> None:
    slurm = Slurm((0, "17|COMPLETED\n", ""), DISABLED)
    states = slurm.states()
    states.follow(["17"], ask=False)
    assert states("17") is None and slurm.asked == []
    slurm.now = 10.0
    assert states("17") == "COMPLETED"


@pytest.mark.parametrize("state", sorted(UNDER_WAY) + [None])
def test_what_slurm_may_go_on_with_is_not_over(state: str | None) -> None:
    assert how_it_ended(state) is None


@pytest.mark.parametrize(
    ("state", "gone"),
    [
        ("CANCELLED", Gone(CANCELLED)),
        ("TIMEOUT", Gone(TIME_LIMIT)),
        ("NODE_FAIL", Gone("ended as NODE_FAIL", machine=True)),
        ("BOOT_FAIL", Gone("ended as BOOT_FAIL", machine=True)),
        ("PREEMPTED", Gone("ended as PREEMPTED", machine=True)),
        ("FAILED", Gone("ended as FAILED")),
        ("COMPLETED", Gone("ended as COMPLETED")),
        ("DEADLINE", Gone("ended as DEADLINE")),
        ("A_STATE_OF_TOMORROW", Gone("ended as A_STATE_OF_TOMORROW")),
        (FORGOTTEN, Gone("is no longer known to Slurm")),
    ],
)
def test_what_is_over_says_whether_its_machine_is_to_blame(state: str, gone: Gone) -> None:
    assert how_it_ended(state) == gone
