"""Promises of decoding and resizing, on cases that can be worked out by hand."""

from __future__ import annotations

import io
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from peftbench.data.images import (
    backend,
    check_geometry,
    decode,
    geometry_key,
    inspect,
    row,
    row_type,
    squashed,
    to_square,
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
    squeezed = to_square(image, geometry(2, interpolation="box"))
    # 4 x 2 to 2 x 2: pairs of columns average to 50 and 50, rows stay.
    assert squeezed.tolist() == [[[50] * 3, [50] * 3]] * 2


def test_squashing_ignores_the_ratio_and_cropping_keeps_it() -> None:
    ramp = np.arange(8, dtype=np.uint8) * 10
    wide = Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2).repeat(4, axis=0))
    squeezed = to_square(wide, geometry(4, interpolation="box"))
    assert squeezed[0, :, 0].tolist() == [5, 25, 45, 65]
    # The short side is already 4, so the crop takes columns 2..5 unchanged.
    cropped = to_square(wide, geometry(4, resize="crop", interpolation="box"))
    assert cropped[0, :, 0].tolist() == [20, 30, 40, 50]


def test_the_crop_fraction_is_the_part_of_the_short_side_that_stays() -> None:
    ramp = np.arange(8, dtype=np.uint8) * 10
    square = Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2).repeat(8, axis=0))
    # 4 / 0.5 = 8: nothing is resized, the middle 4 of 8 columns stay.
    cropped = to_square(square, geometry(4, resize="crop", crop_fraction=0.5))
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
    ours = to_square(image, geometry(24, resize="crop", crop_fraction=fraction))
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
        fitted = to_square(Image.fromarray(pixels), geometry(24, interpolation="tf_bilinear"))
        assert np.array_equal(fitted, found)
        pillow = to_square(Image.fromarray(pixels), geometry(24, interpolation="bilinear"))
        assert np.abs(pillow - found).mean() > 5  # which antialiases


def test_what_resizes_is_named_with_its_version() -> None:
    assert backend("bicubic") == f"pillow {PIL.__version__}"
    assert backend("tf_bilinear") == f"numpy {np.__version__}"


def test_a_square_of_the_right_size_is_untouched() -> None:
    generator = np.random.default_rng(0)
    original = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    for resize in ("squash", "crop"):
        assert np.array_equal(
            to_square(Image.fromarray(original), geometry(6, resize=resize)), original
        )


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
    assert np.array_equal(plain[1], to_square(image, cropped))
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


def turned() -> Image.Image:
    image = Image.new("RGB", (8, 16), (10, 20, 30))
    image.paste((200, 100, 50), (0, 0, 8, 8))
    return image


