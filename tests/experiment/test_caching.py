"""Runs with kept activations against runs that compute everything in every epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.tiny_runs import digits, repeatable, tiny_spec
from support.tiny_tuned import start

from peftbench.errors import ActivationsChanged
from peftbench.methods import Tuned
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.activation_store import ActivationStore
from peftbench.run.caching import FrozenPart
from peftbench.run.experiment import RunOptions
from peftbench.run.prefix import find_prefix
from peftbench.spec import BEST_ON_TEST, Phase, Precision, Preprocessing, RunSpec, Selection
from peftbench.training import activations
from peftbench.training.device import Compute
from peftbench.training.pixels import Pixels
from peftbench.training.saving import CheckpointPolicy

pytestmark = pytest.mark.arithmetic
MEAN = STD = (0.5, 0.5, 0.5)
KEEPING = RunOptions(activations=10**9)
SPARED = {"frozen_until", "activations_found", "activations_computed", "seconds_saved"}
# what follows a prefix is computed on the same numbers; those of the prefix itself may differ in
# the last bits, as its batches have other shapes: a few roundings of float32, and of bfloat16
TOLERANCE = {Precision.FLOAT32: 1e-5, Precision.BFLOAT16: 0.05}


def ran(root: Path, spec: RunSpec, options: RunOptions = KEEPING) -> tuple[RunRecord, Any, Any]:
    """The record of a run, its predictions and the tensors that it keeps."""
    store = ResultsStore(root)
    record = experiment.run(spec, store, options)
    assert record.status is Status.OK, record.error
    folder = store.artefacts((spec.method.name, spec.run_id))
    tuned = folder / "tuned.safetensors"
    with np.load(folder / "predictions.npz") as predictions:
        return record, dict(predictions), load_file(tuned) if tuned.exists() else {}


def spared(record: RunRecord) -> tuple[str | None, int | None, int | None]:
    assert record.cost is not None
    cost = record.cost
    return cost.frozen_until, cost.activations_found, cost.activations_computed


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize("method", ["linear", "mlp", "partial"])
def test_a_run_with_kept_activations_is_the_run_without_them(
    tmp_path: Path, method: str, precision: Precision
) -> None:
    # Adam makes whole steps of gradients that are nothing but rounding, such as of a key's bias
    recipe = {"optimizer": "momentum", "batch_size": 11}
    spec = tiny_spec(method, dataset=digits(11), precision=precision, recipe=recipe)
    plain, expected, tensors = ran(tmp_path / "plain", spec, RunOptions())
    found = ran(tmp_path / "first", spec), ran(tmp_path / "second", spec)
    assert plain.run_id == found[0][0].run_id
    for (record, predictions, tuned), again in zip(found, (False, True), strict=True):
        images = (33, 0) if again else (0, 33)  # 11 of each split
        assert spared(record)[1:] == images
        tolerance = TOLERANCE[precision]
        assert np.array_equal(predictions["labels"], expected["labels"])
        if precision is Precision.FLOAT32:
            assert np.array_equal(predictions["classes"], expected["classes"])
        np.testing.assert_allclose(
            predictions["confidence"], expected["confidence"], atol=tolerance
        )
        assert tuned.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tuned[name], tensor, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("views", [{}, {"augmentation": "flip", "fixed_views": 2}], ids=str)
def test_images_that_are_drawn_twice_have_their_own_activations(
    tmp_path: Path, views: dict[str, Any]
) -> None:
    recipe = {"sampling": "balanced", "optimizer": "momentum", "epochs": 3} | views
    spec = tiny_spec("linear", dataset=digits(11), precision=Precision.FLOAT32, recipe=recipe)
    plain, _, tensors = ran(tmp_path / "plain", spec, RunOptions())
    kept, _, found = ran(tmp_path / "kept", spec)
    assert spared(kept)[0] == "head_drop"
    assert [row.accuracy for row in kept.history] == [row.accuracy for row in plain.history]
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_record_says_what_was_kept_and_is_else_the_same(tmp_path: Path) -> None:
    spec = tiny_spec("linear", dataset=digits(11), precision=Precision.FLOAT32)
    plain = repeatable(ran(tmp_path / "plain", spec, RunOptions())[0])
    first, _, _ = ran(tmp_path / "first", spec)
    assert first.cost is not None and first.cost.frozen_until == "head_drop"
    assert first.cost.seconds_saved is not None
    kept = repeatable(first)
    for record in (plain, kept):  # compared in the test above, within roundings
        for key in ("history", "metrics", "reload", "merge"):
            del record[key]
        record["cost"] = {k: v for k, v in record["cost"].items() if k not in SPARED}
    assert kept == plain


def test_seeds_and_methods_share_what_they_have_in_common(tmp_path: Path) -> None:
    for method, seed, found in (("linear", 0, 0), ("linear", 1, 22), ("mlp", 0, 22)):
        spec = tiny_spec(method, dataset=digits(11), seed=seed, phase=Phase.TUNE)
        record, _, _ = ran(tmp_path / "results", spec)
        assert spared(record) == ("head_drop", found, 22 - found)


def test_other_weights_other_images_and_another_arithmetic_share_nothing(tmp_path: Path) -> None:
    spec = tiny_spec("linear", dataset=digits(11), precision=Precision.FLOAT32, phase=Phase.TUNE)
    ran(tmp_path / "results", spec)
    random = dataclasses.replace(spec.backbone, pretrained=False)
    for other in (
        dataclasses.replace(spec, backbone=random),
        dataclasses.replace(spec, dataset=digits(12)),
        dataclasses.replace(spec, precision=Precision.BFLOAT16),
    ):
        record, _, _ = ran(tmp_path / "results", other)
        assert spared(record)[1] == 0


@pytest.mark.parametrize(
    "recipe", [{"augmentation": "flip"}, {"mixup": 0.5}, {"random_erasing": 0.2}]
)
def test_images_that_change_between_epochs_are_computed_in_each(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    record, _, _ = ran(tmp_path / "results", tiny_spec("linear", recipe=recipe, phase=Phase.TUNE))
    assert spared(record) == (None, None, None)


@pytest.mark.parametrize("augmentation", ["flip", "crop_flip"])
def test_fixed_views_are_computed_once_each_and_shared_by_seeds(
    tmp_path: Path, augmentation: str
) -> None:
    recipe = {"augmentation": augmentation, "fixed_views": 2, "epochs": 3, "optimizer": "momentum"}
    spec = tiny_spec("linear", dataset=digits(11), recipe=recipe, precision=Precision.FLOAT32)
    three = dataclasses.replace(spec.recipe, fixed_views=3)
    assert spec.run_id != dataclasses.replace(spec, recipe=three).run_id
    plain, expected, tensors = ran(tmp_path / "plain", spec, RunOptions())
    kept, predictions, tuned = ran(tmp_path / "kept", spec)
    assert spared(kept) == ("head_drop", 0, 2 * 22 + 11)
    assert np.array_equal(predictions["classes"], expected["classes"])
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tuned[name], tensor, atol=1e-5, rtol=1e-5)
    losses = [row.loss for row in plain.history]
    assert [row.loss for row in kept.history] == pytest.approx(losses, rel=1e-5)
    other, _, _ = ran(tmp_path / "kept", dataclasses.replace(spec, seed=1))
    assert spared(other) == ("head_drop", 2 * 22 + 11, 0)


def test_the_best_epoch_on_test_is_found_among_kept_activations(tmp_path: Path) -> None:
    selection = Selection(rule=BEST_ON_TEST)
    spec = tiny_spec("linear", dataset=digits(11), selection=selection)
    plain, expected, _ = ran(tmp_path / "plain", spec, RunOptions())
    kept, predictions, _ = ran(tmp_path / "kept", spec)
    assert kept.selected_epoch == plain.selected_epoch
    assert np.array_equal(predictions["classes"], expected["classes"])
    assert spared(kept)[2] == 33


def test_a_budget_too_small_for_the_activations_keeps_none(tmp_path: Path) -> None:
    spec = tiny_spec("linear", phase=Phase.TUNE)
    record, _, _ = ran(tmp_path / "results", spec, RunOptions(activations=100))
    assert spared(record) == (None, None, None)


def test_a_run_that_is_taken_up_again_goes_on_with_kept_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec("partial", dataset=digits(11), recipe={"epochs": 3, "batch_size": 4})
    options = dataclasses.replace(KEEPING, saving=CheckpointPolicy(steps=2))
    whole, expected, tensors = ran(tmp_path / "whole", spec, options)
    served = 0
    batches = activations.ActivationRows.batches

    def stopping(rows: Any, asked: Any) -> Any:
        nonlocal served
        for batch in batches(rows, asked):
            served += 1
            if served == 6:
                raise KeyboardInterrupt
            yield batch

    store = ResultsStore(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(activations.ActivationRows, "batches", stopping)
        assert experiment.run(spec, store, options).status is Status.INTERRUPTED
    record, predictions, tuned = ran(tmp_path / "stopped", spec, options)
    assert record.cost is not None and record.cost.resumed == 1
    assert [row.loss for row in record.history] == [row.loss for row in whole.history]
    assert np.array_equal(predictions["classes"], expected["classes"])
    for name, tensor in tensors.items():
        assert np.array_equal(tuned[name], tensor)


def beside(spec: RunSpec, *points: tuple[float, float]) -> tuple[RunSpec, ...]:
    return tuple(
        dataclasses.replace(
            spec, recipe=dataclasses.replace(spec.recipe, lr=lr, weight_decay=decay)
        )
        for lr, decay in points
    )


@pytest.mark.parametrize(
    "recipe", [{}, {"class_weights": "balanced"}, {"sampling": "balanced"}], ids=str
)
def test_trials_in_one_pass_leave_the_records_that_they_leave_by_themselves(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    first = tiny_spec(
        "linear",
        dataset=digits(33),  # of which some classes have four images and others three
        phase=Phase.TUNE,
        precision=Precision.FLOAT32,
        recipe=recipe,
    )
    specs = (first, *beside(first, (1e-2, 0.0), (1e-4, 0.1)))
    alone = [ran(tmp_path / "alone", spec, RunOptions()) for spec in specs]
    together = [
        ran(
            tmp_path / "together",
            spec,
            dataclasses.replace(KEEPING, beside=specs[number + 1 :]),
        )
        for number, spec in enumerate(specs)
    ]
    for (plain, expected, _), (record, predictions, _) in zip(alone, together, strict=True):
        assert record.notes == [*plain.notes, "trained in one pass with 2 other trials"]
        assert np.array_equal(predictions["classes"], expected["classes"])
        assert record.metrics["val/top1"] == plain.metrics["val/top1"]
        for key, value in plain.metrics.items():
            assert record.metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5)
        for one, other in zip(record.history, plain.history, strict=True):
            assert (one.epoch, one.lr, one.accuracy) == (other.epoch, other.lr, other.accuracy)
            assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("method", ["partial", "mlp"])
def test_a_trial_of_more_than_a_head_without_statistics_trains_by_itself(
    tmp_path: Path, method: str
) -> None:
    exact = Precision.FLOAT32  # in bfloat16 trials of partial share what is frozen
    first = tiny_spec(method, dataset=digits(11), phase=Phase.TUNE, precision=exact)
    options = dataclasses.replace(KEEPING, beside=beside(first, (1e-2, 0.0)))
    record, _, _ = ran(tmp_path / "results", first, options)
    assert not any("one pass" in note for note in record.notes)


def test_trials_left_by_a_pass_are_used_once_and_for_the_same_activations(tmp_path: Path) -> None:
    first = tiny_spec("linear", dataset=digits(11), phase=Phase.TUNE)
    (other,) = beside(first, (1e-2, 0.0))
    ran(tmp_path / "one", first, dataclasses.replace(KEEPING, beside=(other,)))
    once, _, _ = ran(tmp_path / "one", other)
    again, _, _ = ran(tmp_path / "two", other)
    assert any("one pass" in note for note in once.notes)
    assert not any("one pass" in note for note in again.notes)
    assert again.metrics["val/top1"] == once.metrics["val/top1"]


def frozen_part(tuned: Tuned, images: np.ndarray, folder: Path) -> FrozenPart:
    compute, norm = Compute(torch.device("cpu"), torch.float32), Preprocessing(16, MEAN, STD)
    (probes,) = Pixels(images, MEAN, STD, compute.device).batches([torch.arange(2)])
    prefix = find_prefix(tuned.model, tuned.train, probes, compute)
    assert prefix is not None
    store = ActivationStore(folder, 10**6)
    frozen = FrozenPart(tuned.model, prefix, compute, norm, {"of": "a test"}, store)
    frozen.offer(images, often=True, trains=True)
    return frozen


@pytest.mark.parametrize(
    ("changed", "noticed"),
    [("blocks.0.mlp.fc2.weight", True), ("pos_embed", True), ("blocks.1.mlp.fc2.weight", False)],
)
def test_what_changes_behind_the_back_of_autograd_is_noticed(
    tmp_path: Path, changed: str, noticed: bool
) -> None:
    tuned = start("partial", "vit")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    frozen = frozen_part(tuned, images, tmp_path)
    frozen.check()
    with torch.no_grad():
        tuned.model.get_parameter(changed).mul_(1.5)
    if noticed:
        with pytest.raises(ActivationsChanged, match=r"blocks\.0.*cache=off"):
            frozen.check()
    else:
        frozen.check()
