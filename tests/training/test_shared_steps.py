"""Steps that processes take together, against those of one process."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.rounding import UNIT
from support.tiny_backbones import anatomy_of, fresh
from support.together import together
from timm.layers import DropPath
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.methods import METHODS, apply, discover
from peftbench.spec import Preprocessing, Recipe
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.device import Compute, seeded
from peftbench.training.evaluate import predict
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Callbacks, Fit, fit
from peftbench.training.objective import StepBatch
from peftbench.training.world import ALONE, World, from_environment, join, leave

pytestmark = [
    pytest.mark.arithmetic,
    pytest.mark.skipif(sys.platform != "linux", reason="forks after torch has started"),
]
discover()

CPU = torch.device("cpu")
CLASSES = 3
SIZES = (2, 3)  # numbers of processes
PLAIN = Recipe(optimizer="momentum", momentum=0.9, lr=0.05, epochs=2, warmup_epochs=0, batch_size=5)
EVERYTHING = dataclasses.replace(
    PLAIN,
    label_smoothing=0.1,
    clip_grad=0.5,
    ema_decay=0.7,
    augmentation="crop_flip",
    mixup=0.8,
    cutmix=1.0,
    random_erasing=0.5,
)
Arrays = dict[str, np.ndarray]


class Small(nn.Module):
    """A classifier with a tensor that nothing reads, and dropout if asked for."""

    def __init__(self, dropout: float = 0.0, cut_at: int = -1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, CLASSES)
        self.unread = nn.Parameter(torch.ones(2, 2))
        self.dropout = dropout
        with torch.no_grad():
            for parameter in (*self.conv.parameters(), *self.head.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        self.calls, self.cut_at = 0, cut_at

    def forward(self, x: Tensor) -> Tensor:
        if self.calls == self.cut_at:
            raise ZeroDivisionError
        self.calls += 1
        features = self.conv(x).relu().mean((2, 3))
        return self.head(F.dropout(features, self.dropout, self.training))


SKEWED = np.array([0] * 7 + [1] * 4 + [2])  # classes of 12 images


def split(
    count: int, size: int, whole: bool = False, labels: np.ndarray | None = None
) -> TrainSplit:
    """Noise; `whole` squares are larger, and of pictures that were not square."""
    generator = np.random.default_rng(0)
    side = 2 * size if whole else size
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    sizes = generator.integers(5, 50, (count, 2)) if whole else None
    labels = np.arange(count) % CLASSES if labels is None else labels.copy()
    return TrainSplit(images, labels, tuple(map(str, range(count))), sizes)


def preprocessing(size: int) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)


def trained(model: nn.Module, recipe: Recipe, world: World, **options: Any) -> Arrays:
    """Weights, statistics, losses and accuracies after training on 12 images, unless told."""
    size = options.pop("size", 6)
    fittable = Fittable(
        model,
        options.pop("trainable", None) or list(model.parameters()),
        options.pop("set_mode", model.train),
        preprocessing(size),
        options.pop("regulariser", None),
        CLASSES,
        objective=options.pop("objective", None),
    )
    whole = recipe.augmentation == "crop_flip"
    train = split(options.pop("count", 12), size, whole, options.pop("labels", None))
    compute = Compute(CPU, torch.float32, world, options.pop("micro_batch", None))
    callbacks = Callbacks(**options)
    with seeded(1, compute):
        fitted: Fit = fit(
            fittable, train, recipe, seed=1, compute=compute, callbacks=callbacks
        )  # fmt: skip
    told = {
        "loss": np.array([row.loss for row in fitted.history]),
        "accuracy": np.array([row.accuracy for row in fitted.history]),
    }
    return told | {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def augmented(world: World) -> Arrays:
    """Batches of 5, 5 and 2 images, with all that can happen to images and weights."""
    model = Small()
    return trained(
        model, EVERYTHING, world, regulariser=lambda: 0.1 * model.head.weight.square().sum()
    )


def in_pieces(world: World) -> Arrays:
    """Pieces of 1 and 2 images: of some, a process has none."""
    return trained(Small(), PLAIN, world, micro_batch=2, count=11)


def weighed(world: World) -> Arrays:
    """Classes that weigh 12 / (3 x 7), 12 / (3 x 4) and 12 / 3, in mixed and smoothed targets."""
    recipe = dataclasses.replace(EVERYTHING, class_weights="balanced")
    model = Small()
    return trained(
        model,
        recipe,
        world,
        labels=SKEWED,
        micro_batch=3,  # and a regulariser, which no weight of a part may count twice
        regulariser=lambda: 0.1 * model.head.weight.square().sum(),
    )


def drawn(world: World) -> Arrays:
    """Images of classes that are drawn alike, some of them twice in an epoch."""
    recipe = dataclasses.replace(EVERYTHING, sampling="balanced")
    return trained(Small(), recipe, world, labels=SKEWED, micro_batch=2)


def batch_norms(world: World) -> Arrays:
    """Full tuning of a ResNet: statistics are those of whole pieces of 2 or 3 images."""
    generator = torch.Generator().manual_seed(0)
    backbone = fresh("resnet_basic")
    for module in backbone.modules():
        if isinstance(module, DropPath):  # each process would drop for its own
            module.drop_prob = 0.0
    tuned = apply(METHODS["full"](), backbone, anatomy_of("resnet_basic"), CLASSES, generator)
    return trained(
        tuned.model,
        dataclasses.replace(PLAIN, epochs=1, lr=0.01),
        world,
        trainable=list(tuned.trainable.values()),
        set_mode=tuned.train,
        micro_batch=3,
        count=8,
        size=32,
    )


def logits(world: World) -> Arrays:
    """Three batches of 4, 4 and 3 images; and one of 3, which only one process gets."""
    model, images = Small(), split(11, 6).images
    compute = Compute(CPU, torch.float32, world)
    many = predict(model, images, preprocessing(6), compute, batch_size=4)
    few = predict(model, images[:3], preprocessing(6), compute, batch_size=4)
    return {"many": many, "few": few}


class Memory:
    """Pulls outputs of a noisy second view towards those of the same image an epoch ago."""

    def __init__(self) -> None:
        self.kept, self.new = torch.zeros(12, CLASSES), torch.zeros(12, CLASSES)

    def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        first, second = batch.outputs(copies=2).chunk(2)
        if batch.numbers is None:  # of a process that repeats another's image
            return batch.loss(first), first
        self.new[batch.numbers] = first.detach()
        term = (second - self.kept[batch.numbers]).square().sum(1).mean()
        return batch.loss(first) + 0.1 * term, first

    def gather(self, world: World) -> None:
        self.kept = world.all_reduce_sum(self.new.clone())
        self.new.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def remembered(world: World) -> Arrays:
    """An objective that sees an image twice, and remembers what any process made of it."""
    return trained(Small(), PLAIN, world, micro_batch=2, count=11, objective=Memory())


SCENARIOS: dict[str, Callable[[World], Arrays]] = {
    "augmented": augmented,
    "in_pieces": in_pieces,
    "weighed": weighed,
    "drawn": drawn,
    "batch_norms": batch_norms,
    "remembered": remembered,
    "logits": logits,
}


def kept(path: Path, world: World, cut_at: int = -1) -> Arrays | None:
    """A training with dropout, saved at each third step; `None` if it was cut at a step."""
    recipe = dataclasses.replace(EVERYTHING, optimizer="adamw", epochs=3, lr=0.01)
    try:
        return trained(
            Small(0.3, cut_at), recipe, world, checkpoints=Checkpoints(path, steps=3, world=world)
        )
    except ZeroDivisionError:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What each process of 2 and of 3 has at the end of each scenario."""
    root = tmp_path_factory.mktemp("shared")

    def go_through(rank: int) -> None:
        world = from_environment()
        join(world, CPU)

        def save(name: str, arrays: Arrays | None) -> None:
            assert arrays is not None
            np.savez(root / f"{name}-{rank}-of-{world.size}.npz", **arrays)

        for name, scenario in SCENARIOS.items():
            save(name, scenario(world))
        save("whole", kept(root / f"whole{world.size}", world))
        assert kept(root / f"cut{world.size}", world, cut_at=5) is None  # in the second epoch
        save("resumed", kept(root / f"cut{world.size}", world))
        leave(world)

    for size in SIZES:
        assert together(size, go_through) == [0] * size
    yield root


