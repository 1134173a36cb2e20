"""Which trials share a pass, and how a job is told of the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.tiny_runs import tiny_spec

from peftbench.errors import ConfigError
from peftbench.spec import Phase
from peftbench.sweep.beside import override, passes, runs_beside
from peftbench.sweep.jobs import Job

POINTS = ((1e-2, 0.0), (1e-3, 1e-4), (3e-4, 0.1), (0.1, 1e-5), (0.30000000000000004, 0.0))


def job(method: str = "linear", lr: float = 1e-3, decay: float = 0.0, **changes: Any) -> Job:
    recipe = changes.pop("recipe", {}) | {"lr": lr, "weight_decay": decay}
    changes = {"phase": Phase.TUNE} | changes
    spec = tiny_spec(method, recipe=recipe, **changes)
    return Job((f"method={method}", f"recipe.lr={lr}"), spec)


GRID = [job(lr=lr, decay=decay) for lr, decay in POINTS]


@pytest.mark.parametrize(("slots", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (9, [1] * 5)])
def test_trials_of_one_kind_share_as_many_passes_as_there_are_slots(
    slots: int, sizes: list[int]
) -> None:
    found = passes(GRID, slots)
    assert [len(one) for one in found] == sizes
    assert [j for one in found for j in one] == GRID


def test_other_heads_tasks_seeds_and_recipes_have_a_pass_of_their_own() -> None:
    others = [
        job("mlp"),
        job(seed=1),
        job(recipe={"epochs": 3}),
        job(precision="bfloat16"),
        job(recipe={"optimizer": "sgd"}),
    ]
    assert passes([GRID[0], *others, GRID[1]], 1) == [[GRID[0], GRID[1]], *([o] for o in others)]


def test_final_runs_watched_trials_and_methods_without_steps_train_alone() -> None:
    for changes in ({"phase": Phase.FINAL}, {"looks": ((1, None),)}, {"method": "logistic"}):
        jobs = [job(**changes, lr=lr) for lr in (0.1, 0.2)]
        assert [len(one) for one in passes(jobs, 1)] == [1, 1]


@pytest.mark.parametrize("method", ["linear", "lora", "full"])
def test_trials_share_a_process_whatever_they_train(method: str) -> None:
    jobs = [job(method, lr=lr, recipe={"optimizer": "lamb"}) for lr in (0.1, 0.2)]
    assert passes(jobs, 1) == [jobs]


def test_where_jobs_end_after_some_time_none_but_heads_spends_its_own_on_others() -> None:
    heads, others = ([job(name, lr=lr) for lr in (0.1, 0.2)] for name in ("linear", "lora"))
    assert passes([*heads, *others], 1, are_timed=True) == [heads, [others[0]], [others[1]]]


def test_a_job_knows_the_runs_beside_it_to_the_last_digit() -> None:
    (text,) = override(GRID[1:])
    points = text.removeprefix("one_pass='").removesuffix("'")
    beside = runs_beside(GRID[0].spec, points)
    assert [spec.run_id for spec in beside] == [j.spec.run_id for j in GRID[1:]]
    assert beside == tuple(j.spec for j in GRID[1:])
    assert override([]) == ()
    assert runs_beside(GRID[0].spec, "") == ()


@pytest.mark.parametrize("points", ["[1]", "{", '[["a", 1]]', "5", "[[1]]"])
def test_what_no_sweep_wrote_is_refused_in_one_line(points: str) -> None:
    with pytest.raises(ConfigError, match="Leave it to sweeps"):
        runs_beside(GRID[0].spec, points)


def test_a_job_that_shares_a_pass_is_the_run_that_it_is_by_itself() -> None:
    spec = GRID[0].spec
    (beside,) = runs_beside(spec, f"[[{spec.recipe.lr}, {spec.recipe.weight_decay}]]")
    assert beside == dataclasses.replace(spec)
