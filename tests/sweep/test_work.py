"""What a sweep goes on with when one of its jobs has ended."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from peftbench.results.record import Status
from peftbench.sweep.jobs import Ending
from peftbench.sweep.work import TunedWork

STOPPED = SimpleNamespace(status=Status.INTERRUPTED)


@pytest.mark.parametrize(
    "unknown",
    [
        lambda job: Ending(job, None, "held by process 1 on b", held=True),
        lambda job: Ending(job, STOPPED, "stopped before its end"),
    ],
    ids=["held by another launch", "interrupted"],
)
def test_a_search_does_not_choose_among_its_trials_while_one_of_them_is_open(
    unknown: Callable[[Any], Ending],
) -> None:
    told: list[object] = []
    search = SimpleNamespace(over=True)
    cell: Any = SimpleNamespace(
        waiting={"a": "trial a", "b": "trial b"},
        finals=["seed 0", "seed 1"],
        tell=lambda trial, record: told.append(trial),
        search=search,
    )
    work: Any = object.__new__(TunedWork)
    work.cells, work.left, work.to_run = [cell], set(), 4
    went_on: list[object] = []
    work._go_on = lambda cell: went_on.append(cell) or ["a final job"]

    def job(run_id: str) -> Any:
        return SimpleNamespace(spec=SimpleNamespace(run_id=run_id))

    assert work.after(unknown(job("a"))) == []
    assert work.after(Ending(job("b"), None, "OK")) == []
    assert (told, went_on) == (["trial b"], [])
    assert work.to_run == 2  # no final run
    assert len(work.left) == 1
