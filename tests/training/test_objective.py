"""Objectives in place of the task's loss: what they are given, and what becomes of what they give.

Expected values come from steps that the test itself makes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tiny_runs import tiny_spec
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.errors import ConfigError
from peftbench.methods.base import METHODS
from peftbench.run.experiment import check
from peftbench.spec import Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.activations import Activations
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.device import Compute, seeded
from peftbench.training.loop import Callbacks, Fit, Fittable, fit
from peftbench.training.objective import StepBatch, count_right
from peftbench.training.world import World

CPU = torch.device("cpu")
RAW = Preprocessing(size=2, mean=(0.0,) * 3, std=(1.0,) * 3)
PLAIN = Recipe(
    optimizer="sgd",
    momentum=0.0,
    lr=0.5,
    weight_decay=0.0,
    schedule="constant",
    epochs=2,
    batch_size=4,
)


class Linear(nn.Module):
    """A linear classifier of the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(9.0).reshape(3, 3) / 9)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S)."""
        return self.linear(x[:, :, 0, 0])


def split(count: int = 8) -> TrainSplit:
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return TrainSplit(images, np.arange(count) % 3, tuple(map(str, range(count))))


def run(objective: Any, recipe: Recipe = PLAIN, **options: Any) -> tuple[Linear, Fit]:
    model = Linear()
    fittable = Fittable(
        model, list(model.parameters()), model.train, RAW, num_classes=3, objective=objective
    )
    compute = Compute(CPU, torch.float32, micro_batch=options.pop("micro_batch", None))
    with seeded(0, compute):
        fitted = fit(
            fittable, split(), recipe, seed=0, compute=compute, callbacks=Callbacks(**options)
        )
    return model, fitted


def twice_the_loss(batch: StepBatch) -> tuple[Tensor, Tensor]:
    outputs = batch.outputs()
    return 2 * batch.loss(outputs), outputs


def test_the_objective_is_minimised_and_the_loss_of_the_task_is_told() -> None:
    model, fitted = run(twice_the_loss)
    faster, plain = run(None, dataclasses.replace(PLAIN, lr=1.0))  # twice the rate in its place
    torch.testing.assert_close(model.linear.weight, faster.linear.weight)
    assert [row.loss for row in fitted.history] == pytest.approx([r.loss for r in plain.history])
    assert [r.accuracy for r in fitted.history] == [r.accuracy for r in plain.history]


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    """Of an objective that is a mean over images, whatever else it looks at."""

    def towards_zero(batch: StepBatch) -> tuple[Tensor, Tensor]:
        first, second = batch.outputs(copies=2).chunk(2)
        assert torch.equal(first, second)
        return batch.loss(first) + second.square().sum(1).mean(), first

    whole, _ = run(towards_zero)
    parts, _ = run(towards_zero, micro_batch=2)
    torch.testing.assert_close(parts.linear.weight, whole.linear.weight)


def test_an_objective_knows_the_step_and_which_images_it_sees() -> None:
    seen: list[tuple[int, list[int]]] = []
    images = torch.tensor(split().images[:, 0, 0]) / 255

    def watch(batch: StepBatch) -> tuple[Tensor, Tensor]:
        assert batch.numbers is not None
        assert torch.allclose(batch.images[:, :, 0, 0], images[batch.numbers])
        assert torch.equal(batch.classes(), batch.numbers % 3)
        seen.append((batch.step, batch.numbers.tolist()))
        return twice_the_loss(batch)

    run(watch, micro_batch=2)
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    for epoch in (seen[:4], seen[4:]):
        assert sorted(number for _, numbers in epoch for number in numbers) == list(range(8))


def test_an_objective_may_look_at_some_of_the_images_alone() -> None:
    def half(batch: StepBatch) -> tuple[Tensor, Tensor]:
        first = batch.first(len(batch) // 2)
        outputs = first.outputs()
        return first.loss(outputs), outputs

    _, fitted = run(half)
    assert all(0 <= row.accuracy <= 1 for row in fitted.history)
    outputs = torch.eye(3)[[0, 1]]  # right, then wrong
    labels = torch.tensor([0, 0, 0, 0])
    assert int(count_right(CLASSIFICATION, outputs, labels, 4)) == 2  # half of four
    assert int(count_right(CLASSIFICATION, torch.eye(3)[[0, 1, 0, 0]], labels, 4)) == 3
    assert int(count_right(CLASSIFICATION, outputs, labels, 0)) == 0


class Memory:
    """Pulls outputs towards those of the same image in the epoch before."""

    def __init__(self) -> None:
        self.kept = torch.zeros(8, 3)
        self.gathered = 0

    def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        outputs = batch.outputs()
        assert batch.numbers is not None
        before = self.kept[batch.numbers]
        self.kept[batch.numbers] = outputs.detach()
        return batch.loss(outputs) + F.mse_loss(outputs, before), outputs

    def gather(self, world: World) -> None:
        self.gathered += world.is_single

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept.copy_(state["kept"])


def test_what_an_objective_keeps_is_part_of_the_state_of_a_training(tmp_path: Any) -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3)
    whole, _ = run(Memory(), recipe)

    class Cut(Memory):
        def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
            if batch.step == 3:  # in the second of three epochs
                raise ZeroDivisionError
            return super().__call__(batch)

    with pytest.raises(ZeroDivisionError):
        run(Cut(), recipe, checkpoints=Checkpoints(tmp_path / "state", steps=1))
    again = Memory()
    resumed, _ = run(again, recipe, checkpoints=Checkpoints(tmp_path / "state", steps=1))
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
    assert again.gathered == 3 + 2  # before each save, and behind each epoch that was left


def test_copies_of_activations_stand_behind_one_another() -> None:
    values, images = torch.arange(4.0).view(2, 2), torch.ones(2, 3, 1, 1)
    batch = StepBatch(
        *(Activations(values, images), torch.zeros(2).long()),
        lambda x: torch.cat([x.values, x.images.flatten(1)], 1),
        CLASSIFICATION,
    )
    outputs = batch.outputs(copies=2)
    assert torch.equal(outputs[:, :2], torch.cat([values, values]))
    assert outputs.shape == (4, 5)
    alone = dataclasses.replace(batch, images=Activations(values), model=lambda x: x.values)
    assert torch.equal(alone.first(1).outputs(copies=3), values[:1].expand(3, 2))


def test_a_mixed_image_has_no_class() -> None:
    batch = StepBatch(
        torch.zeros(2, 3, 1, 1), torch.full((2, 3), 1 / 3), nn.Identity(), CLASSIFICATION
    )
    with pytest.raises(ConfigError, match=r"Use recipe\.mixup=0 and recipe\.cutmix=0\."):
        batch.classes()


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_a_method_that_reads_classes_refuses_mixed_images_before_anything_is_loaded(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = dataclasses.replace(METHODS["lora"].card, needs_classes=True)
    monkeypatch.setattr(METHODS["lora"], "card", card)
    check(tiny_spec("lora"), "cpu", None)
    with pytest.raises(ConfigError) as refused:
        check(tiny_spec("lora", recipe={key: 0.8}), "cpu", None)
    assert str(refused.value) == (
        f"method=lora learns from the class of each image, and recipe.{key}=0.8 gives an image "
        f"several. Use recipe.{key}=0."
    )
