"""Promises of the search for copies: saved again, scaled, but never merely alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from peftbench.data import copies, images
from peftbench.data.copies import FLAT, NEAR, SIDE, groups, near_copies, near_pairs
from peftbench.data.files import FilePictures
from peftbench.data.listing import SplitList


def picture(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A few coloured areas, as photographs have, with fine noise."""
    generator = np.random.default_rng(seed)
    areas = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    whole = Image.fromarray(areas).resize((width, height), Image.Resampling.BICUBIC)
    noise = generator.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(whole) + noise).clip(0, 255).astype(np.uint8))


def listed(root: Path) -> tuple[FilePictures, SplitList]:
    names = tuple(sorted(path.name for path in root.iterdir()))
    pictures = FilePictures(root)
    return pictures, SplitList(names, (0,) * len(names), pictures.digests(names))


def together(root: Path) -> set[frozenset[str]]:
    """Names of the pictures of each group of several."""
    pictures, part = listed(root)
    number = groups(part, near_copies(pictures, part, str(root)))
    members: dict[int, set[str]] = {}
    for name, group in zip(part.names, number.tolist(), strict=True):
        members.setdefault(group, set()).add(name)
    return {frozenset(names) for names in members.values() if len(names) > 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve pictures, each another one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(12):
        picture(seed).save(folder / f"{seed:02}.png")
    return folder


def test_pictures_that_differ_are_no_copies(root: Path) -> None:
    assert together(root) == set()


def test_pictures_that_were_saved_again_or_scaled_are_copies(root: Path) -> None:
    first = picture(0)
    first.save(root / "0 saved.jpg", quality=85)
    first.resize((80, 60), Image.Resampling.LANCZOS).save(root / "0 small.png")
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "taken from elsewhere")
    first.save(root / "0 told.png", pnginfo=told)
    (root / "1 again.png").write_bytes((root / "01.png").read_bytes())
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned right by 90 degrees
    sideways = picture(2).transpose(Image.Transpose.ROTATE_90)
    sideways.save(root / "2 turned.jpg", quality=95, exif=turned)
    assert together(root) == {
        frozenset(("00.png", "0 saved.jpg", "0 small.png", "0 told.png")),
        frozenset(("01.png", "1 again.png")),
        frozenset(("02.png", "2 turned.jpg")),
    }


def test_a_large_jpeg_and_its_lossless_copy_are_found_though_not_every_pixel_is_read(
    tmp_path: Path,
) -> None:
    picture(3, 2000, 1500).save(tmp_path / "a.jpg", quality=95)
    images.decode(tmp_path / "a.jpg", "a").save(tmp_path / "b.png")
    small = images.decode(tmp_path / "a.jpg", "a", least=96)
    assert min(small.size) >= 96 and small.size < (2000, 1500)
    assert together(tmp_path) == {frozenset(("a.jpg", "b.png"))}


def test_blank_pictures_are_copies_only_byte_for_byte(tmp_path: Path) -> None:
    for name, grey in (("a", 100), ("b", 101), ("c", 100 + FLAT - 1)):
        Image.new("L", (40, 40), grey).save(tmp_path / f"{name}.png")
    shaded = np.linspace(100, 100 + FLAT - 1, 40)[None].repeat(40, axis=0).astype(np.uint8)
    Image.fromarray(shaded).save(tmp_path / "d.png")
    Image.fromarray(shaded + 1).save(tmp_path / "e.png")
    (tmp_path / "f.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert together(tmp_path) == {frozenset(("a.png", "f.png"))}


def test_broken_pictures_are_left_to_those_who_decode_them(root: Path) -> None:
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (root / "1 again.png").write_bytes((root / "01.png").read_bytes())
    assert together(root) == {frozenset(("01.png", "1 again.png"))}


def test_what_was_found_is_not_looked_for_again(root: Path, monkeypatch) -> None:
    picture(0).save(root / "0 saved.jpg", quality=85)
    first = together(root)
    monkeypatch.setattr(copies, "_small_versions", lambda *args: pytest.fail("decoded again"))
    assert together(root) == first != set()


def test_of_very_many_pictures_the_bytes_alone_are_compared(root: Path, monkeypatch) -> None:
    picture(0).save(root / "0 saved.jpg", quality=85)
    (root / "1 again.png").write_bytes((root / "01.png").read_bytes())
    monkeypatch.setattr(copies, "MOST", 12)
    assert together(root) == {frozenset(("01.png", "1 again.png"))}


def test_near_pairs_are_those_that_nowhere_differ_by_more() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 200, (40, SIDE, SIDE, 3)).astype(np.int16)
    base[20:30] = base[:10] + generator.integers(-NEAR, NEAR + 1, (10, SIDE, SIDE, 3))
    base[30] = base[0]
    base[30, 3, 4, 1] += NEAR + 1  # one pixel too far
    base[31] = base[1]
    base[31, 3, 4, 1] += NEAR
    base[32:34] = generator.integers(90, 90 + FLAT - 1, (2, SIDE, SIDE, 3))
    base[33] = base[32]  # too flat to tell
    expected = [
        (i, j)
        for i in range(32)
        for j in range(i + 1, 40)
        if j not in (32, 33) and abs(base[i] - base[j]).max() <= NEAR
    ]
    assert near_pairs(base.clip(0, 255)) == expected
    assert len(expected) == 12  # ten, the one that is just near enough, and that with (21, 31)


def test_a_group_joins_bytes_near_copies_and_values_of_a_column() -> None:
    part = SplitList(tuple("abcdefg"), (0,) * 7, ("1", "1", "2", "3", "4", "5", "6"))
    number = groups(part, [("2", "3")], ("p", "q", "q", "r", "r", "s", "t"))
    # a and b have equal bytes; b and c share a value; c and d are near; d and e share a value
    assert number.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert groups(part, []).tolist() == [0, 0, 1, 2, 3, 4, 5]
