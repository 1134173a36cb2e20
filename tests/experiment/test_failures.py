"""Every way a run can fail is a record with its status, and costs no earlier result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.odd_methods import AddsUnused, TouchesNothing, TrainsOutside
from support.tiny_runs import compose, tiny_spec, write_images
from torch import nn

from peftbench.artefacts import task_file
from peftbench.backbones import load as backbones
from peftbench.config.build import build
from peftbench.errors import NotMergeable
from peftbench.methods.lora import LoRA
from peftbench.methods.partial import Partial
from peftbench.results.record import EpochRow, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import cost, experiment, measure
from peftbench.spec import BackboneSpec


def failing(error: BaseException) -> Callable[..., None]:
    """A stand-in for `fit` that ends like this after one epoch."""

    def fit(*args, callbacks, **kwargs) -> None:
        callbacks.history.append(EpochRow(1, 2.5, 0.1, 1e-3, 0.01))
        callbacks.on_epoch(callbacks.history[0])
        raise error

    return fit


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets every later training end with an error."""
    return lambda error: monkeypatch.setattr(measure, "fit", failing(error))


def assert_tidy(store: ResultsStore) -> None:
    """No lock, no scratch folder, no temporary file is left."""
    left = [
        path.name
        for path in store.root.rglob("*")
        if path.name != ".store.lock" and (path.name.startswith(".") or path.suffix == ".lock")
    ]
    assert left == []


def test_a_pair_that_makes_no_sense_is_unsupported_with_its_reason(store: ResultsStore) -> None:
    spec = tiny_spec(Partial(num_blocks=7))
    record = experiment.run(spec, store)
    assert record.status is Status.UNSUPPORTED
    assert record.error == (
        "partial asks for the last 7 blocks, but this vit backbone has 6. "
        "Use method=full for all of them."
    )
    assert record.metrics == {}
    assert store.get(spec.run_id) == record
    assert experiment.finished_record(spec, store) == record
    assert_tidy(store)


def test_a_method_that_touches_nothing_has_no_effect(store: ResultsStore) -> None:
    record = experiment.run(tiny_spec(TouchesNothing()), store)
    assert record.status is Status.NO_EFFECT
    assert record.error == (
        "touches_nothing changed nothing on this backbone (family vit): it found none of its sites."
    )


def test_hyper_parameters_that_cannot_be_merged_cost_a_note_and_no_result(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(method: LoRA, model: nn.Module) -> nn.Module:
        raise NotMergeable("lora has no place for this.")

    monkeypatch.setattr(LoRA, "merge", refuse)
    record = experiment.run(tiny_spec("lora"), store)
    assert record.status is Status.OK and record.merge is None
    assert record.notes[-1] == "lora has no place for this."
    assert record.cost is not None and record.cost.merged_latency_ms_batch1 is None


def test_a_parameter_outside_the_model_has_no_effect(store: ResultsStore) -> None:
    record = experiment.run(tiny_spec(TrainsOutside()), store)
    assert record.status is Status.NO_EFFECT
    assert record.error == "trains_outside declared 1 parameters outside the model."


def test_a_method_that_is_counted_but_not_executed_has_no_effect(store: ResultsStore) -> None:
    record = experiment.run(tiny_spec(AddsUnused()), store)
    assert record.status is Status.NO_EFFECT


def test_a_loss_that_is_not_finite_is_divergence(store: ResultsStore) -> None:
    record = experiment.run(tiny_spec("lora", recipe={"lr": 1e30, "epochs": 3}), store)
    assert record.status is Status.DIVERGED
    assert record.error == (
        "the loss of epoch 1 of 3 is nan. Lower recipe.lr (now 1e+30) or set recipe.clip_grad."
    )
    assert record.history == []
    assert record.metrics == {}
    assert_tidy(store)


def test_predictions_that_are_not_finite_are_divergence(store: ResultsStore) -> None:
    # one step: the loss before it is finite, the weights after it are not
    recipe = {"lr": 1e30, "epochs": 1, "batch_size": 8}
    record = experiment.run(tiny_spec("bias", recipe=recipe), store)
    assert record.status is Status.DIVERGED
    assert record.error == (
        "the trained model predicts values that are not finite. Lower recipe.lr."
    )
    assert len(record.history) == 1
    assert record.metrics == {}
    assert not (store.artefacts(record) / "predictions.npz").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 9223372036854775 bytes."
        ),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_a_lack_of_memory_says_which_settings_need_less(
    store: ResultsStore, fail: Callable[[BaseException], None], error: BaseException
) -> None:
    fail(error)
    record = experiment.run(tiny_spec(), store)
    assert record.status is Status.OUT_OF_MEMORY
    first = str(error).splitlines()[0] if str(error) else "MemoryError."
    assert record.error == (f"{first} Lower recipe.batch_size (now 3) or backbone.image_size.")


def test_an_interruption_is_recorded_and_a_rerun_finishes(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "fit", failing(KeyboardInterrupt()))
        record = experiment.run(spec, store)
    assert record.status is Status.INTERRUPTED
    assert record.error == "stopped before its end; the same command goes on from there"
    assert [row.epoch for row in record.history] == [1]
    stored = store.get(spec.run_id)
    assert stored is not None and stored.status is Status.INTERRUPTED
    assert_tidy(store)
    assert experiment.run(spec, store).status is Status.OK


