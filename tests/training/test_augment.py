"""Augmentation: what each kind does to images and targets, and that a seed decides it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.spec import Recipe
from peftbench.training.augment import Augmentation

CLASSES = 5


def batch(count: int = 6, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Images whose pixels are all different, classes, and draws that mirror the first half."""
    x = torch.arange(count * 3 * size * size, dtype=torch.float32).reshape(count, 3, size, size)
    y = torch.arange(count) % CLASSES
    flip_draws = torch.where(torch.arange(count) < count // 2, 0.25, 0.75)
    return x, y, flip_draws


def augmented(
    seed: int = 0,
    times: int = 1,
    images: tuple[Tensor, Tensor, Tensor] | None = None,
    **fields: Any,
) -> list[tuple[Tensor, Tensor]]:
    augment = Augmentation(dataclasses.replace(Recipe(), **fields), CLASSES, seed)
    return [augment(*(images or batch())) for _ in range(times)]


KINDS = [
    {"augmentation": "crop_flip"},
    {"augmentation": "random_crop_flip"},
    {"mixup": 0.8},
    {"cutmix": 1.0},
    {"mixup": 0.8, "cutmix": 1.0},
    {"random_erasing": 0.9},
]
EVERYTHING = {"augmentation": "crop_flip", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25}


def test_nothing_asked_for_changes_nothing() -> None:
    x, y, _ = batch()
    ((images, targets),) = augmented()
    assert torch.equal(images, x)
    assert torch.equal(targets, y)


@pytest.mark.parametrize("fields", [*KINDS, EVERYTHING], ids=str)
def test_a_seed_decides_what_happens_whatever_else_was_drawn(fields: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = augmented(times=3, **fields)
    torch.rand(9)
    second = augmented(times=3, **fields)
    for (x, y), (other_x, other_y) in zip(first, second, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert not torch.equal(first[0][0], first[1][0])  # another draw each time
    assert not torch.equal(first[0][0], augmented(seed=1, **fields)[0][0])


@pytest.mark.parametrize("fields", [*KINDS, EVERYTHING], ids=str)
def test_dropout_draws_the_same_with_and_without_augmentation(fields: dict[str, Any]) -> None:
    torch.manual_seed(7)
    undisturbed = torch.rand(4)
    torch.manual_seed(7)
    augmented(times=3, **fields)
    assert torch.equal(torch.rand(4), undisturbed)


@pytest.mark.parametrize("kind", ["flip", "crop_flip", "random_crop_flip"])
def test_coins_below_a_half_mirror(kind: str) -> None:
    x, _, flip_draws = batch()
    rising = torch.arange(8.0).expand(6, 3, 8, 8).clone()  # from left to right
    ((images, _),) = augmented(images=(rising, batch()[1], flip_draws), augmentation=kind)
    slope = (images[..., -1] - images[..., 0]).mean(dim=(1, 2))
    assert ((slope < 0) == (flip_draws < 0.5)).all()
    if kind == "flip":
        ((images, _),) = augmented(augmentation="flip")
        assert torch.equal(images, torch.cat([x[:3].flip(-1), x[3:]]))


def test_a_crop_is_a_part_of_its_own_image_in_the_old_size() -> None:
    x, y, flip_draws = batch(count=4, size=16)
    for images, targets in augmented(times=20, images=(x, y, flip_draws), augmentation="crop_flip"):
        assert images.shape == x.shape
        assert torch.equal(targets, y)
        low, high = x.amin(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))
        # bicubic overshoots by a little where a row begins, 16 above the one before
        assert (images.amin(dim=(1, 2, 3)) >= low - 2).all()
        assert (images.amax(dim=(1, 2, 3)) <= high + 2).all()


def test_crops_have_areas_from_8_to_100_percent() -> None:
    # the range of a linear ramp inside a crop of width w is about w: its spread tells the width
    ramp = torch.arange(64.0).expand(50, 3, 64, 64).clone()
    labels, flip_draws = torch.zeros(50, dtype=torch.long), torch.ones(50)
    ((images, _),) = augmented(images=(ramp, labels, flip_draws), augmentation="crop_flip")
    widths = (images[:, 0, 0, -1] - images[:, 0, 0, 0] + 1) / 64
    # width = sqrt(area x ratio): at least sqrt(0.08 x 3/4) = 0.245
    assert widths.min() > 0.2 and widths.max() <= 1.0
    assert widths.std() > 0.1


@pytest.mark.parametrize("fields", [f for f in KINDS if "mixup" in f or "cutmix" in f], ids=str)
def test_targets_of_mixed_images_are_shares_that_sum_to_one(fields: dict[str, Any]) -> None:
    _, y, _ = batch()
    for _, targets in augmented(times=20, **fields):
        assert targets.shape == (6, CLASSES)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        assert (targets >= 0).all()
        # only the image's own class and its partner's have a share
        assert ((targets > 0).sum(1) <= 2).all()
        assert (targets.gather(1, y.view(-1, 1)) > 0).any()


def test_the_share_of_a_mixed_image_is_the_share_of_its_class() -> None:
    x = torch.eye(CLASSES).view(CLASSES, CLASSES, 1, 1)[:, :3].expand(-1, -1, 4, 4).clone()
    x = x[:3]
    y = torch.arange(3)
    for images, targets in augmented(times=10, images=(x, y, torch.ones(3)), mixup=0.8):
        # the image of class c is white in channel c, so its mean in a channel is the share
        torch.testing.assert_close(images.mean(dim=(2, 3)), targets[:, :3])
    for images, targets in augmented(times=10, images=(x, y, torch.ones(3)), cutmix=1.0):
        torch.testing.assert_close(images.mean(dim=(2, 3)), targets[:, :3])


def test_with_both_some_batches_are_mixed_and_others_cut() -> None:
    x = torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 4, 4).clone()
    images = (x, torch.arange(3), torch.ones(3))
    made = augmented(times=40, images=images, mixup=0.8, cutmix=1.0)
    cut = [bool(((i == 0) | (i == 1)).all()) for i, _ in made]  # cut images keep their pixels
    assert 5 < sum(cut) < 40


def test_erasing_turns_a_rectangle_into_noise_in_about_as_many_images_as_asked() -> None:
    x = torch.full((300, 3, 8, 8), 9.0)
    labels = torch.zeros(300, dtype=torch.long)
    ((images, _),) = augmented(images=(x, labels, torch.ones(300)), random_erasing=0.25)
    changed = (images != 9.0).any(dim=1)  # (300, 8, 8)
    erased = changed.flatten(1).any(1)
    assert 45 < int(erased.sum()) < 105  # 75 of 300, four standard deviations are 30
    for mask in changed[erased]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows.view(-1, 1) & columns)  # a full rectangle
        assert mask.float().mean() <= 0.45
    assert (images[changed.unsqueeze(1).expand_as(images)].std() - 1).abs() < 0.2