def block(*entries: tuple[int, int, int, bytes], more: int = 0) -> bytes:
    """An EXIF block of entries (tag, type, count, 4 bytes), which may announce `more` entries."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) + more)
    return head + body + b"\0\0\0\0" * (not more)


ORIENTATION = 0x0112
DAMAGED = {
    "no block": b"Exif\0\0" + b"\xff" * 40,
    "empty": b"Exif\0\0",
    "cut short": block((ORIENTATION, 3, 1, b"\x06\0\0\0"))[:19],
    "more entries than there are": block(more=60_000),
    "no such orientation": block((ORIENTATION, 3, 1, b"\x09\0\0\0")),
    "orientation 0": block((ORIENTATION, 3, 1, b"\0\0\0\0")),
    "orientation in words": block((ORIENTATION, 2, 4, b"top\0")),
    "an orientation that divides by 0": block((ORIENTATION, 5, 1, b"\xff\xff\xff\0")),
    "orientation elsewhere": block((ORIENTATION, 3, 5_000_000, b"\xff\xff\xff\x7f")),
    "a directory outside": block((0x8769, 4, 1, b"\xff\xff\xff\x7f")),
    "a directory in itself": block((0x8769, 4, 1, b"\x08\0\0\0"), (0x8825, 4, 1, b"\x08\0\0\0")),
    "a type that is none": block((ORIENTATION, 77, 1, b"\x06\0\0\0")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", list(DAMAGED))
def test_a_damaged_exif_block_does_not_refuse_a_good_picture(kind: str, damage: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = pixels(turned(), kind, **options)
    assert pixels(turned(), kind, exif=DAMAGED[damage], **options) == plain


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])
@pytest.mark.parametrize("offset", [0, 7, 2**31 - 1, 2**32 - 1])
def test_a_tiff_whose_directories_lie_elsewhere_is_read(tag: int, offset: int) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[tag] = offset
    info.tagtype[tag] = 4
    assert pixels(turned(), "TIFF", tiffinfo=info) == np.asarray(turned()).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_orientation_is_turned_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = turned()
    image.putpixel((1, 2), (1, 2, 3))
    with Image.open(as_file(image, kind, exif=exif)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)).tolist()
    assert pixels(image, kind, exif=exif) == expected


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(started) print\nshowpage\n"
)
OTHERS = {
    "PostScript": POSTSCRIPT,
    "PostScript behind a header": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 90) + POSTSCRIPT,
    "X bitmap": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {\n0x00 };\n",
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_only_formats_that_are_read_are_tried(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(os, "system", refuse)
    path = tmp_path / "picture.png"
    path.write_bytes(OTHERS[kind])
    for source in (path, io.BytesIO(OTHERS[kind])):
        with pytest.raises(DataError, match=r"Cannot decode image case: it is none of .*PNG, "):
            decode(source, "case")


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(DataError, match="it is no plain file but a named pipe"):
        decode(tmp_path / "p.png", "case")


def test_very_large_pictures_are_refused_with_the_name_of_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.delenv("PEFTBENCH_MAX_PIXELS", raising=False)
    image = Image.new("RGB", (16, 8), (1, 2, 3))
    message = r"it has 128 pixels, and 100 are allowed.* set PEFTBENCH_MAX_PIXELS=128; otherwise"
    with pytest.raises(DataError, match=message):
        decode(as_file(image), "case")
    monkeypatch.setenv("PEFTBENCH_MAX_PIXELS", "128")
    assert decode(as_file(image), "case").size == (16, 8)
    monkeypatch.setenv("PEFTBENCH_MAX_PIXELS", "127")
    with pytest.raises(DataError, match="it has 128 pixels, and 127 are allowed"):
        decode(as_file(image), "case")
    monkeypatch.setenv("PEFTBENCH_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="PEFTBENCH_MAX_PIXELS=many is no number of pixels"):
        decode(as_file(image), "case")


def claiming(side: int, size: int) -> io.BytesIO:
    """A BMP of `size` bytes whose header says that it is a square of that side."""
    content = bytearray(as_file(Image.new("L", (4, 4)), "BMP").getvalue().ljust(size, b"\0"))
    content[18:26] = struct.pack("<ii", side, side)
    return io.BytesIO(bytes(content))


def test_a_small_file_cannot_claim_a_large_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFTBENCH_MAX_PIXELS", raising=False)
    message = r"it has 81,000,000 pixels, more than 10,000 for each byte, .*MAX_PIXELS=81000000;"
    with pytest.raises(DataError, match=message):
        decode(claiming(9000, 8000), "case")
    for side, size in ((8000, 2000), (9000, 8200)):  # these are cut short, no more than that
        with pytest.raises(DataError, match="truncated"):
            decode(claiming(side, size), "case")


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("1", 1, "PNG", [255, 255, 255]),
        ("L", 90, "BMP", [90, 90, 90]),
        ("LA", (100, 255), "PNG", [100, 100, 100]),
        ("LA", (100, 0), "WEBP", [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), "TIFF", [204, 204, 204]),
        ("CMYK", (0, 0, 0, 255), "TIFF", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "JPEG", [255, 255, 255]),
        ("YCbCr", (90, 128, 128), "TIFF", [90, 90, 90]),
        ("LAB", (128, 128, 128), "TIFF", [119, 119, 119]),  # L* of 50
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, kind: str, expected: list[int]) -> None:
    buffer = as_file(Image.new(mode, (8, 8), colour), kind)  # type: ignore[arg-type]
    found = np.asarray(decode(buffer, "case"))
    assert np.abs(found[4, 4].astype(int) - expected).max() <= 1


def test_the_first_of_several_pictures_is_read() -> None:
    pages = [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 90)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    picture, kind = inspect(buffer, "case")
    assert np.unique(np.asarray(picture)).tolist() == [10]
    assert kind == "hold several pictures, of which the first is read"


@pytest.mark.parametrize("kind", ["MPO", "GIF", "BMP", "WEBP", "PPM"])
def test_a_picture_under_the_ending_of_another_format_is_read(tmp_path: Path, kind: str) -> None:
    shades = np.tile(np.array([[10, 90], [170, 250]], dtype=np.uint8).repeat(8, 0).repeat(8, 1), 1)
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "MPO":
        options = {"save_all": True, "append_images": [Image.new("RGB", (16, 16))], "quality": 100}
    Image.fromarray(shades).convert("RGB").save(tmp_path / "a.jpg", kind, **options)
    shown = np.asarray(decode(tmp_path / "a.jpg", "case"))
    assert np.abs(shown[..., 0].astype(int) - shades).max() <= (4 if kind == "MPO" else 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"%PDF-1.4\n1 0 obj",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        b"/* XPM */\nstatic char *a[] = {",
        b"BLP2" + bytes(200),
        b"RIFF\x24\0\0\0AVI LIST" + bytes(60),
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_ending(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot decode image case: it is none of .*JPEG, PNG"):
        decode(tmp_path / "a.jpg", "case")


def test_a_broken_colour_profile_does_not_refuse_a_good_picture() -> None:
    for mode in ("CMYK", "RGB", "L"):
        white = Image.new(mode, (8, 8), {"CMYK": (0, 0, 0, 0), "RGB": (255,) * 3, "L": 255}[mode])
        assert pixels(white, "JPEG", icc_profile=b"no profile" * 9)[0][0] == [255, 255, 255]
