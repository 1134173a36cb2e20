"""The training loop: what it trains, in which order, at which rate, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.rounding import TERMS, UNIT
from torch import Tensor, nn

from peftbench.data import TestSplit, TrainSplit, ValSplit
from peftbench.errors import Diverged, SplitRoleError
from peftbench.spec import Preprocessing, Recipe
from peftbench.training.batches import batch_bounds, pieces
from peftbench.training.device import Compute, seeded
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Callbacks, Fit, fit

pytestmark = pytest.mark.arithmetic
SIZE = 2
RAW = Preprocessing(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")
PLAIN = Recipe(  # timm's name for SGD that is not Nesterov's
    optimizer="momentum", momentum=0.0, weight_decay=0.0, schedule="constant", lr=0.1, batch_size=4
)


def split(count: int = 10, kind: type = TrainSplit) -> Any:
    """Images whose every pixel is 10 x their number; three classes in turn."""
    shade = 10 * np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(shade[:, None, None, None], (count, SIZE, SIZE, 3)).copy()
    labels = np.arange(count, dtype=np.int64) % 3
    return kind(images, labels, tuple(str(i) for i in range(count)))


class Watcher(nn.Module):
    """A linear classifier on the first pixel that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.ones(3))
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(9.0).reshape(3, 3) / 9)
            self.linear.bias.zero_()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S)."""
        self.seen.append(x.detach().clone())
        return self.linear(x[:, :, 0, 0])

    def numbers(self) -> list[list[int]]:
        """Which images were in each batch."""
        return [(x[:, 0, 0, 0] * 255 / 10).round().int().tolist() for x in self.seen]


def run(
    model: nn.Module,
    recipe: Recipe,
    train: Any = None,
    seed: int = 0,
    trainable: list[nn.Parameter] | None = None,
    **options: Any,
) -> Fit:
    fittable = Fittable(
        model,
        trainable or [p for n, p in model.named_parameters() if n != "unused"],
        options.pop("set_mode", model.train),
        RAW,
        options.pop("regulariser", None),
        options.pop("num_classes", None),
    )
    compute = Compute(CPU, torch.float32, micro_batch=options.pop("micro_batch", None))
    with seeded(seed, compute):
        return fit(
            fittable,
            split() if train is None else train,
            recipe,
            seed=seed,
            compute=compute,
            callbacks=Callbacks(**options),
        )


@pytest.mark.parametrize("kind", [ValSplit, TestSplit])
def test_only_a_train_split_trains(kind: type) -> None:
    model = Watcher()
    with pytest.raises(SplitRoleError, match=f"^fit takes a TrainSplit, not a {kind.__name__}.$"):
        run(model, PLAIN, split(kind=kind))
    assert model.seen == []


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
        (8, 4, [(0, 4), (4, 8)]),
        (9, 4, [(0, 4), (4, 9)]),  # one image alone joins the batch before it
        (3, 4, [(0, 3)]),
        (1, 4, [(0, 1)]),  # nothing to join
        (5, 1, [(0, 1), (1, 2), (2, 3), (3, 5)]),
        (2, 1, [(0, 2)]),
    ],
)
def test_batches_cover_all_images_and_none_is_left_alone(
    images: int, batch: int, expected: list[tuple[int, int]]
) -> None:
    assert batch_bounds(images, batch) == expected


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [
        (10, 4, [(0, 4), (4, 8)]),
        (8, 4, [(0, 4), (4, 8)]),
        (9, 4, [(0, 4), (4, 8)]),
        (1000, 64, [(start, start + 64) for start in range(0, 960, 64)]),  # as FacT: 960 of 1,000
        (3, 4, [(0, 3)]),  # without it there would be no step
    ],
)
def test_the_last_batch_can_be_left_out(
    images: int, batch: int, expected: list[tuple[int, int]]
) -> None:
    assert batch_bounds(images, batch, drop_last=True) == expected


def test_images_that_are_left_out_differ_from_epoch_to_epoch() -> None:
    model = Watcher()
    result = run(model, dataclasses.replace(PLAIN, epochs=4, lr=0.0, drop_last=True))
    batches = model.numbers()
    assert [len(batch) for batch in batches] == [4, 4] * 4
    epochs = [{i for batch in batches[2 * e : 2 * e + 2] for i in batch} for e in range(4)]
    assert all(len(shown) == 8 for shown in epochs)
    assert len({frozenset(shown) for shown in epochs}) > 1
    # loss and accuracy are those of the images that were shown
    data = split()
    with torch.no_grad():
        logits = model.linear(torch.from_numpy(data.images[:, 0, 0].copy()).float() / 255)
    shown = sorted(epochs[0])
    labels = torch.from_numpy(data.labels[shown].copy())
    expected = F.cross_entropy(logits[shown], labels).item()
    assert result.history[0].loss == pytest.approx(expected, rel=TERMS * UNIT)
    hits = (logits[shown].argmax(1) == labels).float().mean().item()
    assert result.history[0].accuracy == pytest.approx(hits)


def test_each_epoch_shows_every_image_once_in_a_new_order() -> None:
    model = Watcher()
    run(model, dataclasses.replace(PLAIN, epochs=2))
    batches = model.numbers()
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = ([i for batch in epoch for i in batch] for epoch in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != sorted(first)


def test_the_order_of_images_depends_on_the_seed_only() -> None:
    def order(seed: int, recipe: Recipe = PLAIN, draws: int = 0) -> list[list[int]]:
        torch.manual_seed(99)
        torch.rand(draws)  # what else was drawn must not matter
        model = Watcher()
        run(model, dataclasses.replace(recipe, epochs=2), seed=seed)
        return model.numbers()

    assert order(0) == order(0, draws=7)
    assert order(0) == order(
        0, dataclasses.replace(PLAIN, augmentation="flip", lr=0.5, optimizer="adamw")
    )
    assert order(0) != order(1)


def test_only_the_given_parameters_change() -> None:
    model = Watcher()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, dataclasses.replace(PLAIN, epochs=1), trainable=[model.linear.bias])
    assert not torch.equal(model.linear.bias, before["linear.bias"])
    assert torch.equal(model.linear.weight, before["linear.weight"])
    assert torch.equal(model.unused, before["unused"])


def by_hand(recipe: Recipe, smoothing: float = 0.0, regulariser: float = 0.0) -> Tensor:
    """The bias after the same training, written out with torch alone."""
    model = Watcher()
    order = torch.Generator().manual_seed(0)
    data = split()
    x = torch.from_numpy(data.images[:, 0, 0].copy()).float() / 255
    y = torch.from_numpy(data.labels.copy())
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(10, generator=order)
        torch.rand(10, generator=order)  # the draws for flipping
        for start, stop in ((0, 4), (4, 8), (8, 10)):
            index = shuffled[start:stop]
            logits = model.linear(x[index])
            loss = F.cross_entropy(logits, y[index], label_smoothing=smoothing)
            loss = loss + regulariser * model.linear.bias.square().sum()
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.linear.parameters():
                    p -= recipe.lr * p.grad  # type: ignore[operator]
    return model.linear.bias.detach()


def test_training_is_the_gradient_descent_that_it_claims_to_be() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3)
    model = Watcher()
    run(model, recipe)
    # the same operations in another order, hence the tolerance of float32
    torch.testing.assert_close(
        model.linear.bias, by_hand(recipe), rtol=TERMS * UNIT, atol=TERMS * UNIT
    )


def test_label_smoothing_is_that_of_torch() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3, label_smoothing=0.2)
    model = Watcher()
    run(model, recipe)
    expected = by_hand(recipe, smoothing=0.2)
    torch.testing.assert_close(model.linear.bias, expected, rtol=TERMS * UNIT, atol=TERMS * UNIT)
    assert not torch.allclose(expected, by_hand(recipe), rtol=TERMS * UNIT, atol=TERMS * UNIT)


def test_a_regulariser_is_added_to_the_loss_that_is_minimised() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3)
    model = Watcher()
    run(model, recipe, regulariser=lambda: 5.0 * model.linear.bias.square().sum())
    expected = by_hand(recipe, regulariser=5.0)
    torch.testing.assert_close(model.linear.bias, expected, rtol=TERMS * UNIT, atol=TERMS * UNIT)


def test_a_clipped_gradient_is_no_longer_than_asked() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=1, batch_size=10, clip_grad=0.01)
    model = Watcher()
    before = torch.cat([p.detach().flatten().clone() for p in model.linear.parameters()])
    run(model, recipe)
    after = torch.cat([p.detach().flatten() for p in model.linear.parameters()])
    # one step of plain descent: lr x 0.01; torch divides by the norm plus 1e-6
    assert (after - before).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_flipping_mirrors_about_half_of_the_images_and_nothing_else() -> None:
    count = 200
    images = np.zeros((count, SIZE, SIZE, 3), dtype=np.uint8)
    images[:, :, 0] = 255  # the left column is white
    train = TrainSplit(images, np.zeros(count, dtype=np.int64), tuple(map(str, range(count))))
    model = Watcher()
    run(model, dataclasses.replace(PLAIN, epochs=2, batch_size=50, augmentation="flip"), train)
    shown = torch.cat(model.seen)
    mirrored = shown[:, 0, 0, 1] == 1
    assert (shown[mirrored][:, :, :, 1] == 1).all() and (shown[mirrored][:, :, :, 0] == 0).all()
    assert (shown[~mirrored][:, :, :, 0] == 1).all() and (shown[~mirrored][:, :, :, 1] == 0).all()
    # 400 fair coins: five standard deviations are 50
    assert 150 < mirrored.sum().item() < 250
    flip_draws = mirrored.reshape(2, count)
    assert not torch.equal(flip_draws[0], flip_draws[1])


def test_without_flipping_no_image_is_mirrored() -> None:
    images = np.zeros((8, SIZE, SIZE, 3), dtype=np.uint8)
    images[:, :, 0] = 255
    train = TrainSplit(images, np.zeros(8, dtype=np.int64), tuple(map(str, range(8))))
    model = Watcher()
    run(model, dataclasses.replace(PLAIN, epochs=1), train)
    assert (torch.cat(model.seen)[:, :, :, 0] == 1).all()


def test_the_mode_is_set_before_every_epoch() -> None:
    calls = []
    run(Watcher(), dataclasses.replace(PLAIN, epochs=3), set_mode=lambda: calls.append("mode"))
    assert calls == ["mode"] * 3


def test_history_holds_mean_loss_accuracy_and_the_last_rate() -> None:
    rows: list[Any] = []
    recipe = dataclasses.replace(PLAIN, epochs=2, lr=0.0)
    model = Watcher()
    result = run(model, recipe, on_epoch=rows.append)
    assert rows == result.history
    # a rate of zero changes nothing, so both epochs see the initial model
    data = split()
    with torch.no_grad():
        logits = model.linear(torch.from_numpy(data.images[:, 0, 0].copy()).float() / 255)
        labels = torch.from_numpy(data.labels.copy())
        loss = F.cross_entropy(logits, labels).item()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert [row.epoch for row in rows] == [1, 2]
    assert [row.loss for row in rows] == pytest.approx([loss, loss], rel=TERMS * UNIT)
    assert [row.accuracy for row in rows] == pytest.approx([accuracy] * 2)
    assert [row.lr for row in rows] == [0.0, 0.0]


def test_steps_are_timed_after_the_warm_up() -> None:
    # 3 steps an epoch; the first 3 of 6 are warm-up
    result = run(Watcher(), dataclasses.replace(PLAIN, epochs=2))
    assert len(result.step_seconds) == 3
    assert result.images_per_second == pytest.approx(10 / sum(result.step_seconds))
    short = run(Watcher(), dataclasses.replace(PLAIN, epochs=1))
    assert (short.step_seconds, short.images_per_second) == ([], None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_at_the_end_of_its_epoch(value: float) -> None:
    rows: list[Any] = []
    model = Watcher()

    def poison() -> None:
        if len(rows) == 1:
            with torch.no_grad():
                model.linear.bias[0] = value

    with pytest.raises(
        Diverged, match=r"^the loss of epoch 2 of 5 is (nan|inf)\. Lower recipe\.lr \(now 0\.1\)"
    ):
        run(model, dataclasses.replace(PLAIN, epochs=5), set_mode=poison, on_epoch=rows.append)
    assert [row.epoch for row in rows] == [1]


def test_dropout_repeats_with_the_seed_whatever_was_drawn_before() -> None:
    class Dropping(Watcher):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    def trained(seed: int, draw: Callable[[], object]) -> Tensor:
        draw()
        model = Dropping()
        run(model, dataclasses.replace(PLAIN, epochs=2), seed=seed)
        return model.linear.bias.detach()

    first = trained(0, lambda: torch.manual_seed(1))
    second = trained(0, lambda: torch.rand(100))
    assert torch.equal(first, second)
    assert not torch.equal(first, trained(1, lambda: None))


def test_a_cool_down_adds_epochs_at_the_lowest_rate() -> None:
    recipe = Recipe(epochs=3, warmup_epochs=1, cooldown_epochs=2, min_lr=1e-4, batch_size=4)
    result = run(Watcher(), dataclasses.replace(recipe, schedule_unit="epoch"))
    assert [row.epoch for row in result.history] == [1, 2, 3, 4, 5]
    assert [row.lr for row in result.history[3:]] == pytest.approx([1e-4, 1e-4])


def test_a_moving_average_is_what_is_seen_after_an_epoch_and_what_remains() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3, batch_size=10, ema_decay=0.75)
    plain, averaged = Watcher(), Watcher()
    start = plain.linear.bias.detach().clone()
    weights: list[Tensor] = []
    run(
        plain,
        dataclasses.replace(recipe, ema_decay=None),
        on_epoch=lambda row: weights.append(plain.linear.bias.detach().clone()),
    )
    seen: list[Tensor] = []
    run(
        averaged,
        recipe,
        on_epoch=lambda row: seen.append(averaged.linear.bias.detach().clone()),
    )
    expected = start
    for weight, average in zip(weights, seen, strict=True):  # one step an epoch
        expected = 0.75 * expected + 0.25 * weight  # the weights themselves train as without it
        torch.testing.assert_close(average, expected, rtol=TERMS * UNIT, atol=TERMS * UNIT)
    assert torch.equal(averaged.linear.bias.detach(), seen[-1])
    assert not torch.allclose(seen[-1], weights[-1])


@pytest.mark.parametrize("mixing", [{"mixup": 1.0}, {"cutmix": 1.0}], ids=str)
def test_mixed_images_train_with_label_smoothing_and_more_classes_than_labels(
    mixing: dict[str, float],
) -> None:
    train = split()
    labels = np.zeros_like(train.labels)  # one of the three classes of the model
    train = TrainSplit(train.images.copy(), labels, train.names)
    recipe = dataclasses.replace(PLAIN, epochs=1, lr=0.0, label_smoothing=0.1, **mixing)
    model = Watcher()
    result = run(model, recipe, train, num_classes=3)
    # all targets are class 0, mixed or not, so that only images differ
    shown = torch.cat([x[:, :, 0, 0] for x in model.seen])
    with torch.no_grad():
        loss = F.cross_entropy(
            model.linear(shown), torch.zeros(10, dtype=torch.long), label_smoothing=0.1
        )
    assert result.history[0].loss == pytest.approx(loss.item(), rel=TERMS * UNIT)


def test_augmentation_is_the_same_for_every_model_and_rate() -> None:
    class Dropping(Watcher):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    recipe = dataclasses.replace(
        PLAIN, epochs=2, augmentation="crop_flip", mixup=0.8, cutmix=1.0, random_erasing=0.5
    )
    one, other = Watcher(), Dropping()
    run(one, recipe, num_classes=3)
    run(other, dataclasses.replace(recipe, lr=0.5), num_classes=3)
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))


def test_fewer_images_in_memory_at_a_time_give_the_same_training() -> None:
    recipe = dataclasses.replace(PLAIN, epochs=3)
    whole, parts = Watcher(), Watcher()
    expected, found = run(whole, recipe), run(parts, recipe, micro_batch=3)
    # 4, 4 and 2 images an epoch
    assert [len(batch) for batch in parts.numbers()] == [2, 2, 2, 2, 2] * 3
    assert list(chain(*parts.numbers())) == list(chain(*whole.numbers()))
    torch.testing.assert_close(parts.linear.weight, whole.linear.weight, rtol=0, atol=TERMS * UNIT)
    assert [row.accuracy for row in found.history] == [row.accuracy for row in expected.history]
    assert [row.loss for row in found.history] == pytest.approx(
        [row.loss for row in expected.history], abs=1e-6
    )


@pytest.mark.parametrize(
    ("length", "micro_batch", "sizes"),
    [
        (8, None, [8]),
        (8, 8, [8]),
        (8, 3, [3, 2, 3]),
        (9, 4, [3, 3, 3]),
        (5, 4, [2, 3]),
        (1, 4, [1]),
    ],
)
def test_pieces_of_a_batch_are_of_nearly_equal_size(
    length: int, micro_batch: int | None, sizes: list[int]
) -> None:
    cut = pieces(length, micro_batch)
    assert [piece.stop - piece.start for piece in cut] == sizes
    assert (cut[0].start, cut[-1].stop) == (0, length)


def test_epochs_take_turns_in_fixed_views() -> None:
    model = Watcher()
    recipe = dataclasses.replace(PLAIN, epochs=4, augmentation="flip", fixed_views=2)
    images = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    train = TrainSplit(images, np.arange(6) % 3, tuple("abcdef"))
    run(model, recipe, train)
    epochs = [torch.cat(model.seen[start : start + 2]) for start in (0, 2, 4, 6)]
    seen = [{tuple(image.flatten().tolist()) for image in epoch} for epoch in epochs]
    assert seen[0] == seen[2] and seen[1] == seen[3] and seen[0] != seen[1]
    assert not torch.equal(epochs[0], epochs[2])  # in another order
