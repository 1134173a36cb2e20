"""Pictures that are copies of one another: the same bytes, or nearly the same pixels.

A copy in train and in test is learned by heart and then counts as known. Copies that were saved
again, scaled or cut by a few pixels have other bytes, so that small versions of the pictures are
compared. The bounds come from photographs, clip art and grey scans of 60 to 300 pixels: saved
again as JPEG of quality 75, or scaled to half, all but a few stay within `NEAR`; the nearest two
that are no copies were 13 apart, in scans of one material.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from peftbench.caches import cache_dir
from peftbench.data import files, images, levels
from peftbench.data.images import FULL, Levels
from peftbench.data.listing import Pictures, SplitList
from peftbench.errors import DataError

SIDE = 12  # of the small versions, whose pixels are means of wide areas
NEAR = 6  # grey levels by which no pixel of two copies differs more
FLAT = 4 * NEAR  # a picture with less between its darkest and brightest pixel resembles any other
COARSE = 4  # side of those that are looked up first
MOST = 20_000  # pictures whose pixels are compared; of more, the bytes alone are
AT_ONCE = 1_000  # that are looked up together
FORMAT = 1  # of what the cache holds; raised when the rule changes

Numbers = npt.NDArray[np.int64]


def numbers(values: Sequence[str]) -> Numbers:
    """The place of each value among the different ones, (N,)."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


def groups(
    part: SplitList, links: Sequence[tuple[str, str]], values: Sequence[str] = ()
) -> Numbers:
    """The number of the group of each image, (N,): those that must stay in one split.

    Images are in one group where they have equal bytes, are linked as near copies, or have equal
    `values`, and where a third image is in one group with both.

    Args:
        part: N images.
        links: pairs of digests, from `near_copies`.
        values: of a column, one an image; none at all where there is no such column.
    """
    keys: list[str] = [f"bytes {digest}" for digest in part.digests]
    root = {key: key for key in keys}

    def find(key: str) -> str:
        while root[key] != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    joined = [(f"bytes {one}", f"bytes {other}") for one, other in links]
    joined += [(key, f"value {value}") for key, value in zip(keys, values, strict=False)]
    for one, other in joined:
        root.setdefault(other, other)
        if one in root:
            root[find(one)] = find(other)
    return numbers([find(key) for key in keys])


def near_copies(pictures: Pictures, part: SplitList, place: str) -> list[tuple[str, str]]:
    """Pairs of digests of pictures with nearly the same pixels; equal bytes are not among them.

    What was found is kept in the user's cache. None are looked for among more than `MOST`.
    Pictures that cannot be decoded are copies of nothing here: who decodes them names them.

    Args:
        pictures: what holds them.
        part: all pictures that a split is drawn of.
        place: where they lie, for a progress bar and for errors.
    """
    first = dict(zip(reversed(part.digests), reversed(part.names), strict=True))
    if len(first) > MOST:
        return []
    digests = sorted(first)
    key = hashlib.sha256("\n".join([f"{FORMAT}", *digests]).encode()).hexdigest()[:32]
    memory = cache_dir() / "copies" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        known = [tuple(pair) for pair in json.loads(memory.read_text(encoding="utf-8"))]
        if all(len(pair) == 2 and set(pair) <= first.keys() for pair in known):
            return known
    small = _small_versions(pictures, first, part, place)
    there = [digest for digest in digests if digest in small]
    pairs = near_pairs(np.stack([small[d] for d in there]).astype(np.int16)) if there else []
    found = [(there[i], there[j]) for i, j in pairs]
    with contextlib.suppress(OSError):  # it only saves time
        memory.parent.mkdir(parents=True, exist_ok=True)
        with images.replaced(memory) as temporary:
            temporary.write_text(json.dumps(found), encoding="ascii")
    return found


def near_pairs(small: npt.NDArray[np.int16]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of small versions (N, SIDE, SIDE, 3) that nowhere differ by over `NEAR`.

    Those that are nearly of one colour are left out: they resemble one another and are no copies.
    """
    from scipy.spatial import cKDTree

    spans = small.max(axis=(1, 2, 3), initial=0) - small.min(axis=(1, 2, 3), initial=255)
    rows = np.flatnonzero(spans >= FLAT)
    if len(rows) < 2:
        return []
    shown = small[rows]
    step = SIDE // COARSE
    # means of areas differ by at most what single pixels do, so that no pair is lost
    means = shown.reshape(len(rows), COARSE, step, COARSE, step, 3).mean(axis=(2, 4))
    coarse = means.reshape(len(rows), -1)
    tree = cKDTree(coarse)
    pairs = []
    for start in range(0, len(rows), AT_ONCE):
        near = tree.query_ball_point(coarse[start : start + AT_ONCE], NEAR + 1e-6, p=np.inf)
        for i, candidates in enumerate(near, start=start):
            later = np.array([j for j in candidates if j > i], dtype=np.int64)
            if not len(later):
                continue
            apart = np.abs(shown[later] - shown[i]).reshape(len(later), -1).max(axis=1)
            pairs += [(int(rows[i]), int(rows[j])) for j in np.sort(later[apart <= NEAR])]
    return pairs


def _small_versions(
    pictures: Pictures, first: Mapping[str, str], part: SplitList, place: str
) -> dict[str, npt.NDArray[np.uint8]]:
    """By digest, the small version (SIDE, SIDE, 3) of each picture that can be decoded."""
    try:
        white = levels.Finder(pictures, (part,), place)().levels
    except DataError:  # it is raised again, before anything trains
        white = FULL

    def of(name: str) -> npt.NDArray[np.uint8] | None:
        try:
            return np.asarray(
                _opened(pictures, name, white).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            )
        except DataError:
            return None

    made: Iterator[npt.NDArray[np.uint8] | None] = files.each(
        of, list(first.values()), "looking for copies"
    )
    return {digest: small for digest, small in zip(first, made, strict=True) if small is not None}


def _opened(pictures: Pictures, name: str, white: Levels) -> Image.Image:
    """The picture; of a large JPEG file not every pixel."""
    path = pictures.path(name)
    if path is None:
        return pictures.open(name, white)
    return images.decode(path, str(path), white, least=8 * SIDE)
