"""Fixed views: one drawing for each image and view, whatever is around it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.errors import ConfigError
from peftbench.spec import CROP_FLIP, Recipe
from peftbench.training.recipe import check_recipe
from peftbench.training.views import FixedViews

pytestmark = pytest.mark.arithmetic
SIZE = 6
X = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(0))
SIZES = [(40, 30), (20, 60), (9, 9), (100, 80), (50, 50)]
FLIP = Recipe(augmentation="flip", fixed_views=3)
ALL = Recipe(augmentation=CROP_FLIP, random_erasing=0.5, fixed_views=3)


def views(recipe: Recipe, rows: list[int], view: int) -> Tensor:
    sizes = [SIZES[row] for row in rows] if recipe is ALL else None
    return FixedViews(recipe, SIZE)(X[rows], rows, view, sizes)


@pytest.mark.parametrize("recipe", [FLIP, ALL], ids=["flip", "all"])
def test_a_view_is_the_same_in_any_batch_and_after_any_drawing(recipe: Recipe) -> None:
    whole = views(recipe, [0, 1, 2, 3, 4], 1)
    torch.rand(7)
    state = torch.get_rng_state()
    parts = views(recipe, [4, 1], 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(parts, whole[[4, 1]], rtol=0, atol=0)


def test_views_of_an_image_differ_and_images_are_drawn_apart() -> None:
    first, second = (views(ALL, [0, 1, 2, 3, 4], view) for view in (0, 1))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    same = FixedViews(ALL, SIZE)(X[[0, 0]], [7, 8], 0, [SIZES[0]] * 2)
    assert not torch.equal(same[0], same[1])


def test_half_of_the_views_are_mirrored_and_nothing_else_happens_to_them() -> None:
    x = X[:1].expand(200, -1, -1, -1)
    shown = FixedViews(FLIP, 9)(x, range(200), 0, None)
    mirrored = [torch.equal(image, X[0].flip(-1)) for image in shown]
    plain = [torch.equal(image, X[0]) for image in shown]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 70 <= sum(mirrored) <= 130  # 100 with a deviation of 7


def test_crops_are_clamped_to_what_pixels_can_be() -> None:
    low, high = torch.full((1, 3, 1, 1), 0.3), torch.full((1, 3, 1, 1), 0.6)
    cropped = dataclasses.replace(ALL, random_erasing=0.0)
    shown = FixedViews(cropped, SIZE, (low, high))(X, range(5), 0, SIZES)
    assert shown.shape == (5, 3, SIZE, SIZE)
    assert float(shown.min()) >= 0.3 and float(shown.max()) <= 0.6 + 1e-6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fixed_views": 2}, "nothing makes one view"),
        ({"fixed_views": 2, "augmentation": "flip", "mixup": 0.8}, "mixup=0.8 mixes them"),
        ({"fixed_views": 0, "augmentation": "flip"}, "use 1 or more"),
    ],
)
def test_views_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_recipe(Recipe(**changes))
