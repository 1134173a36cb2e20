"""Trials of one search in one process: each leaves the record that it leaves by itself."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_runs import digits, repeatable, tiny_spec

from peftbench.methods import METHODS, discover
from peftbench.results.latencies import StepCost
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import benches, experiment, trials
from peftbench.run.experiment import RunOptions
from peftbench.spec import Phase, Precision, RunSpec
from peftbench.training import stacked
from peftbench.training.device import Compute
from peftbench.training.saving import CheckpointPolicy

pytestmark = pytest.mark.arithmetic
KEEPING = RunOptions(activations=10**9)
POINTS = ((1e-3, 0.0), (3e-2, 1e-2), (1e-1, 1e-3))
QUICK = ("adapter", "fact_tt", "lora", "partial")  # bottlenecks, factors, a block behind a prefix
discover()
OTHERS = tuple(
    name
    for name in METHODS
    if not METHODS[name].card.solved
    and not name.startswith("hf_")
    # a method of methods, and one whose own search takes a minute
    and name not in (*QUICK, "compose", "noah")
)
NUMBER = min(int(os.environ.get("RARE_PAIRS", len(OTHERS))), len(OTHERS))
SEEN = [
    pytest.param(name, marks=pytest.mark.slow) for name in random.Random(0).sample(OTHERS, NUMBER)
]
# what the network itself computes trains: position embeddings, a network around it; several modules
# read one tensor, or a method has an objective of its own; or nothing is defined on this backbone
APART = (
    *("conv_adapter", "da_vpt", "dyt", "full", "hst", "lst", "sidetune", "snell"),
    *("spt_adapter", "spt_lora", "vpt_pad"),
)
ONE_OTHER = "trained in one pass with 1 other trial"
TWO_OTHERS = "trained in one pass with 2 other trials"


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trials share their steps whether that is faster here or not."""
    monkeypatch.setattr(trials, "is_faster", lambda bench, step: step is not None)
    yield
    _die()
    trials._apart.clear()


def grid(method: str, *points: tuple[float, float], **changes: Any) -> list[RunSpec]:
    """Trials that differ in rate and decay."""
    recipe = {"optimizer": "momentum", "batch_size": 4} | changes.pop("recipe", {})
    changes = {"dataset": digits(11), "precision": Precision.FLOAT32} | changes
    return [
        tiny_spec(
            method,
            phase=Phase.TUNE,
            recipe={**recipe, "lr": lr, "weight_decay": decay},
            **changes,
        )
        for lr, decay in points or POINTS
    ]


def ran(root: Path, specs: list[RunSpec], *, together: bool) -> list[RunRecord]:
    """Their records, of runs one after another in this process."""
    store = ResultsStore(root)
    found = []
    for number, spec in enumerate(specs):
        beside = tuple(specs[number + 1 :]) if together else ()
        options = dataclasses.replace(KEEPING, beside=beside)
        found.append(experiment.run(spec, store, options))
    return found


def assert_same(record: RunRecord, alone: RunRecord) -> None:
    """The same but for the note, up to rounding of float32."""
    assert record.status is alone.status, record.error
    assert record.metrics.keys() == alone.metrics.keys()
    assert record.parameters == alone.parameters and record.looks == alone.looks
    for key, value in alone.metrics.items():
        assert record.metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert len(record.history) == len(alone.history)
    for one, other in zip(record.history, alone.history, strict=True):
        assert (one.epoch, one.lr, one.accuracy) == (other.epoch, other.lr, other.accuracy)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("method", [*QUICK, *SEEN])
def test_trials_of_every_method_leave_the_records_of_runs_by_themselves(
    tmp_path: Path, method: str
) -> None:
    specs = grid(method, *POINTS[:2])
    alone = ran(tmp_path / "alone", specs, together=False)
    together = ran(tmp_path / "together", specs, together=True)
    for record, plain in zip(together, alone, strict=True):
        assert_same(record, plain)
        added = [] if method in APART else [ONE_OTHER]
        assert record.notes == [*plain.notes, *added]


VARIANTS: dict[str, dict[str, Any]] = {
    "drop-path of frozen layers": {"frozen_mode": "train"},
    "mixed, mirrored": {"augmentation": "flip", "mixup": 0.2, "cutmix": 1.0},
    "clipped, averaged": {"clip_grad": 0.05, "ema_decay": 0.7, "label_smoothing": 0.1},
    "balanced": {"class_weights": "balanced", "decay": "all", "schedule_unit": "epoch"},
    "lamb": {"optimizer": "lamb"},  # whose step depends on the weights as a whole
}


