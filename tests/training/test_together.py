"""Heads that train in one pass: each with the numbers of a training of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.spec import Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.activations import Activations
from peftbench.training.device import Compute, seeded
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Callbacks, fit
from peftbench.training.together import HeadTask, fit_together, is_worthwhile

pytestmark = pytest.mark.arithmetic
EXACT = Compute(torch.device("cpu"), torch.float32)
COUNT, WIDTH, CLASSES = 22, 6, 3
FEATURES = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(COUNT, dtype=np.int64) % CLASSES
RAW = Preprocessing(size=2, mean=(0.0,) * 3, std=(1.0,) * 3)
RATES = ((1e-3, 0.0), (3e-2, 1e-2), (1e-1, 1e-3), (5e-4, 0.5))
SHORT = Recipe(epochs=4, warmup_epochs=1, batch_size=8)


class Given:
    """The features as what a model takes."""

    limits = None
    indexed_on = torch.device("cpu")

    def __len__(self) -> int:
        return COUNT

    def in_epoch(self, epoch: int) -> Given:
        return self

    def batches(self, asked: Iterable[Tensor]) -> Generator[Activations, None, None]:
        yield from (Activations(FEATURES[index]) for index in asked)


class OnValues(nn.Module):
    """A head as a model of activations."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Activations) -> Tensor:
        return self.head(x.values)


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, CLASSES)


def deep() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(WIDTH, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, CLASSES, bias=False)
    )


def normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))


def by_itself(head: nn.Module, recipe: Recipe) -> tuple[dict[str, Tensor], list[Any]]:
    images = np.zeros((COUNT, 2, 2, 3), np.uint8)
    split = TrainSplit(images, LABELS.copy(), tuple(map(str, range(COUNT))))
    rows: list[Any] = []
    with seeded(5, EXACT):
        fit(
            Fittable(OnValues(head), list(head.parameters()), head.train, RAW, inputs=Given()),
            split,
            recipe,
            seed=5,
            compute=EXACT,
            callbacks=Callbacks(rows.append),
        )
    return dict(head.state_dict()), rows


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {"optimizer": "adam"},
    "nesterov": {"optimizer": "sgd"},
    "plain sgd": {"optimizer": "sgd", "momentum": 0.0},
    "momentum": {"optimizer": "momentum", "decay": "all"},
    "all decay": {"decay": "all", "eps": 1e-6},
    "clipped": {"clip_grad": 0.05},
    "averaged": {"ema_decay": 0.7},
    "smoothed": {"label_smoothing": 0.1},
    "by epoch": {"schedule_unit": "epoch", "cooldown_epochs": 1},
    "constant": {"schedule": "constant"},
    "scaled": {"lr_reference_batch": 4, "drop_last": True},
    "weighed": {"class_weights": "balanced", "label_smoothing": 0.1},  # of 8, 7 and 7 images
    "drawn": {"sampling": "balanced"},
    "high floor": {"min_lr": 1e-2, "warmup_lr": 1e-3},  # above the rates of some trials
}


@pytest.mark.parametrize("make", [linear, deep])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_each_trial_reaches_what_it_reaches_by_itself(variant: str, make: Any) -> None:
    shared = dataclasses.replace(SHORT, **VARIANTS[variant])
    recipes = [dataclasses.replace(shared, lr=lr, weight_decay=decay) for lr, decay in RATES]
    head = make()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    common = HeadTask(head, Given(), torch.tensor(LABELS), CLASSIFICATION, 5, EXACT)
    for recipe, found in zip(recipes, fit_together(common, recipes), strict=True):
        tensors, rows = by_itself(make(), recipe)
        assert found is not None and found.others == 3
        assert found.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert not torch.equal(tensor, before[name])
            torch.testing.assert_close(found.tensors[name], tensor, rtol=2e-5, atol=2e-6)
        assert [r.lr for r in found.history] == [r.lr for r in rows]
        assert [r.epoch for r in found.history] == [r.epoch for r in rows]
        assert [r.accuracy for r in found.history] == [r.accuracy for r in rows]
        losses = [r.loss for r in rows]
        np.testing.assert_allclose([r.loss for r in found.history], losses, rtol=1e-5)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name])  # the head that they start from stays


def test_a_trial_that_diverges_leaves_the_others_alone() -> None:
    shared = dataclasses.replace(SHORT, optimizer="momentum", schedule="constant")
    recipes = [dataclasses.replace(shared, lr=lr) for lr in (1e-2, 1e38, 1e-3)]
    common = HeadTask(linear(), Given(), torch.tensor(LABELS), CLASSIFICATION, 5, EXACT)
    found = fit_together(common, recipes)
    assert [one is None for one in found] == [False, True, False]
    for recipe, one in ((recipes[0], found[0]), (recipes[2], found[2])):
        tensors, _ = by_itself(linear(), recipe)
        assert one is not None
        torch.testing.assert_close(one.tensors["weight"], tensors["weight"], rtol=2e-5, atol=2e-6)


def test_trials_that_differ_in_more_than_rate_and_decay_are_no_pass() -> None:
    common = HeadTask(linear(), Given(), torch.tensor(LABELS), CLASSIFICATION, 5, EXACT)
    with pytest.raises(AssertionError, match="differ in more"):
        fit_together(common, [SHORT, dataclasses.replace(SHORT, epochs=5)])


def test_heads_under_optimisers_that_look_at_the_weights_train_alone() -> None:
    cpu = EXACT.device
    assert is_worthwhile(SHORT, linear(), cpu) and is_worthwhile(SHORT, deep(), cpu)
    assert not is_worthwhile(dataclasses.replace(SHORT, optimizer="lamb"), linear(), cpu)


def test_heads_with_statistics_train_alone() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert not is_worthwhile(SHORT, normed(), device)


def test_large_heads_train_together_on_a_gpu_and_apart_on_a_cpu() -> None:
    small, large = nn.Linear(99, 1000), nn.Linear(100, 1000)
    assert is_worthwhile(SHORT, small, torch.device("cpu"))
    assert not is_worthwhile(SHORT, large, torch.device("cpu"))
    assert is_worthwhile(SHORT, large, torch.device("cuda"))
