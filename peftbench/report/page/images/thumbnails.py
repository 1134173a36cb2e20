"""Small pictures as text inside the page, no more than it has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from peftbench.data import threads
from peftbench.errors import DataError

SIDE = 96  # pixels of the longer side
QUALITY = 72  # of JPEG: about 2.5 kB a photograph
SQUARE_QUALITY = 88  # of what the model sees, in which single pixels tell something
SQUARE_SIDE = 128


@dataclass
class Room:
    """What is left for pictures on the page."""

    characters: int
    pictures: int

    whole: Room | None = None  # of which this is a part

    def part(self, parts: int) -> Room:
        """A room for one of so many parts; what it does not use is left to those that follow."""
        return Room(self.characters // parts, self.pictures // parts, self)

    def take(self, uri: str) -> bool:
        """Whether there was room for a picture, which it has now."""
        if self.pictures < 1 or len(uri) > self.characters:
            return False
        self.characters -= len(uri)
        self.pictures -= 1
        if self.whole is not None:
            self.whole.take(uri)
        return True


def thumbnail(picture: Image.Image) -> str:
    """A picture as the text of a JPEG, of `SIDE` pixels at most; nothing of its file but pixels."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _uri(small, QUALITY)


def square(picture: Image.Image) -> str:
    """What a model sees, as it is; only where it is larger than `SQUARE_SIDE`, made smaller."""
    if picture.width > SQUARE_SIDE:
        picture = picture.resize((SQUARE_SIDE, SQUARE_SIDE), Image.Resampling.BICUBIC)
    return _uri(picture, SQUARE_QUALITY)


def _uri(picture: Image.Image, quality: int) -> str:
    # a picture of its own has neither the comments nor the place of the file it came from
    plain = Image.fromarray(np.asarray(picture))
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnails(
    wanted: Iterable[int], make: Callable[[int], Image.Image | None], room: Room
) -> dict[int, str]:
    """Thumbnails by number, of as many of the `wanted` as there is room for, the first first.

    `make` gives a picture, or `None` where there is none that can be shown.
    """
    asked = list(dict.fromkeys(wanted))
    found: dict[int, str] = {}

    def one(number: int) -> str | None:
        try:
            picture = make(number)
        except (DataError, OSError, ValueError):
            return None
        return None if picture is None else thumbnail(picture)

    with ThreadPoolExecutor(threads.count()) as pool:
        made = threads.in_order(pool, one, asked)
        for number, uri in zip(asked, made, strict=False):
            if uri is not None:
                if not room.take(uri):
                    break
                found[number] = uri
        made.close()  # type: ignore[attr-defined]  # a generator: what has not begun is not done
    return found


def spread(count: int, most: int) -> Sequence[int]:
    """At most `most` numbers below `count`, evenly spread."""
    if count <= most:
        return range(count)
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
