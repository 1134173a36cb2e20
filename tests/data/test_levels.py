"""Wide pictures: whole numbers of any depth keep their grey levels, by one rule for a data set."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from peftbench import data
from peftbench.data import images
from peftbench.data.images import FULL, Levels
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Phase, Preprocessing

SMALL = Preprocessing(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("lowest", "highest", "black", "white"),
    [
        (0, 200, 0, 255),
        (0, 255, 0, 255),
        (3, 256, 0, 1023),
        (0, 4000, 0, 4095),
        (0, 9000, 0, 16383),
        (0, 16384, 0, 65535),
        (0, 65535, 0, 65535),
        (0, 70_000, 0, 131_071),
        (-1024, 3071, -1024, 3071),
        (-5, -5, -5, -4),
        (0, 0, 0, 255),
    ],
)
def test_white_is_what_the_bits_in_use_can_hold(
    lowest: int, highest: int, black: int, white: int
) -> None:
    assert Levels.of(lowest, highest) == Levels(black, white)


def test_sixteen_bits_in_full_are_divided_by_257() -> None:
    every = np.arange(65536, dtype=np.int64)
    assert np.array_equal(FULL.scaled(every), np.round(every / 257.0).astype(np.uint8))


def test_the_ends_of_every_range_are_black_and_white() -> None:
    for levels in (Levels(0, 4095), Levels(-1000, 1040), Levels(0, 255)):
        ends = np.array([levels.black - 9, levels.black, levels.white, levels.white + 9])
        assert levels.scaled(ends).tolist() == [0, 0, 255, 255]
    assert Levels(0, 255).scaled(np.arange(256)).tolist() == list(range(256))


def write(root: Path, ramp: np.ndarray, suffix: str = ".png", **options: object) -> None:
    """Two classes of six pictures each; the last picture of the second holds `ramp`."""
    for name, share in (("a", 2), ("b", 1)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            values = np.where(ramp > 20, ramp // share - number, ramp // share).astype(ramp.dtype)
            picture = ramp if (name, number) == ("b", 5) else values
            Image.fromarray(picture).save(root / name / f"{number}{suffix}", **options)


Read = tuple[data.Splits, dict[str, list[int]]]


def read(root: Path) -> tuple[list[str], Read]:
    """What is told before training, the splits, and the first row of each picture's levels."""
    told: list[str] = []
    # pictures of a ramp are nearly copies of one another
    spec = DatasetSpec("folder", reader="folder", root=str(root), group_copies=False)
    spec = data.identify(spec, lambda listing: told.extend(data.describe(listing)))
    splits = data.load(spec, Phase.FINAL, SMALL)
    names = (*splits.train.names, *data.READERS["folder"](spec).test.names)
    report = splits.report.open_once()  # type: ignore[union-attr]
    rows = np.concatenate([splits.train.images, report.images])[:, 0, :, 0].tolist()
    return told, (splits, dict(zip(names, rows, strict=True)))


def picture_of(found: Read, name: str) -> list[int]:
    return found[1][name]


def ramp(dtype: str, *values: int) -> np.ndarray:
    return np.tile(np.array(values, dtype=dtype), (4, 1))


