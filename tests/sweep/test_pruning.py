"""Hopeless trials: the rules against Optuna's, and what a search makes of a trial that stopped."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from support.tiny_runs import tiny_spec

from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError
from peftbench.results.record import EpochRow, RunRecord, Status
from peftbench.spec import Phase
from peftbench.sweep.tuning.cells import TunedCell, advance, make_cells
from peftbench.sweep.tuning.pruning import Curve, Pruner, ValChecks

EPOCHS = 8
THEIRS = {
    "median": optuna.pruners.MedianPruner(n_startup_trials=4),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
}
# theirs looks at rungs of 2, 4, 8... epochs
OURS = {
    "median": Pruner("median", at=(0.25, 0.5), startup=4),
    "halving": Pruner("halving", at=(0.25, 0.5), reduction=2),
}


@pytest.mark.parametrize("rule", ["median", "halving"])
def test_the_same_trials_are_stopped_as_by_optuna(rule: str) -> None:
    rng = random.Random(5)
    study = optuna.create_study(direction="maximize", pruner=THEIRS[rule])
    curves: list[Curve] = []
    stopped = 0
    for _ in range(60):
        # accuracies that rise, so that the latest of a trial is its best
        trial, values = study.ask(), sorted(rng.random() for _ in range(2))
        ours = theirs = None
        reached: dict[int, float] = {}
        checks = OURS[rule].val_checks(curves, EPOCHS)
        assert [epoch for epoch, _ in checks] == [2, 4]
        for (epoch, bound), value in zip(checks, values, strict=True):
            reached[epoch] = value
            trial.report(value, epoch)
            ours = bound is not None and max(reached.values()) < bound
            theirs = trial.should_prune()
            assert ours == theirs
            if ours:
                break
        stopped += bool(ours)
        curves.append(Curve(reached, whole=not ours))
        study.tell(
            trial,
            None if theirs else values[-1],
            optuna.trial.TrialState.PRUNED if theirs else None,
        )
    assert 10 < stopped < 56


def test_a_trial_must_reach_the_median_of_whole_trials() -> None:
    curves = [Curve({2: v, 4: v + 0.1}, whole=True) for v in (0.1, 0.2, 0.4, 0.6)]
    pruner = OURS["median"]
    assert pruner.val_checks(curves[:3], EPOCHS) == (
        (2, None),
        (4, None),
    )  # too few to compare with
    # the median of 0.1 0.2 0.4 0.6 is 0.3; one that was stopped has no say
    expected = ((2, pytest.approx(0.3)), (4, pytest.approx(0.4)))
    assert pruner.val_checks([*curves, Curve({2: 0.0}, whole=False)], EPOCHS) == expected


@pytest.mark.parametrize(
    ("pruner", "epochs", "expected"),
    [
        (Pruner("median", at=(0.25, 0.5)), 50, (13, 25)),
        (Pruner("median", at=(0.5, 0.25, 0.26)), 4, (1, 2)),
        (Pruner("halving", at=(0.5,)), 1, ()),  # nothing is left to save
        (Pruner(), 50, ()),
    ],
)
def test_a_trial_is_looked_at_after_shares_of_its_epochs(
    pruner: Pruner, epochs: int, expected: tuple[int, ...]
) -> None:
    assert pruner.epochs(epochs) == expected


def search(folder: Path, **options: object) -> TunedCell:
    space = {"recipe": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}}
    settings = {"name": "optuna", "trials": 12, "pruner": "median", "startup": 2} | options
    folder.mkdir(exist_ok=True)
    tuner = TunerConfig(space=space, **settings)  # type: ignore[arg-type]
    spec = tiny_spec("bias", recipe={"epochs": EPOCHS})
    (cell,) = make_cells([(("method=bias", "seed=1"), spec)], tuner, str(folder))
    return cell


def played(cell: TunedCell, count: int | None = None) -> list[tuple[str, ...]]:
    """Overrides of the trials of a search whose accuracy is highest at a rate of 1e-2."""
    seen: list[tuple[str, ...]] = []
    while count is None or len(seen) < count:
        queued: list[tuple[str, ...]] = []

        def start(overrides: tuple[str, ...], queue: list = queued) -> tuple[str, None]:
            queue.append(overrides)
            return "id", None

        advance(cell, start, 1)
        if not queued:
            break
        (overrides,) = queued
        trial = cell.waiting.pop("id")
        rate = float(dict(trial.point)["recipe.lr"])
        final = 1 / (1 + abs(rate - 1e-2) * 100)
        seen.append(overrides)
        cell.tell(trial, record_of(checks_in(overrides), final))
    return seen


def checks_in(overrides: tuple[str, ...]) -> ValChecks:
    (text,) = (o for o in overrides if o.startswith("+looks="))
    pairs = [pair.split(":") for pair in text[len("+looks={") : -1].split(",")]
    return tuple((int(e), None if b == "null" else float(b)) for e, b in pairs)


def record_of(checks: ValChecks, final: float) -> RunRecord:
    """Of a run whose accuracy grows evenly with the epochs."""
    reached: dict[str, float] = {}
    stopped = None
    for epoch, bound in checks:
        reached[str(epoch)] = final * epoch / EPOCHS
        if bound is not None and reached[str(epoch)] < bound:
            stopped = epoch
            break
    ran = stopped or EPOCHS
    history = [EpochRow(e + 1, 1.0, 0.5, 0.1, 1.0) for e in range(ran)]
    return RunRecord(
        "id",
        {},
        Status.OK,
        metrics={"val/top1": final * ran / EPOCHS},
        looks=reached,
        stopped_epoch=stopped,
        history=history,
    )


def test_a_stopped_trial_counts_in_the_budget_saves_epochs_and_cannot_win(tmp_path: Path) -> None:
    cell = search(tmp_path)
    assert len(played(cell)) == 12
    assert cell.search.over
    stopped = [not curve.whole for curve in cell.curves]
    assert 0 < sum(stopped) < 12
    assert stopped[:2] == [False, False]
    assert len(cell.search.scores) == 12 - sum(stopped)
    assert cell.epochs_spent < 12 * EPOCHS
    (final,) = cell.final_overrides()
    (note,) = (o for o in final if o.startswith("tuning="))
    assert f'"trials": 12, "epochs": {EPOCHS}' in note
    assert f'"stopped": {sum(stopped)}, "epochs_spent": {cell.epochs_spent}}}' in note


def test_an_interrupted_search_asks_the_same_of_its_trials(tmp_path: Path) -> None:
    expected = played(search(tmp_path / "whole"))
    assert played(search(tmp_path / "parts"), count=5) == expected[:5]
    assert played(search(tmp_path / "parts")) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruner": "mean"}, r"Unknown tuner\.pruner 'mean'\. Did you mean: median\?"),
        ({"look_at": [1.0]}, r"tuner\.look_at=\[1\.0\]: give fractions of the epochs"),
        ({"look_at": []}, r"tuner\.look_at=\[\]: give fractions"),
        ({"pruner": "halving", "reduction": 1}, r"tuner\.reduction=1: use 1 or more, and 2"),
        (
            {"name": "grid", "space": {"recipe": {"lr": [0.1]}}},
            r"run side by side\. Use tuner=optuna\.",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        if "space" in options:
            tuner = TunerConfig(pruner="median", **options)
            make_cells([((), tiny_spec("bias"))], tuner, str(tmp_path))
        else:
            search(tmp_path, **options)


def test_looks_are_part_of_a_trial_and_of_no_final_run() -> None:
    plain = tiny_spec(phase=Phase.TUNE)
    assert tiny_spec(phase=Phase.TUNE, looks=((1, None),)).run_id != plain.run_id
    with pytest.raises(ConfigError, match="is for trials, which see val: phase=tune"):
        tiny_spec(looks=((1, None),))
    with pytest.raises(ConfigError, match="epochs count from 1"):
        tiny_spec(phase=Phase.TUNE, looks=((0, None),))