SLOW = ("balanced", "lamb")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in VARIANTS],
)
def test_trials_under_any_recipe_leave_the_records_of_runs_by_themselves(
    tmp_path: Path, variant: str
) -> None:
    specs = grid("adapter_plus", *POINTS[:2], recipe=VARIANTS[variant])  # with drop-path of its own
    alone = ran(tmp_path / "alone", specs, together=False)
    together = ran(tmp_path / "together", specs, together=True)
    for record, plain in zip(together, alone, strict=True):
        assert_same(record, plain)
        assert ONE_OTHER in record.notes


def test_a_trial_that_diverges_is_recorded_so_and_harms_no_other(tmp_path: Path) -> None:
    recipe = {"schedule": "constant", "epochs": 3}
    specs = grid("adapter", (1e38, 0.0), (1e-2, 0.0), (1e-3, 0.1), recipe=recipe)
    alone = ran(tmp_path / "alone", specs, together=False)
    together = ran(tmp_path / "together", specs, together=True)
    assert [record.status for record in alone] == [Status.DIVERGED, Status.OK, Status.OK]
    for record, plain in zip(together, alone, strict=True):
        assert_same(record, plain)
        assert record.error == plain.error
    assert TWO_OTHERS in together[1].notes


def test_a_search_that_dies_in_a_pass_or_behind_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = grid("adapter", recipe={"epochs": 3})
    alone = ran(tmp_path / "alone", specs, together=False)
    store, saving = ResultsStore(tmp_path / "together"), CheckpointPolicy(steps=2)
    options = [
        dataclasses.replace(KEEPING, beside=tuple(specs[number + 1 :]), saving=saving)
        for number in range(len(specs))
    ]
    steps = []
    finish = stacked.finish_step

    def stopped(training: Any) -> None:
        steps.append(training)
        if len(steps) == 14:  # of the second trial's fifth step
            raise KeyboardInterrupt
        finish(training)

    with monkeypatch.context() as patch:
        patch.setattr(stacked, "finish_step", stopped)
        assert experiment.run(specs[0], store, options[0]).status is Status.INTERRUPTED
    _die()
    first = experiment.run(specs[0], store, options[0])
    assert first.cost is not None and first.cost.resumed == 1
    _die()  # what the others reached was in memory alone
    others = [experiment.run(specs[n], store, options[n]) for n in (1, 2)]
    for record, plain in zip([first, *others], alone, strict=True):
        assert_same(record, plain)
    assert TWO_OTHERS in first.notes and ONE_OTHER in others[0].notes


def test_as_many_trials_share_a_pass_as_the_memory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = grid("adapter", *POINTS, (1e-2, 0.0))
    monkeypatch.setattr(trials.room, "trials_that_fit", lambda bench, step: 2)
    for record in ran(tmp_path / "results", specs, together=True):
        assert ONE_OTHER in record.notes


def test_trials_that_share_no_step_share_all_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    prepare = benches.prepare
    monkeypatch.setattr(benches, "prepare", lambda *given: loaded.append(given) or prepare(*given))
    monkeypatch.setattr(trials, "is_faster", lambda bench, step: False)
    specs = grid("mlp", recipe={"optimizer": "adamw"})  # with statistics, and dropout
    alone = ran(tmp_path / "alone", specs, together=False)
    assert len(loaded) == 3
    together = ran(tmp_path / "together", specs, together=True)
    assert len(loaded) == 4
    for record, plain in zip(together, alone, strict=True):
        one, other = repeatable(record), repeatable(plain)
        assert one == other
    other_seed = dataclasses.replace(specs[0], seed=1)
    ran(tmp_path / "other", [specs[0]], together=False)
    assert len(loaded) == 5  # nothing is left for what follows
    store = ResultsStore(tmp_path / "third")
    experiment.run(specs[0], store, dataclasses.replace(KEEPING, beside=(other_seed,)))
    experiment.run(other_seed, store, KEEPING)
    assert len(loaded) == 7  # another seed is another kind


def test_small_steps_in_bfloat16_are_shared_on_a_cpu() -> None:
    small, large = StepCost(10 * 2**20, 0.1, 10**8), StepCost(100 * 2**20, 4.0, 10**9)
    fast, exact = (Compute(torch.device("cpu"), kind) for kind in (torch.bfloat16, torch.float32))
    assert trials.is_small(small, fast)
    assert not trials.is_small(large, fast)
    assert not trials.is_small(small, exact)


def _die() -> None:
    """Lose what a process loses at its end."""
    trials._waiting.clear()
    benches._now = benches._next = None
