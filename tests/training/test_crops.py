"""Crops: which part of a picture is drawn, and that its pixels are those of that part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from peftbench.data.images import to_square
from peftbench.spec import Preprocessing, Recipe
from peftbench.training import crops
from peftbench.training.augment import Augmentation

KINDS = ("crop_flip", "random_crop_flip")


def drawn(kind: str, picture: tuple[int, int], count: int, size: int = 28) -> Tensor:
    """(count, 4) left, top, width and height in pixels of the picture."""
    torch.manual_seed(0)
    boxes = crops.draw(kind, [picture] * count, size)
    return boxes * torch.tensor([*picture, *picture])


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours, as of a photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_batch(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def as_pixels(x: Tensor) -> np.ndarray:
    return x[0].clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("picture", [(60, 20), (40, 50), (32, 32), (300, 400)])
def test_boxes_are_those_that_torchvision_draws_in_the_picture(picture: tuple[int, int]) -> None:
    image = Image.new("RGB", picture)
    found = drawn("crop_flip", picture, 50)
    torch.manual_seed(0)
    for left, top, width, height in found.tolist():
        expected = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        assert [top, left, height, width] == pytest.approx(expected)


@pytest.mark.parametrize("picture", [(600, 200), (400, 500)])
def test_area_and_ratio_are_those_of_the_picture_before_squashing(
    picture: tuple[int, int],
) -> None:
    left, top, width, height = drawn("crop_flip", picture, 2000).T
    area, ratio = width * height / (picture[0] * picture[1]), width / height
    assert area.min() > 0.078 and area.max() <= 1.0  # sides are rounded to whole pixels
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert area.min() < 0.085 and ratio.min() < 0.76 and ratio.max() > 1.32
    if picture == (400, 500):  # of the other, no box of these ratios shows more than 4/9
        assert area.max() > 0.95
    assert left.min() == top.min() == 0
    assert (left + width).max() == picture[0] and (top + height).max() == picture[1]


@pytest.mark.parametrize("picture", [(500, 375), (375, 500), (32, 32), (1000, 100)])
def test_the_window_is_224_of_256_of_the_short_side_and_reaches_all_borders(
    picture: tuple[int, int],
) -> None:
    left, top, width, height = drawn("random_crop_flip", picture, 3000, size=224).T
    short = min(picture)
    assert torch.allclose(width, torch.full_like(width, short * 224 / 256))
    assert torch.allclose(height, width)
    for first, extent in ((left, picture[0]), (top, picture[1])):
        assert first.min() >= 0 and (first + width).max() <= extent + 1e-9
        assert first.min() < 0.02 * extent and (first + width).max() > 0.98 * extent
    # as many places as the window has in the resized picture: whole pixels
    along_short = top if picture[0] >= picture[1] else left
    places = (along_short * 256 / short).unique()
    torch.testing.assert_close(places, torch.arange(33, dtype=torch.float64))


def test_the_window_of_a_square_of_256_is_the_crop_that_torchvision_cuts() -> None:
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        torch.manual_seed(seed)
        expected = v2.RandomCrop(224)(x)
        torch.manual_seed(seed)
        found = crops.cut(x, crops.draw("random_crop_flip", [(256, 256)], 224), 224)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [(0, 0, 60, 60), (3, 5, 12, 9), (20, 7, 37, 50), (10, 20, 24, 24)])
def test_a_crop_of_whole_pixels_is_what_pillow_makes_of_it(box: tuple[int, ...]) -> None:
    # Pillow clips and rounds twice, along and across; nothing here comes near 0 or 255
    noise = np.random.default_rng(0).integers(80, 176, (60, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    left, top, width, height = box
    part = image.crop((left, top, left + width, top + height))
    expected = np.asarray(part.resize((24, 24), Image.Resampling.BICUBIC), dtype=np.float64)
    found = as_pixels(crops.cut(as_batch(image), torch.tensor([box]) / 60, 24))
    assert np.abs(found - expected).max() < 1.6


def test_a_crop_through_the_square_is_nearly_the_crop_of_the_picture() -> None:
    image = photograph(500, 375)
    square = as_batch(image.resize((384, 384), Image.Resampling.BICUBIC))
    shares = torch.tensor([500, 375, 500, 375])
    torch.manual_seed(0)
    for box in crops.draw("crop_flip", [(500, 375)] * 8, 224):
        left, top, width, height = (box * shares).round().int().tolist()
        part = image.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float64)
        found = as_pixels(crops.cut(square, box[None], 224))
        assert np.abs(found - expected).mean() < 1
        assert np.abs(found - expected).max() < 6


def test_a_box_within_one_pixel_shows_that_pixel() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    shown = crops.cut(x, torch.tensor([[0.26, 0.51, 0.001, 0.2]]), 2)
    assert torch.equal(shown, torch.full((1, 3, 2, 2), 9.0))


def test_many_images_get_what_each_gets_alone() -> None:
    x = torch.rand(crops.AT_ONCE + 5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    boxes = crops.draw("crop_flip", [(20 + i, 30) for i in range(len(x))], 7)
    together = crops.cut(x, boxes, 7)
    assert together.shape == (len(x), 3, 7, 7)
    for i in (0, crops.AT_ONCE - 1, crops.AT_ONCE, len(x) - 1):
        torch.testing.assert_close(crops.cut(x[i : i + 1], boxes[i : i + 1], 7)[0], together[i])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_crop_shows_lies_where_its_box_was_drawn(kind: str) -> None:
    """A picture of 60 x 20 pixels whose red says how far right a pixel is, and green how low."""
    width, height, size, count = 60, 20, 28, 400
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    colours = np.stack([4 * columns, 12 * rows, 0 * rows], axis=2)
    plain = Preprocessing(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, train_size=48)
    square = to_square(Image.fromarray(colours.astype(np.uint8)), plain.of_training)
    assert square.shape == (48, 48, 3)
    x = as_batch(Image.fromarray(square)).expand(count, -1, -1, -1)
    limits = torch.zeros(1), torch.full((1,), 255.0)
    augment = Augmentation(Recipe(augmentation=kind), 2, seed=0, size=size, limits=limits)
    labels, unmirrored = torch.zeros(count, dtype=torch.long), torch.ones(count)
    shown, _ = augment(x, labels, unmirrored, sizes=[(width, height)] * count)
    again = Augmentation(Recipe(augmentation=kind), 2, seed=0)
    torch.set_rng_state(again.generator.get_state())
    boxes = crops.draw(kind, [(width, height)] * count, size)
    boxes *= torch.tensor([width, height, width, height])

    assert shown.shape == (count, 3, size, size)
    right, low = shown[:, 0] / 4, shown[:, 1] / 12  # coordinates in the picture
    centres = (torch.arange(size) + 0.5) / size
    expected_right = boxes[:, 0, None] + boxes[:, 2, None] * centres
    expected_low = boxes[:, 1, None] + boxes[:, 3, None] * centres
    # a crop bends by half a pixel of the picture at its ends, corners included
    assert (right - expected_right[:, None, :]).abs().max() < 1.2
    assert (low - expected_low[:, :, None]).abs().max() < 0.8
    inner = slice(4, -4)
    assert (right - expected_right[:, None, :])[:, inner, inner].abs().max() < 0.6
    # both ends of the long side are seen, of which the centre square shows pixels 20 to 40 only
    assert right.min() < 0.05 * width and right.max() > 0.95 * width
    assert low.min() < 0.06 * height and low.max() > 0.94 * height