def arrays(folder: Path, name: str, rank: int, size: int) -> Arrays:
    with np.load(folder / f"{name}-{rank}-of-{size}.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "logits"])
def test_steps_are_those_of_one_process(folder: Path, name: str) -> None:
    expected = SCENARIOS[name](ALONE)
    for size in SIZES:
        first = arrays(folder, name, 0, size)
        assert expected.keys() == first.keys()
        for key, value in expected.items():
            # sums in another order, and what a dozen steps make of it; statistics of the batch
            # norms are of size 1 to 10, the rest below
            rtol, atol = 2048 * UNIT, 256 * UNIT
            np.testing.assert_allclose(first[key], value, rtol=rtol, atol=atol, err_msg=key)
        for rank in range(1, size):  # all of them hold the same model
            other = arrays(folder, name, rank, size)
            assert all(np.array_equal(other[key], first[key]) for key in first)
        if "unread" in first:
            assert (first["unread"] == 1).all()  # what gets no gradient does not decay either


def test_evaluation_shows_every_image_once_and_in_order(folder: Path) -> None:
    for key, value in SCENARIOS["logits"](ALONE).items():
        for size in SIZES:
            for rank in range(size):
                assert np.array_equal(arrays(folder, "logits", rank, size)[key], value)


def test_processes_go_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    alone = kept(tmp_path / "alone", ALONE)
    assert alone is not None
    for size in SIZES:
        for rank in range(size):
            whole, resumed = (arrays(folder, name, rank, size) for name in ("whole", "resumed"))
            assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
            # each process drew dropout from a stream of its own
            assert not np.allclose(whole["head.weight"], alone["head.weight"], rtol=1e-3)


@pytest.mark.parametrize(
    ("piece", "size", "shares"),
    [
        (slice(0, 8), 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (slice(4, 9), 2, [[4, 5], [6, 7, 8]]),
        (slice(0, 7), 3, [[0, 1], [2, 3], [4, 5, 6]]),
        (slice(6, 8), 1, [[6, 7]]),
    ],
)
def test_every_image_of_a_batch_is_in_one_process(
    piece: slice, size: int, shares: list[list[int]]
) -> None:
    parts = [World(rank, size).part(piece) for rank in range(size)]
    assert [list(part.rows) for part in parts] == shares
    assert [part.count for part in parts] == [len(share) for share in shares]
    assert {part.total for part in parts} == {piece.stop - piece.start}


def test_a_process_without_an_image_repeats_one_that_does_not_count() -> None:
    parts = [World(rank, 4).part(slice(3, 5)) for rank in range(4)]
    assert [part.count for part in parts] == [0, 1, 0, 1]
    assert [list(part.rows) for part in parts] == [[3], [3], [3], [4]]
    assert [part.scale(batch=8, processes=4) for part in parts] == [0, 0.5, 0, 0.5]