@pytest.mark.parametrize(
    ("dtype", "suffix", "values", "expected", "told"),
    [
        ("uint16", ".png", (0, 273, 1365, 4095), [0, 17, 85, 255], "taken as 12 bits"),
        ("uint16", ".png", (0, 7, 90, 255), [0, 7, 90, 255], "taken as 8 bits"),
        ("uint16", ".tif", (0, 341, 682, 1023), [0, 85, 170, 255], "taken as 10 bits"),
        ("uint16", ".tiff", (0, 5461, 10922, 16383), [0, 85, 170, 255], "taken as 14 bits"),
        ("int32", ".tif", (0, 7, 90, 255), [0, 7, 90, 255], "taken as 8 bits"),
        ("int32", ".tif", (0, 257, 514, 65535), [0, 1, 2, 255], None),
        ("int32", ".tif", (-1024, -973, 3020, 3071), [0, 3, 252, 255], "-1,024 becomes black"),
        ("uint16", ".png", (0, 257, 514, 65535), [0, 1, 2, 255], None),
        (">u2", ".tif", (0, 273, 1365, 4095), [0, 17, 85, 255], "taken as 12 bits"),
        ("uint16", ".pgm", (0, 273, 1365, 4095), [0, 17, 85, 255], "taken as 12 bits"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_numbers_of_any_depth_keep_their_levels(
    tmp_path: Path, dtype: str, suffix: str, values, expected, told
) -> None:
    write(tmp_path / "set", ramp(dtype, *values), suffix)
    lines, splits = read(tmp_path / "set")
    wide = [line for line in lines if "grey pictures" in line]
    shown = picture_of(splits, f"b/5{suffix}")
    assert shown == expected
    if told is None:
        assert wide == []
    else:
        assert len(wide) == 1 and wide[0].startswith("12 grey pictures of 16 or 32 bits")
        assert told in wide[0]
        assert wide[0] in splits[0].notes


def test_one_rule_holds_for_all_pictures_of_a_data_set(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "set"
    write(root, ramp("uint16", 0, 16, 160, 240))
    Image.fromarray(ramp("uint16", 0, 0, 0, 4080)).save(root / "b" / "5.png")
    _, splits = read(root)
    # a picture that uses 8 bits alone stays dark beside one that uses 12: 240 of 4,095
    assert picture_of(splits, "b/0.png")[-1] == round(239 / 4095 * 255)
    assert picture_of(splits, "b/5.png")[-1] == 254


def test_ordinary_pictures_beside_wide_ones_are_untouched(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "set"
    write(root, ramp("uint16", 0, 16, 160, 4000))
    Image.fromarray(ramp("uint8", 1, 2, 3, 4)).save(root / "a" / "0.png")
    lines, splits = read(root)
    assert picture_of(splits, "a/0.png") == [1, 2, 3, 4]
    assert any(line.startswith("11 grey pictures") for line in lines)


def test_what_is_known_of_the_levels_is_not_looked_for_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "set", ramp("uint16", 0, 16, 160, 4000))
    _, first = read(tmp_path / "set")
    monkeypatch.setattr(images, "extent", None)
    lines, second = read(tmp_path / "set")
    assert np.array_equal(first[0].train.images, second[0].train.images)
    assert any("12 bits" in line for line in lines)


def colours(high: int) -> bytes:
    """A PNG of 4 x 4 with 16 bits a channel, all of them `high`."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = b"".join(b"\0" + struct.pack(">H", high) * 12 for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + packed + chunk(b"IEND", b"")


def test_dark_colours_of_16_bits_are_refused_and_full_ones_read(
    tmp_path: Path, cache: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(colours(4095 - number))
    with pytest.raises(DataError, match="12 colour pictures of 16 bits a channel use 14 of them"):
        read(tmp_path / "set")
    (tmp_path / "set" / "a" / "0.png").write_bytes(colours(0x8000))
    _, splits = read(tmp_path / "set")
    assert picture_of(splits, "a/0.png") == [0x80] * 4


def tagged(pixels: np.ndarray, **tags: int) -> io.BytesIO:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"bits": 258, "form": 339}[name]] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", tiffinfo=info)
    buffer.seek(0)
    return buffer


def test_32_bits_without_a_sign_are_read_as_such() -> None:
    buffer = tagged(ramp("int32", 0, 1, 2, -1))
    content = bytearray(buffer.getvalue())
    with Image.open(io.BytesIO(bytes(content))) as opened:
        assert opened.tag_v2[339] == (2,) or opened.tag_v2[339] == 2
    place = content.index(struct.pack("<HHIHH", 339, 3, 1, 2, 0))
    content[place : place + 12] = struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    found = images.extent(io.BytesIO(bytes(content)), "case")
    assert found is not None and (found.lowest, found.highest) == (0, 2**32 - 1)


def test_8_bits_with_a_sign_keep_their_order(tmp_path: Path, cache: Path) -> None:
    values = np.array([-100, -1, 0, 104], dtype=np.int8)
    content = tagged(np.tile(values.view(np.uint8), (4, 1)), form=2).getvalue()
    found = images.extent(io.BytesIO(content), "case")
    assert found is not None and (found.lowest, found.highest) == (-100, 104)
    shown = np.asarray(images.decode(io.BytesIO(content), "case", Levels(-100, 104)))
    assert shown[0, :, 0].tolist() == [0, 124, 125, 255]  # 123.75 and 125
    shown = np.asarray(images.decode(io.BytesIO(content), "case"))
    assert shown[0, :, 0].tolist() == [28, 127, 128, 232]  # where nothing is known of the others
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "set" / name / f"{number}.tif").write_bytes(content)
    lines, splits = read(tmp_path / "set")
    told = "12 grey pictures with signs hold the numbers -100 to 104: -100 becomes black and"
    assert f"{told} 104 white." in lines
    assert picture_of(splits, "a/0.tif") == [0, 124, 125, 255]


def test_a_pgm_is_scaled_by_the_white_that_it_states() -> None:
    content = b"P5 4 1 4095\n" + struct.pack(">4H", 0, 273, 1365, 4095)
    assert images.extent(io.BytesIO(content), "case") is None
    for levels in (FULL, Levels(0, 255)):
        shown = np.asarray(images.decode(io.BytesIO(content), "case", levels))
        assert shown[0, :, 0].tolist() == [0, 17, 85, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_floating_point_pictures_are_refused_whatever_they_hold(value: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, dtype=np.float32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match="floating-point pixels have no agreed range"):
        images.decode(buffer, "case")
