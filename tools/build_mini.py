"""Builds the `mini` suite that ships inside the package; running it twice gives identical files.

Needs scikit-learn and the Debian package `openclipart-png`:

    python tools/build_mini.py [--clip-art /usr/share/openclipart/png] [--out DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from peftbench.data import sprites

SUITE = "mini"
SUITE_VERSION = 1
SEED = 20240
TRAIN_PER_CLASS, VAL_PER_CLASS = 20, 5
CLIP_ART_TEST_PER_CLASS = 75  # at most: four folders hold fewer distinct pictures
TEST_IMAGES = 1000

CLIP_ART_ROOT = Path("/usr/share/openclipart/png")
CLIP_ART_CLASSES = {
    "animals": ("animals",),
    "buildings": ("buildings",),
    "flags": ("signs_and_symbols/flags",),
    "food": ("food",),
    "geography": ("geography",),
    "hardware": ("computer/hardware", "electronics"),
    "office": ("office",),
    "people": ("people",),
    "plants": ("plants",),
    "recreation": ("recreation",),
    "tools": ("tools",),
    "transportation": ("transportation",),
}
# Playing cards would be a third of `recreation` and differ by little; the others are not fit for a
# set that everybody meets first.
CLIP_ART_LEFT_OUT = ("/games/cards/", "/tools/weapons/", "/pantyhose/", "stripper", "sexy")
CLIP_ART_SIDE = 64
CLIP_ART_QUALITY = 80

MAX_PIXELS = 4_000_000  # some drawings were rasterised at up to 600 megapixels; reading is slow

HASH_SIDE = 16
HASH_DISTANCE = 12  # of 480 bits; pictures this close are one drawing saved twice

CLIP_ART_NOTICE = """\
The images come from the Open Clip Art Library, release 0.18, as packaged by Debian in
`openclipart-png` (https://packages.debian.org/openclipart-png, from http://www.openclipart.org).

Debian's copyright file for that package states the licence of every image as the Creative Commons
"Public Domain Dedication" (copyright-only dedication under United States law, or public domain
certification): whoever contributed a work either certifies that it is in the public domain of the
country it was published in, or dedicates their copyright in it to the public domain, so that it may
be reproduced, distributed, used, modified and built upon by anyone for any purpose, commercial or
not. The package names no further terms. The authors are not obliged to be named; the file names,
kept in `manifest.json`, carry most of their names, with thanks.

Changes made here: transparency flattened on white, padded to a square with white, reduced to
64 x 64 pixels, stored as WebP of quality 80, grouped by the folder they were filed under.
"""

DIGITS_NOTICE = """\
The images come from "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed under the Creative
Commons Attribution 4.0 International licence (https://creativecommons.org/licenses/by/4.0/). They
are drawn from the 1,797 scans of its test part as distributed by scikit-learn
(`sklearn.datasets.load_digits`).

Changes made here: 1,250 of the scans were chosen and split; the counts 0..16 of each 8 x 8 pixel
were mapped to grey levels 0..255.
"""

SPRITES_NOTICE = """\
The images are drawn by `peftbench/data/sprites.py` and carry the licence of this project. They use
the generating factors of dSprites (Matthey, Higgins, Hassabis, Lerchner, 2017,
https://github.com/google-deepmind/dsprites-dataset), whose images they do not contain: they are
dSprites-like, not dSprites, and numbers measured on them are not comparable with dSprites numbers.
"""


@dataclass(frozen=True)
class Entry:
    """One image of a task: where it is from, what it is, and its stored bytes."""

    name: str
    label: int
    stored: bytes


@dataclass(frozen=True)
class Task:
    """A finished task, ready to be written."""

    name: str
    title: str
    group: str
    classes: tuple[str, ...]
    encoding: Literal["webp", "grey", "bits"]
    side: int
    licence: str
    source: str
    notice: str
    splits: dict[str, list[Entry]]
    factors: np.ndarray | None = None  # (N, 5) uint8, in the order of the splits


def flatten_to_square(image: Image.Image, side: int, background: int = 255) -> Image.Image:
    """The image on an opaque square background, centred and reduced to `side` pixels."""
    layer = image.convert("RGBA")
    scale = side / max(layer.size)
    size = tuple(max(1, round(length * scale)) for length in layer.size)
    # Premultiplied resampling: the colour hidden under transparent pixels must not bleed in.
    layer = layer.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (background, background, background, 255))
    canvas.alpha_composite(layer, ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas.convert("RGB")


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """Signs of the horizontal and vertical grey gradients of a 16 x 16 thumbnail: (480,) bool."""
    grey_image = Image.fromarray(pixels).convert("L")
    thumbnail = grey_image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(thumbnail, dtype=np.int16)
    # A dead zone of 4 grey levels keeps flat areas, which are most of a drawing, at zero.
    across = (np.diff(grey, axis=1) > 4).ravel()
    down = (np.diff(grey, axis=0) > 4).ravel()
    return np.concatenate([across, down])


def is_near(hashes: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Which rows of `hashes` (N, 480) are within the duplicate distance of `one` (480,)."""
    return np.count_nonzero(hashes != one, axis=1) <= HASH_DISTANCE


def clip_art_files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """Paths of the pictures under `folders`, bytewise sorted; links between folders are skipped."""
    found = [path for folder in folders for path in (root / folder).rglob("*.png")]
    paths = [path for path in found if path.is_file() and not path.is_symlink()]
    kept = [p for p in paths if not any(part in p.as_posix() for part in CLIP_ART_LEFT_OUT)]
    return sorted(kept, key=lambda p: p.relative_to(root).as_posix().encode())


def read_clip_art(path: Path, side: int) -> np.ndarray | None:
    """The picture as (side, side, 3) uint8 on white, or None when it is blank or far too large."""
    Image.MAX_IMAGE_PIXELS = None  # the size is checked here instead
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            return None
        pixels = np.asarray(flatten_to_square(image, side))
    return None if pixels.std() < 2.0 else pixels


def distinct_clip_art(root: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Per class the (name, 64 x 64 pixels) of pictures that have no near copy anywhere before them.

    A picture whose pixels are filed under two classes is dropped from both.
    """
    read: dict[str, list[tuple[str, np.ndarray]]] = {}
    owners: dict[bytes, set[str]] = {}
    for label, folders in CLIP_ART_CLASSES.items():
        read[label] = []
        for path in clip_art_files(root, folders):
            pixels = read_clip_art(path, CLIP_ART_SIDE)
            if pixels is None:
                continue
            read[label].append((path.relative_to(root).as_posix(), pixels))
            owners.setdefault(pixels.tobytes(), set()).add(label)
    seen = np.zeros((0, 2 * HASH_SIDE * (HASH_SIDE - 1)), dtype=bool)
    distinct: dict[str, list[tuple[str, np.ndarray]]] = {}
    for label, pictures in read.items():
        distinct[label] = []
        for name, pixels in pictures:
            if len(owners[pixels.tobytes()]) > 1:
                continue
            code = perceptual_hash(pixels)
            if not is_near(seen, code).any():
                seen = np.vstack([seen, code])
                distinct[label].append((name, pixels))
    return distinct


def encode_webp(pixels: np.ndarray) -> bytes:
    """`pixels` as WebP bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=CLIP_ART_QUALITY, method=6)
    return buffer.getvalue()


def split_by_class(
    by_class: list[list[Entry]], test_per_class: list[int], generator: np.random.Generator
) -> dict[str, list[Entry]]:
    """Seeded train, val and test lists; each split keeps the order of classes."""
    splits: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    first_test = TRAIN_PER_CLASS + VAL_PER_CLASS
    for entries, num_test in zip(by_class, test_per_class, strict=True):
        order = [entries[i] for i in generator.permutation(len(entries))]
        splits["train"] += order[:TRAIN_PER_CLASS]
        splits["val"] += order[TRAIN_PER_CLASS:first_test]
        splits["test"] += order[first_test : first_test + num_test]
    return splits


def build_clip_art(root: Path) -> Task:
    """The natural-group task: twelve folders of clip art."""
    distinct = distinct_clip_art(root)
    by_class = [
        [Entry(name, label, encode_webp(pixels)) for name, pixels in pictures]
        for label, pictures in enumerate(distinct.values())
    ]
    generator = np.random.default_rng(SEED)
    splits = split_by_class(by_class, [CLIP_ART_TEST_PER_CLASS] * len(by_class), generator)
    return Task(
        name="mini/clipart12",
        title="Clip art of twelve subjects",
        group="natural",
        classes=tuple(CLIP_ART_CLASSES),
        encoding="webp",
        side=CLIP_ART_SIDE,
        licence="Public domain (Creative Commons Public Domain Dedication)",
        source="Open Clip Art Library 0.18, Debian package openclipart-png; names are its paths",
        notice=CLIP_ART_NOTICE,
        splits=splits,
    )


def build_digits() -> Task:
    """The specialized-group task: scans of handwritten digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)
    by_class = [
        [
            Entry(f"digits/{row:04d}", label, grey[row].tobytes())
            for row in np.flatnonzero(digits.target == label)
        ]
        for label in range(10)
    ]
    splits = split_by_class(by_class, even_shares(TEST_IMAGES, 10), np.random.default_rng(SEED + 1))
    return Task(
        name="mini/digits",
        title="Handwritten digits, 8 x 8 scans",
        group="specialized",
        classes=tuple(str(label) for label in range(10)),
        encoding="grey",
        side=8,
        licence="CC-BY-4.0",
        source="UCI Optical Recognition of Handwritten Digits, as in scikit-learn load_digits; "
        "names are its row numbers",
        notice=DIGITS_NOTICE,
        splits=splits,
    )


def build_sprites(target: Literal["location", "orientation"], seed: int) -> Task:
    """A structured-group task: where a dSprites-like shape is, or how it is turned."""
    generator = np.random.default_rng(seed)
    test_per_class = even_shares(TEST_IMAGES, sprites.NUM_BINS)
    per_class = tuple(TRAIN_PER_CLASS + VAL_PER_CLASS + count for count in test_per_class)
    drawn = sprites.sample_factors(target, per_class, generator)
    by_name = {factors.name: factors for group in drawn for factors in group}
    by_class = [
        [Entry(f.name, label, np.packbits(sprites.draw(f) > 0).tobytes()) for f in group]
        for label, group in enumerate(drawn)
    ]
    splits = split_by_class(by_class, test_per_class, generator)
    ordered = [by_name[entry.name] for entries in splits.values() for entry in entries]
    factors = np.array([astuple(one) for one in ordered], dtype=np.uint8)
    what = "x position" if target == "location" else "orientation"
    return Task(
        name=f"mini/sprites_{target}",
        title=f"dSprites-like shapes, {what} in 16 bins",
        group="structured",
        classes=tuple(f"{what} {label}" for label in range(sprites.NUM_BINS)),
        encoding="bits",
        side=sprites.SIDE,
        licence="Drawn by this project's generator; the licence of the project",
        source="peftbench/data/sprites.py (dSprites-like); names are the factors",
        notice=SPRITES_NOTICE,
        splits=splits,
        factors=factors,
    )


def even_shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` shares that differ by at most one, larger shares first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def write(task: Task, out: Path) -> None:
    """Writes `images.npz`, `manifest.json` and `NOTICE.txt` of a task."""
    folder = out / task.name.split("/")[1]
    folder.mkdir(parents=True, exist_ok=True)
    entries = [entry for split in task.splits.values() for entry in split]
    arrays: dict[str, np.ndarray] = {}
    stored = [np.frombuffer(entry.stored, dtype=np.uint8) for entry in entries]
    if task.encoding == "webp":
        arrays["bytes"] = np.concatenate(stored)
        arrays["ends"] = np.cumsum([len(one) for one in stored]).astype(np.int64)
    else:
        arrays["images"] = np.stack(stored)
    if task.factors is not None:
        arrays["factors"] = task.factors
    np.savez_compressed(folder / "images.npz", **arrays)

    lines: list[str] = []
    splits: dict[str, list[list[str | int]]] = {}
    for split, members in task.splits.items():
        splits[split] = []
        for entry in members:
            digest = hashlib.sha256(entry.stored).hexdigest()
            splits[split].append([entry.name, entry.label, digest])
            lines.append(f"{split}\t{entry.name}\t{entry.label}\t{digest}\n")
    header = {
        "schema": 1,
        "suite": SUITE,
        "suite_version": SUITE_VERSION,
        "task": task.name,
        "title": task.title,
        "group": task.group,
        "licence": task.licence,
        "source": task.source,
        "encoding": task.encoding,
        "side": task.side,
        "rollup": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        "classes": list(task.classes),
        "columns": ["name", "label", "sha256"],
    }
    # One image a line: readable in a diff, and a third of the size of indented JSON.
    text = json.dumps(header, indent=1)[:-2] + ',\n "splits": {\n'
    blocks = []
    for split, rows in splits.items():
        body = ",\n".join("   " + json.dumps(row, ensure_ascii=False) for row in rows)
        blocks.append(f'  "{split}": [\n{body}\n  ]')
    text += ",\n".join(blocks) + "\n }\n}\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    (folder / "NOTICE.txt").write_text(task.notice, encoding="utf-8")
    counts = " ".join(f"{split} {len(rows)}" for split, rows in splits.items())
    print(f"{task.name}: {len(task.classes)} classes, {counts}, rollup {header['rollup'][:12]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-art", type=Path, default=CLIP_ART_ROOT)
    default_out = Path(__file__).resolve().parents[1] / "peftbench" / "data" / "suites" / SUITE
    parser.add_argument("--out", type=Path, default=default_out)
    arguments = parser.parse_args()
    write(build_digits(), arguments.out)
    write(build_sprites("location", SEED + 2), arguments.out)
    write(build_sprites("orientation", SEED + 3), arguments.out)
    write(build_clip_art(arguments.clip_art), arguments.out)


if __name__ == "__main__":
    main()