def test_an_unexpected_error_leaves_its_trace_until_the_run_succeeds(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec()
    log = store.artefacts(("linear", spec.run_id)) / "log.txt"
    with monkeypatch.context() as patch:
        patch.setattr(measure, "fit", failing(ZeroDivisionError("division by zero\nmore")))
        record = experiment.run(spec, store)
    assert record.status is Status.ERROR
    assert record.error == f"ZeroDivisionError: division by zero. (trace in {log})"
    trace = log.read_text(encoding="utf-8")
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in measure_run" in trace
    assert trace.endswith("ZeroDivisionError: division by zero\nmore\n")
    # what was known when it failed is kept
    assert record.parameters is not None and record.parameters.head == 1290
    assert record.provenance is not None
    assert_tidy(store)

    assert experiment.run(spec, store).status is Status.OK
    assert not log.exists()


def test_a_failing_forced_rerun_keeps_the_result_and_its_files(
    store: ResultsStore, fail: Callable[[BaseException], None]
) -> None:
    spec = tiny_spec()
    experiment.run(spec, store)
    good = store.get(spec.run_id, "linear")
    assert good is not None
    folder = store.artefacts(good)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 3
    fail(ZeroDivisionError("division by zero"))
    rerun = experiment.run(spec, store, force=True)
    assert rerun.status is Status.ERROR
    assert store.get(spec.run_id) == good
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert_tidy(store)


def test_a_rerun_that_fails_after_saving_keeps_the_files_of_the_result(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec()
    good = experiment.run(spec, store)
    folder = store.artefacts(good)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken(*args: object) -> cost.Timed:
        raise ZeroDivisionError("no clock")

    monkeypatch.setattr(cost, "time_forward", broken)
    assert experiment.run(spec, store, force=True).status is Status.ERROR
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_reload_that_predicts_otherwise_fails_the_run(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = task_file.load

    def negated(tuned, folder) -> None:
        load(tuned, folder)
        with torch.no_grad():
            for parameter in tuned.head_params.values():
                parameter.neg_()

    monkeypatch.setattr(task_file, "load", negated)
    record = experiment.run(tiny_spec(recipe={"lr": 1e-2, "epochs": 10}), store)
    assert record.status is Status.ERROR
    assert record.error is not None
    assert "a tensor that training changed is not saved" in record.error
    assert not (store.artefacts(record) / "tuned.safetensors").exists()


def test_an_image_that_does_not_decode_is_named(store: ResultsStore, tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets")
    broken = root / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    spec = build(compose("dataset=folder", f"dataset.root={root}", "backbone.image_size=12"))
    record = experiment.run(spec, store)
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.startswith(f"Cannot decode image {broken}: ")
    assert record.error.endswith(" Repair it or remove it from the data set.")
    assert record.metrics == {}
    assert_tidy(store)


def test_files_that_changed_since_the_run_was_built_are_refused(
    store: ResultsStore, tmp_path: Path
) -> None:
    root = write_images(tmp_path / "pets")
    spec = build(compose("dataset=folder", f"dataset.root={root}", "backbone.image_size=12"))
    (root / "dog" / "3.png").write_bytes((root / "dog" / "2.png").read_bytes())
    record = experiment.run(spec, store)
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.startswith("Data set 'pets' has manifest ")


def test_a_checkpoint_of_another_shape_names_the_tensor(
    store: ResultsStore, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    model = backbones.load(BackboneSpec("vit_mini", image_size=12), 2).model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.0.attn.proj.weight"] = torch.zeros(5, 7)
    save_file(state, path)
    spec = build(compose(f"backbone.checkpoint={path}", "backbone.image_size=12"))
    record = experiment.run(spec, store)
    assert record.status is Status.ERROR
    assert record.error == (
        f"{path}: 1 tensors have the wrong shape, first 'blocks.0.attn.proj.weight': found (5, 7), "
        "the model needs (128, 128). Choose the backbone.name and backbone.image_size that the "
        "weights belong to."
    )
    assert not (store.artefacts(record) / "log.txt").exists()


def test_a_run_on_a_local_copy_of_the_weights_gives_the_same_metrics(
    store: ResultsStore, tmp_path: Path
) -> None:
    path = tmp_path / "copy.safetensors"
    model = backbones.load(BackboneSpec("vit_mini", image_size=12), 2).model
    save_file(model.state_dict(), path)
    options = (
        "backbone.image_size=12",
        "dataset.limit=4",
        "recipe.epochs=1",
        "recipe.warmup_epochs=0",
    )
    shipped = experiment.run(build(compose(*options)), store)
    local = experiment.run(build(compose(*options, f"backbone.checkpoint={path}")), store)
    assert local.run_id != shipped.run_id
    assert local.status is Status.OK
    assert local.metrics == shipped.metrics
    assert local.provenance is not None and shipped.provenance is not None
    assert local.provenance.backbone_sha256 == shipped.provenance.backbone_sha256


def test_every_status_is_stored_and_only_two_are_settled(
    store: ResultsStore, fail: Callable[[BaseException], None]
) -> None:
    fail(ZeroDivisionError("boom"))
    failed = experiment.run(tiny_spec(), store)
    refused = experiment.run(tiny_spec(Partial(num_blocks=7)), store)
    assert store.done() == {refused.run_id}
    stored: list[RunRecord] = list(store.records())
    assert {(r.run_id, r.status) for r in stored} == {
        (failed.run_id, Status.ERROR),
        (refused.run_id, Status.UNSUPPORTED),
    }


def test_lora_with_a_target_that_the_family_lacks_names_what_there_is(
    store: ResultsStore,
) -> None:
    backbone = BackboneSpec("test_convnext", pretrained=False, image_size=32)
    record = experiment.run(tiny_spec(LoRA(targets=("q", "v")), backbone=backbone), store)
    assert record.status is Status.UNSUPPORTED
    assert record.error == (
        "lora targets q, v, which convnext backbones do not have. They have fc1, fc2, conv: "
        "set method.targets."
    )
