"""Promises of scores on val in the table of runs: whose they are."""

from __future__ import annotations

import dataclasses

import pytest

from peftbench.results.frame import frame


@pytest.fixture
def run(make_record):
    """A run of a phase with a seed, whose settings may differ by the rate of its recipe."""

    def make(phase: str, seed: int, score: float, lr: float = 1e-3, **changes: object):
        made = make_record()
        spec = {**made.spec, "phase": phase, "seed": seed}
        spec["recipe"] = {**made.spec["recipe"], "lr": lr}
        split = "test" if phase == "final" else "val"
        metrics = {f"{split}/top1": score, f"{split}/mean_per_class": score / 2}
        run_id = f"{phase[0]}{seed:x}{int(1e6 * lr):x}{len(changes)}".ljust(16, "0")
        made = dataclasses.replace(
            made, run_id=run_id.replace("t", "a"), spec=spec, metrics=metrics, tuning=None
        )
        return dataclasses.replace(made, **changes)

    return make


def vals(*records: object, metric: str = "top1") -> dict[tuple[str, int], float]:
    table = frame(records).dropna(subset=f"val_{metric}")
    return {(r["phase"], r["seed"]): r[f"val_{metric}"] for r in table.to_dict("records")}


def test_a_final_run_has_the_val_of_the_trial_with_its_seed_or_the_mean_of_all(run) -> None:
    found = vals(
        run("tune", 0, 0.6), run("tune", 1, 0.8), *(run("final", s, 0.5) for s in range(3))
    )
    assert found == {
        ("tune", 0): 0.6,
        ("tune", 1): 0.8,
        ("final", 0): 0.6,
        ("final", 1): 0.8,
        ("final", 2): pytest.approx(0.7),
    }


def test_trials_of_other_settings_or_splits_say_nothing(run) -> None:
    other = run("tune", 0, 0.6, lr=1e-2)
    elsewhere = run("tune", 0, 0.6)
    origin = dataclasses.replace(elsewhere.provenance, data={"manifest": "other"})
    elsewhere = dataclasses.replace(elsewhere, provenance=origin)
    for record in (other, elsewhere):
        assert ("final", 0) not in vals(record, run("final", 0, 0.5))


def test_its_own_val_comes_first_then_that_of_the_trial_that_was_chosen(run) -> None:
    trial = run("tune", 0, 0.6)
    tuned = run(
        "final", 0, 0.5, tuning={"tuner": "grid", "trials": 2, "epochs": 1, "val_top1": 0.9}
    )
    assert vals(trial, tuned)["final", 0] == 0.9
    # the search judged by top-1, so the other scores are those of the trial's own record
    assert vals(trial, tuned, metric="mean_per_class")["final", 0] == 0.3
    beside = run("final", 0, 0.5, metrics={"test/top1": 0.5, "val/top1": 0.7})
    assert vals(trial, beside)["final", 0] == 0.7


def test_a_trial_that_was_stopped_has_no_val(run) -> None:
    stopped = run("tune", 0, 0.6, stopped_epoch=3)
    assert vals(stopped, run("final", 0, 0.5)) == {}
