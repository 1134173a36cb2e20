"""Time that a comparison has left goes into further divisions of the pictures."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_runs import tiny_spec, write_images

from peftbench.results.predictions import Predictions
from peftbench.results.record import Cost, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.experiment import RunOptions
from peftbench.spec import Phase, RunSpec
from peftbench.sweep.compare import jobs, story
from peftbench.sweep.compare.contest import TIMES, Agenda, Contest
from peftbench.sweep.compare.standing import Result, chance, standing

METHODS = ("majority", "logistic", "linear", "lora")
RIGHT = {"majority": 0.5, "logistic": 0.8, "linear": 0.8, "lora": 0.8}
SECONDS = {"majority": 1, "logistic": 1, "linear": 1, "lora": 20}  # of one run


class Laboratory:
    """Runs that take no time but that of a clock, and say what is decided above."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.now = 0.0
        self.records: dict[str, RunRecord] = {}
        self.made: list[RunSpec] = []

    def run(self, spec: RunSpec, store: Any, options: Any, *, tuning: Any = None) -> RunRecord:
        known = self.records.get(spec.run_id)
        if known is not None:
            return known
        self.made.append(spec)
        method = spec.method.name
        self.now += SECONDS[method]
        share = RIGHT[method]
        split = "val" if spec.phase is Phase.TUNE else "test"
        metrics = {f"{split}/{name}": share for name in ("top1", "mean_per_class")}
        record = RunRecord(
            spec.run_id,
            spec.describe(),
            Status.OK,
            metrics=metrics | {f"{split}/num_images": 4.0},
            cost=Cost(
                "cpu",
                "float32",
                train_images_per_second=1000.0,
                activations_computed=100,
                seconds_train=0.01,
                seconds_total=SECONDS[method],
            ),
        )
        self.records[spec.run_id] = record
        return record

    def predictions(self, method: str, run_id: str) -> Predictions:
        """Of four images of the fold; every method is right on other ones, equally often."""
        dataset = self.records[run_id].spec["dataset"]
        fold = dataset.get("fold") or 0
        numbers = np.arange(4, dtype=np.int32) + 4 * fold
        labels = np.zeros(4, np.int32)
        wrong = {"majority": (0, 1), "logistic": (0,), "linear": (1,), "lora": (2,)}[method]
        classes = labels.copy()
        classes[list(wrong)] = 1
        ones = np.ones(4, np.float32)
        known = numbers if dataset.get("folds") else None
        return Predictions(classes, ones, ones, labels, None, known)


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Contest]:
    """Makes a contest on a folder, or with `given` on a list that says what test is."""
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "pets", per_class=10)
    rows = ["path,label,split"]
    for kind in ("cat", "dog"):
        for index in range(10):
            split = "test" if index < 2 else "train"
            rows.append(f"pets/{kind}/{index}.png,{kind},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lab = Laboratory(20)
    store = ResultsStore(tmp_path / "results")
    monkeypatch.setattr(experiment, "run", lab.run)
    monkeypatch.setattr(experiment, "finished_record", lambda spec, _: lab.records.get(spec.run_id))
    monkeypatch.setattr(store, "load_predictions", lab.predictions)

    def make(seconds: float, methods: Sequence[str] = METHODS, given: bool = False) -> Contest:
        place = jobs.find(str(tmp_path / ("list.csv" if given else "pets")))
        bases = {name: tiny_spec(name, dataset=place.splits[0]) for name in methods}
        agenda = Agenda(place, bases, "top1", seconds)
        told: list[str] = []
        made = Contest(agenda, store, RunOptions(), told.append, clock=lambda: lab.now)
        made.lab, made.told = lab, told  # type: ignore[attr-defined]
        return made

    return make


def finals(contest: Any) -> dict[str, list[tuple[int, int, int | None]]]:
    """By method, the split seed, seed and fold of each final run."""
    found: dict[str, list[Any]] = {}
    for spec in contest.lab.made:
        if spec.phase is Phase.FINAL:
            data = spec.dataset
            found.setdefault(spec.method.name, []).append((data.split_seed, spec.seed, data.fold))
    return found


def test_all_methods_that_are_level_run_on_folds_that_are_drawn_again(contest: Any) -> None:
    long = contest(1e6)
    now = long.run()
    assert now is not None and set(now.level) == {"logistic", "linear", "lora"}
    every = [(k, k, fold) for k in range(1 + TIMES) for fold in range(5)]
    for method in METHODS:
        assert finals(long)[method] == every
    assert long.further == 5 * TIMES
    assert {row.splits for row in now.rows} == {5 + 5 * TIMES}
    assert {row.images for row in now.rows} == {20}  # each counts once
    manifests = {spec.dataset.manifest for spec in long.lab.made}
    assert len(manifests) == 5 * (1 + TIMES)
    (line,) = story.further(long.further, 5, folds=True)
    assert line.startswith("Time was left: folds were drawn 4 more times, and 20 of them tested.")


def test_only_what_the_time_is_enough_for_runs_and_cheap_methods_come_first(contest: Any) -> None:
    # heads: 5 folds of 2 + 2 + 4 s, once 1.2 of a run more; lora: 5 folds of 4 runs of 20 s
    first = 5 * 8 + 5 * 80
    short = contest((first + 60) / 0.95)
    now = short.run()
    assert now is not None
    runs = Counter({method: len(found) for method, found in finals(short).items()})
    assert runs["lora"] == 5 and runs["linear"] == runs["logistic"] == runs["majority"] > 5
    assert short.lab.now <= first + 60
    assert now.partial == ("lora",)
    none = contest(0.0)
    none.run()
    assert none.further == short.further  # what was run before counts, whatever the time
    assert none.lab.made == short.lab.made


def test_the_same_comparison_goes_on_and_repeats_no_run(contest: Any) -> None:
    first = contest((5 * 88 + 60) / 0.95)
    first.run()
    before = [spec.run_id for spec in first.lab.made]
    again = contest((5 * 88 + 60) / 0.95)
    again.run()
    after = [spec.run_id for spec in again.lab.made]
    assert after[: len(before)] == before and len(after) == len(set(after)) > len(before)
    assert again.further > first.further


def test_nothing_is_divided_again_where_nothing_is_left_to_tell(
    contest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = contest(1e6, methods=("majority", "logistic"))
    now = alone.run()
    assert now is not None and now.level == ("logistic",) and alone.further == 0


def test_given_test_pictures_are_tested_with_further_seeds_of_what_takes_steps(
    contest: Any,
) -> None:
    given = contest(1e6, given=True)
    now = given.run()
    assert now is not None
    assert finals(given)["linear"] == [(0, seed, None) for seed in range(1 + TIMES)]
    assert finals(given)["logistic"] == [(0, 0, None)]  # no seed changes it
    assert {(row.splits, row.images) for row in now.rows} == {(1 + TIMES, 4)}
    (line,) = story.further(given.further, 1, folds=False)
    assert line.startswith("Time was left: methods that take steps ran with 4 more seeds.")
    still = contest(1e6, methods=("majority", "logistic"), given=True)
    still.run()
    assert still.further == 0
    assert story.further(0, 5, folds=True) == []


def result(method: str, hits: Sequence[int], split: int, images: int = 8) -> Result:
    labels = np.zeros(images, np.int64)
    metrics = {"top1": float(np.mean(hits)), "mean_per_class": float(np.mean(hits))}
    classes = 1 - np.asarray(hits)
    numbers = np.arange(images)
    return Result(
        method, split, f"{method}{split}", 0.5, 10, 0.5, metrics, labels, classes, 0, 1.0, numbers
    )


def test_an_image_that_several_splits_test_counts_once() -> None:
    ones, zeros = [1] * 8, [1, 1] + [0] * 6
    once = [result("linear", ones, 0)], [result("lora", zeros, 0)]
    # six images on which one is right alone: 2 / 2^6
    assert chance(*once) == pytest.approx(2 / 64)
    thrice = [[dataclasses.replace(a[0], split=k) for k in range(3)] for a in once]
    assert chance(*thrice) == pytest.approx(2 / 64)
    # right on image 0 in two splits of three and wrong on the others, and the other way round
    mixed = [result("linear", [1, 0], k, 2) for k in range(2)] + [result("linear", [0, 1], 2, 2)]
    other = [result("lora", [0, 1], k, 2) for k in range(2)] + [result("lora", [1, 0], 2, 2)]
    assert chance(mixed, other) == 1.0
    rows = [standing(found, "top1", ("linear",)) for found in (once[0], thrice[0])]
    half = [result("linear", [1, 0] * 4, k) for k in range(3)]
    rows = [standing(half[:count], "top1", ("linear",)) for count in (1, 3)]
    errors = [row.rows[0].error for row in rows if row is not None]
    assert errors == [pytest.approx(np.sqrt(0.25 / 8))] * 2
    assert [row.rows[0].val_error for row in rows if row is not None] == [
        pytest.approx(np.sqrt(0.25 / 8) * np.sqrt(8 / 10))
    ] * 2