def test_one_image_alone_can_be_mixed_with_itself() -> None:
    x, y, flip_draws = batch(count=1)
    ((images, targets),) = augmented(images=(x, y, flip_draws), mixup=0.8)
    torch.testing.assert_close(images, x)
    torch.testing.assert_close(targets, torch.eye(CLASSES)[:1])


@pytest.mark.parametrize("fields", [{"augmentation": "flip"}, *KINDS, EVERYTHING], ids=str)
def test_a_process_makes_of_its_rows_what_one_process_makes_of_them(
    fields: dict[str, Any],
) -> None:
    recipe = dataclasses.replace(Recipe(), **fields)
    size = 6 if "augmentation" in fields and fields["augmentation"] != "flip" else None
    whole, share = (Augmentation(recipe, CLASSES, seed=0, size=size) for _ in range(2))
    x, y, flip_draws = batch(count=7)
    # of pictures whose sizes differ: how often a box is drawn again depends on them
    sizes = [(4 + 9 * i, 40 - 5 * i) for i in range(7)]
    for rows in ([0, 1, 2], [3, 4, 5, 6], [0, 6], [5], list(range(7))):  # of batches in turn
        images, targets = whole(x, y, flip_draws, sizes=sizes)
        needed = share.needed(rows, 7)
        own, own_targets = share(x[needed], y[needed], flip_draws[needed], rows, 7, sizes)
        assert torch.equal(own, images[rows])
        assert torch.equal(own_targets, targets[rows])
    mixes = bool({"mixup", "cutmix"} & fields.keys())
    assert share.needed([0, 3], 7) == ([0, 2, 3, 6] if mixes else [0, 3])


def test_a_crop_goes_on_from_its_state_bit_for_bit() -> None:
    recipe = dataclasses.replace(Recipe(), **EVERYTHING)
    sizes = [(5 * i + 3, 20) for i in range(6)]
    first, second = (Augmentation(recipe, CLASSES, seed, size=4) for seed in (0, 1))
    first(*batch(), sizes=sizes)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        made, again = (augment(*batch(), sizes=sizes) for augment in (first, second))
        assert torch.equal(made[0], again[0])
        assert torch.equal(made[1], again[1])


@pytest.mark.parametrize("kind", ["crop_flip", "random_crop_flip"])
def test_a_crop_of_black_and_white_is_neither_blacker_nor_whiter(kind: str) -> None:
    stripes = (torch.arange(16) // 3 % 2).float().expand(40, 3, 16, 16)  # normalised to 0 and 1
    limits = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    recipe = Recipe(augmentation=kind)
    given = stripes, torch.zeros(40, dtype=torch.long), torch.ones(40)
    free, _ = Augmentation(recipe, CLASSES, 0, size=12)(*given)
    held, _ = Augmentation(recipe, CLASSES, 0, size=12, limits=limits)(*given)
    assert free.min() < -0.02 and free.max() > 1.02  # which bicubic does at edges
    assert torch.equal(held, free.clamp(0, 1))
