"""Promises of decoding and resizing, on cases that can be worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import PIL
import pytest
from PIL import Image

from peftbench.data.images import (
    backend,
    check_geometry,
    decode,
    fit,
    geometry_key,
    row,
    row_type,
    squashed,
    without_antialias,
)
from peftbench.errors import ConfigError, DataError, UnknownName
from peftbench.spec import Preprocessing


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    buffer.seek(0)
    return buffer


def pixels(image: Image.Image, kind: str = "PNG", **options: object) -> list:
    return np.asarray(decode(as_file(image, kind, **options), "case")).tolist()


def geometry(size: int, **changes: object) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3, **changes)


def test_transparency_lies_on_white() -> None:
    layer = Image.new("RGBA", (2, 1))
    layer.putpixel((0, 0), (200, 0, 0, 0))  # invisible: its colour must not show
    layer.putpixel((1, 0), (0, 0, 0, 51))  # a fifth of black on white is 204
    assert pixels(layer) == [[[255, 255, 255], [204, 204, 204]]]


def test_a_transparent_palette_entry_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(image, transparency=1) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(image) == [[[10, 20, 30], [40, 50, 60]]]


def test_grey_of_one_eight_and_sixteen_bits_becomes_rgb() -> None:
    assert pixels(Image.fromarray(np.array([[0, 90]], dtype=np.uint8))) == [[[0] * 3, [90] * 3]]
    wide = Image.fromarray(np.array([[0, 257 * 90, 65535]], dtype=np.uint16))
    assert pixels(wide) == [[[0] * 3, [90] * 3, [255] * 3]]
    assert pixels(Image.new("1", (1, 1), 1)) == [[[255] * 3]]
    assert pixels(Image.new("LA", (1, 1), (100, 0))) == [[[255] * 3]]


def test_the_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    assert pixels(image, exif=exif) == [[[255, 0, 0]], [[0, 0, 0]]]


def test_floating_point_pixels_are_refused() -> None:
    image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match="Cannot decode image case: floating-point"):
        decode(as_file(image, "TIFF"), "case")


def test_squashing_by_two_averages_blocks() -> None:
    columns = np.array([0, 100, 40, 60], dtype=np.uint8)
    image = Image.fromarray(np.repeat(columns[None, :, None], 3, axis=2).repeat(2, axis=0))
    squeezed = fit(image, geometry(2, interpolation="box"))
    # 4 x 2 to 2 x 2: pairs of columns average to 50 and 50, rows stay.
    assert squeezed.tolist() == [[[50] * 3, [50] * 3]] * 2


def test_squashing_ignores_the_ratio_and_cropping_keeps_it() -> None:
    ramp = np.arange(8, dtype=np.uint8) * 10
    wide = Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2).repeat(4, axis=0))
    squeezed = fit(wide, geometry(4, interpolation="box"))
    assert squeezed[0, :, 0].tolist() == [5, 25, 45, 65]
    # The short side is already 4, so the crop takes columns 2..5 unchanged.
    cropped = fit(wide, geometry(4, resize="crop", interpolation="box"))
    assert cropped[0, :, 0].tolist() == [20, 30, 40, 50]


def test_the_crop_fraction_is_the_part_of_the_short_side_that_stays() -> None:
    ramp = np.arange(8, dtype=np.uint8) * 10
    square = Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2).repeat(8, axis=0))
    # 4 / 0.5 = 8: nothing is resized, the middle 4 of 8 columns stay.
    cropped = fit(square, geometry(4, resize="crop", crop_fraction=0.5))
    assert cropped[:, :, 0].tolist() == [[20, 30, 40, 50]] * 4


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (57, 57), (224, 161)])
@pytest.mark.parametrize("fraction", [1.0, 0.9, 0.875])
def test_cropping_agrees_with_torchvision(size: tuple[int, int], fraction: float) -> None:
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="torchvision is not installed", exc_type=ImportError
    )
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    reference = transforms.Compose(
        [
            transforms.Resize(int(24 / fraction), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
        ]
    )
    ours = fit(image, geometry(24, resize="crop", crop_fraction=fraction))
    assert np.array_equal(ours, np.asarray(reference(image)))


def grey(*columns: int) -> np.ndarray:
    """Two equal rows of grey pixels."""
    return np.array(columns, dtype=np.uint8)[None, :, None].repeat(2, axis=0).repeat(3, axis=2)


@pytest.mark.parametrize(
    ("columns", "width", "expected"),
    [
        # centres at -0.25, 0.25, 0.75 and 1.25 of the old pixels; those outside take the border
        ((0, 100), 4, [0, 25, 75, 100]),
        # centres at 0.25, 1.75 and 3.25: a quarter of the second of each pair, or three
        ((0, 100, 200, 40, 80), 3, [33, 200, 67]),
        # centres at 1.5 and 5.5: pixels 0, 3, 4 and 7 have no share, as there is no antialias
        ((255, 10, 20, 255, 255, 30, 40, 255), 2, [15, 35]),
        ((7,), 3, [7, 7, 7]),
        ((1, 2, 3), 3, [1, 2, 3]),
    ],
)
def test_resizing_as_tensorflow_mixes_the_neighbours_of_each_centre(
    columns: tuple[int, ...], width: int, expected: list[int]
) -> None:
    wide = without_antialias(grey(*columns), (width, 2))
    assert wide.shape == (2, width, 3)
    assert wide[0, :, 0].tolist() == wide[1, :, 2].tolist() == expected
    high = without_antialias(grey(*columns).swapaxes(0, 1), (2, width))
    assert high[:, 1, 1].tolist() == expected


@pytest.mark.parametrize("size", [(24, 24), (17, 40), (64, 9), (48, 48)])
def test_resizing_as_tensorflow_agrees_with_torch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
    pixels = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(),
        size=size[::-1],
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )[0].permute(1, 2, 0)
    found = without_antialias(pixels, size).astype(np.float64)
    assert np.abs(found - reference.numpy()).max() <= 0.501  # rounded to whole grey levels
    if size == (24, 24):
        fitted = fit(Image.fromarray(pixels), geometry(24, interpolation="tf_bilinear"))
        assert np.array_equal(fitted, found)
        pillow = fit(Image.fromarray(pixels), geometry(24, interpolation="bilinear"))
        assert np.abs(pillow - found).mean() > 5  # which antialiases


def test_what_resizes_is_named_with_its_version() -> None:
    assert backend("bicubic") == f"pillow {PIL.__version__}"
    assert backend("tf_bilinear") == f"numpy {np.__version__}"


def test_a_square_of_the_right_size_is_untouched() -> None:
    generator = np.random.default_rng(0)
    original = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    for resize in ("squash", "crop"):
        assert np.array_equal(fit(Image.fromarray(original), geometry(6, resize=resize)), original)


def test_a_whole_picture_keeps_its_size_beside_its_square() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8))
    cropped = geometry(4, resize="crop", crop_fraction=0.5, train_size=6)
    whole = cropped.of_training
    assert (whole.size, whole.resize, whole.crop_fraction) == (6, "whole", 1.0)
    assert geometry(4).of_training == geometry(4)
    rows = np.zeros(2, dtype=row_type(6, whole=True))
    rows[1] = row(image, whole)
    assert rows["size"].tolist() == [[0, 0], [9, 4]]
    assert np.array_equal(rows["pixels"][1], np.asarray(image.resize((6, 6), Image.BICUBIC)))
    assert rows["pixels"].shape == (2, 6, 6, 3)
    plain = np.zeros(2, dtype=row_type(4, whole=False))
    plain[1] = row(image, cropped)
    assert plain.shape == (2, 4, 4, 3) and plain.dtype == np.uint8
    assert np.array_equal(plain[1], fit(image, cropped))
    assert len({geometry_key(g) for g in (whole, geometry(6), geometry(4), cropped)}) == 4


def test_whole_pictures_are_squashed_for_checks() -> None:
    squares = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    small = squashed(squares, geometry(4, interpolation="bilinear"))
    expected = [np.asarray(Image.fromarray(s).resize((4, 4), Image.BILINEAR)) for s in squares]
    assert np.array_equal(small, np.stack(expected))
    assert squashed(squares, geometry(6)) is squares


def test_unknown_geometry_is_refused_with_the_known_names() -> None:
    with pytest.raises(
        UnknownName, match=r"Unknown interpolation 'bicubik'\. Did you mean: bicubic"
    ):
        check_geometry(geometry(8, interpolation="bicubik"))
    with pytest.raises(UnknownName, match=r"Unknown resize 'squish'\. Did you mean: squash"):
        check_geometry(geometry(8, resize="squish"))
    with pytest.raises(ConfigError, match="Image size 0 is not positive"):
        check_geometry(geometry(0))
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        check_geometry(geometry(8, crop_fraction=1.5))
