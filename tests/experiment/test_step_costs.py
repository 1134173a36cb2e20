"""What a training step keeps, computes and needs, against sums worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.tiny_runs import tiny_spec
from torch import nn

from peftbench.artefacts import task_file
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.methods import METHODS, apply
from peftbench.methods.base import as_method
from peftbench.results.latencies import StepCost
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import cost, experiment
from peftbench.run.activations import counting_kept
from peftbench.run.profile import planned_step
from peftbench.run.simulation import LiveBytes, step_cost
from peftbench.run.step import Step, StepPlan
from peftbench.spec import BackboneSpec, Recipe
from peftbench.training.device import Compute

CPU = Compute(torch.device("cpu"), torch.float32)
DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])
WIDTH, BLOCKS, PATCH, TOKENS, CLASSES = 128, 6, 12 * 12 * 3, 2, 10  # of vit_mini at 12 pixels


def two_layers(device: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).to(device)


@DEVICES
def test_a_layer_that_trains_keeps_its_input_and_an_activation_its_own(device: str) -> None:
    model = two_layers(device)
    with counting_kept(model.parameters()) as kept:
        model(torch.zeros(5, 3, device=device))
    # inputs of both layers and of GELU, five rows of float32 each
    assert kept.bytes == 4 * 5 * (3 + 4 + 4)


@DEVICES
def test_nothing_is_kept_in_front_of_the_first_layer_that_trains(device: str) -> None:
    model = two_layers(device)
    model[0].requires_grad_(False)
    with counting_kept(model.parameters()) as kept:
        model(torch.zeros(5, 3, device=device))
    assert kept.bytes == 4 * 5 * 4  # the input of the second layer


@DEVICES
def test_views_of_one_storage_count_once_and_weights_not_at_all(device: str) -> None:
    weight = torch.zeros(6, requires_grad=True, device=device)
    x = torch.zeros(6, device=device)
    with counting_kept([weight]) as kept:
        (x[:3] * weight[:3]).sum() + (x[3:] * weight[3:]).sum() + (x * weight).sum()
    assert kept.bytes == 4 * 6


def test_bytes_are_live_from_the_operation_that_makes_them_until_they_are_freed() -> None:
    with LiveBytes() as live:
        a = torch.empty(1000, device="meta")
        view = a[:10]
        assert live.now == 4000
        b = a + 1
        assert (live.now, live.peak) == (8000, 8000)
        del b
        assert (live.now, live.peak) == (4000, 8000)
        del a
        assert live.now == 4000  # which the view still needs
        del view
    assert (live.now, live.peak) == (0, 8000)


def forward_products() -> int:
    """Multiply-adds of one image of 12 pixels: patches, blocks, attention, head."""
    block = TOKENS * 12 * WIDTH**2 + 2 * TOKENS * TOKENS * WIDTH
    return PATCH * WIDTH + BLOCKS * block + WIDTH * CLASSES


@pytest.mark.parametrize(
    ("method", "operations"),
    [
        # each product again for its input and for its weight, but the images need no gradient
        ("full", 2 * (3 * forward_products() - PATCH * WIDTH)),
        # the head alone has a gradient, and nothing in front of it
        ("linear", 2 * (forward_products() + WIDTH * CLASSES)),
        # all inputs but the images' have one, of the weights only the head's; biases are sums
        (
            "bias",
            2 * (2 * (forward_products() - PATCH * WIDTH) + PATCH * WIDTH + WIDTH * CLASSES)
            # the product of queries and keys and that with values have two gradients each
            + 2 * BLOCKS * 2 * TOKENS * TOKENS * WIDTH,
        ),
    ],
)
def test_operations_of_training_are_those_of_what_trains(method: str, operations: int) -> None:
    found = step_cost(planned_step(tiny_spec(method), CLASSES), 3, CPU)
    assert found.training_gflops == pytest.approx(operations / 1e9, rel=1e-9)


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "full"])
def test_what_is_kept_without_storage_is_what_a_real_step_keeps(method: str) -> None:
    spec = tiny_spec(method)
    found = step_cost(planned_step(spec, CLASSES), 3, CPU)
    plan = planned_step(spec, CLASSES, "cpu")
    step = Step(plan, CPU)
    with counting_kept([*plan.tuned.model.parameters(), *plan.tuned.model.buffers()]) as kept:
        step.forward(*step.batch(3))
    assert found.kept_bytes == kept.bytes > 0


def test_the_peak_grows_by_the_state_of_the_optimiser() -> None:
    def peak(recipe: Recipe) -> StepCost:
        return step_cost(planned_step(tiny_spec("partial", recipe=vars(recipe)), CLASSES), 3, CPU)

    adam, momentum = (peak(Recipe(optimizer=name)) for name in ("adamw", "sgd"))
    averaged = peak(Recipe(ema_decay=0.9))
    width = WIDTH  # the last block, the last norm and the head train
    trained = 4 * (12 * width**2 + 13 * width + 2 * width + width * CLASSES + CLASSES)
    assert adam.kept_bytes == momentum.kept_bytes
    # two moments and not one; and what Adam computes beside the largest tensor, one at a time
    assert 0 <= adam.peak_bytes - momentum.peak_bytes - trained <= 4 * 4 * width**2
    assert averaged.peak_bytes - adam.peak_bytes == pytest.approx(trained, rel=0.01)


def test_bfloat16_keeps_less_of_an_image_than_float32() -> None:
    plan = planned_step(tiny_spec("partial"), CLASSES)
    half = Compute(CPU.device, torch.bfloat16)
    # the difference, because bfloat16 keeps a copy of the weights besides
    growth = {
        compute.dtype: step_cost(plan, 64, compute).kept_bytes
        - step_cost(plan, 32, compute).kept_bytes
        for compute in (CPU, half)
    }
    assert 0.5 < growth[torch.bfloat16] / growth[torch.float32] < 1


def test_a_plan_that_was_counted_has_its_weights_and_modes_as_before() -> None:
    spec = dataclasses.replace(tiny_spec("lora"), backbone=BackboneSpec("vit_mini", image_size=12))
    backbone = load(spec.backbone, 2)
    anatomy = describe(backbone.model, 12)
    tuned = apply(as_method(spec.method), backbone.model, anatomy, CLASSES, torch.Generator())
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    modes = [module.training for module in tuned.model.modules()]
    step_cost(StepPlan(tuned, spec.recipe, backbone.preprocessing, CLASSES), 3, CPU)
    assert [module.training for module in tuned.model.modules()] == modes
    for name, tensor in tuned.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in tuned.model.parameters())


@pytest.mark.parametrize("method", ["linear", "lora", "full"])
def test_the_size_of_a_task_is_that_of_its_file(method: str, tmp_path) -> None:
    tuned = planned_step(tiny_spec(METHODS[method]()), CLASSES, "cpu").tuned
    shapes = {name: tuple(tensor.shape) for name, tensor in tuned.state().items()}
    card = {"run_id": "0123456789abcdef", "spec": {}, "method_card": {}, "classes": []}
    size = task_file.size_of(shapes, "0123456789abcdef")
    folder = tmp_path / method
    folder.mkdir()
    task_file.save_file(
        {name: tensor.contiguous() for name, tensor in tuned.state().items()},
        folder / task_file.TASK,
        metadata={"run_id": str(card["run_id"])},
    )
    assert size == (folder / task_file.TASK).stat().st_size


def test_the_spread_of_a_timing_is_what_lies_between_its_quartiles() -> None:
    timed = cost.Timed([0.004, 0.001, 0.002, 0.003, 0.010], None)
    assert timed.median_ms == pytest.approx(3.0)
    assert timed.iqr_ms == pytest.approx(2.0)  # from 2 to 4
    assert cost.Timed([0.5], None).iqr_ms == 0.0


def test_a_timing_has_several_blocks_and_each_has_work_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(cost, "WARMUP_RUNS", 1)
    begun, done = [], []

    def begin():
        number = len(begun)
        begun.append(number)
        return lambda: done.append(number)

    timed = cost.repeated(begin, CPU)
    assert begun == [0, 1, 2]
    assert done == [0, 0, 1, 2]  # the first warms up
    assert len(timed.seconds) == cost.BLOCKS == 3


def test_the_pauses_between_blocks_are_no_time_without_a_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, waited = [0.0], []

    def take(seconds: float) -> None:
        now[0] += seconds

    def told(seconds: list[float], before: Any, after: Any, threads: int) -> None:
        waited.append((after.wall - before.wall, sum(seconds)))

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cost.time, "sleep", take)
    monkeypatch.setattr(cost, "disturbance", told)
    monkeypatch.setattr(cost, "PAUSE_SECONDS", 0.5)
    cost.repeated(lambda: lambda: take(0.01), CPU)
    ((wall, worked),) = waited
    assert wall == pytest.approx(worked) and worked > 0


def test_a_method_that_skips_tokens_records_what_it_computed(store: ResultsStore) -> None:
    record = experiment.run(tiny_spec("dyt"), store)
    assert record.status is Status.OK and record.cost is not None
    measured, everything = record.cost.measured_gmacs, record.cost.forward_gmacs
    assert measured is not None and everything is not None
    assert 0 < measured <= everything
