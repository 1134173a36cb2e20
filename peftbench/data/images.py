"""Pictures to square uint8 arrays: decoding and resizing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL
from PIL import ExifTags, Image, UnidentifiedImageError

from peftbench.data.grey import FULL, SIGNED_BYTE, Extent, Levels
from peftbench.errors import ConfigError, DataError, PeftbenchError
from peftbench.registry import unknown_name
from peftbench.spec import INTERPOLATIONS, RESIZES, TF_BILINEAR, WHOLE, Preprocessing
from peftbench.untrusted import check_plain_file, printable

BESIDE = ".peftbench"  # folder for what is derived from data, in the folder of the data

# Formats of Pillow that are opened, those of the endings that are read: others start programs
# (EPS), read other files or have no bound. MPO is opened as JPEG; AVIF is not in every Pillow.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PIXELS = "PEFTBENCH_MAX_PIXELS"  # environment variable: pixels that a picture may have
SURE_PIXELS = 2**26  # a sheet at 600 dots an inch has 35 million, if it is blank in 1 kB
MOST_RATIO = 10_000  # pixels for each byte of larger pictures; photographs have 1 to 50
WIDE = "have 16 bits a pixel and are scaled to 8"  # what is peculiar about such pictures
HEAD = 32  # bytes from which `may_be_wide` judges
BITS, SAMPLE_FORMAT = 258, 339  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation


Source: TypeAlias = str | Path | BinaryIO | Image.Image  # a file, or a picture that is open


def decode(
    source: Source, name: str, levels: Levels = FULL, least: int | None = None
) -> Image.Image:
    """The picture as RGB: upright by its EXIF tag, transparency on white, wide grey by `levels`.

    With `least`, a JPEG may come smaller, with at least so many pixels a side, in a fraction of the
    time. A file that cannot be read raises `DataError` with `name`.
    """
    with _loaded(source, name, least) as (opened, _, declared):
        return _to_rgb(_upright(opened), FULL if declared else levels)


def inspect(source: Source, name: str, levels: Levels = FULL) -> tuple[Image.Image, str | None]:
    """As `decode`, with what was done beyond decoding where the picture is no ordinary one."""
    with _loaded(source, name) as (opened, kind, declared):
        return _to_rgb(_upright(opened), FULL if declared else levels), kind


def may_be_wide(head: bytes) -> bool:
    """Whether a file that begins so may have more than 8 bits; `HEAD` bytes are enough."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return head[24:25] == b"\x10"
    return head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"P2", b"P3", b"P5", b"P6"))


def extent(source: Source, name: str) -> Extent | None:
    """The numbers in use where they are wide and the file does not say what white is.

    A file that cannot be read raises `DataError` with `name`.
    """
    with _loaded(source, name) as (opened, _, declared):
        if declared:
            return None
        if _is_whole_numbers(opened):
            wide = _integers(opened)
            return Extent(int(wide.min()), max(int(wide.max()), _stated(opened)))
        if _is_cut(opened):
            return Extent(0, int(np.asarray(opened.convert("RGB")).max()), cut=True)
        return None


def extent_of_file(path: Path) -> Extent | None:
    """`extent` of a file, of which most are judged by their first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # who decodes it names it
        return None
    return extent(path, str(path)) if may_be_wide(head) else None


@contextlib.contextmanager
def _loaded(
    source: Source, name: str, least: int | None = None
) -> Iterator[tuple[Image.Image, str | None, bool]]:
    """The picture, what is peculiar about it, and whether it is scaled as its file says."""
    try:
        if isinstance(source, Image.Image):  # whoever opened it has trusted it
            kind, declared = _peculiarity(source), _is_declared(source)
            source.load()
            yield source, kind, declared
            return
        if isinstance(source, str | Path):
            check_plain_file(Path(source))
        allow = _allowed_pixels()
        with Image.open(source, formats=_formats()) as opened:
            count = math.prod(opened.size)
            if allow is None and count > SURE_PIXELS:
                allow = max(SURE_PIXELS, MOST_RATIO * _length(source))
            if allow is not None and count > allow:
                raise Image.DecompressionBombError(f"{count} pixels")
            kind = _peculiarity(opened)
            declared = _is_declared(opened)
            if least is not None:
                opened.draft(None, (least, least))
            opened.load()
            yield opened, kind, declared
    except PeftbenchError:
        raise
    except Exception as error:  # decoders raise of every kind on damaged files
        raise DataError(f"Cannot decode image {name}: {_reason(error)}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _allowed_pixels() -> int | None:
    """What `PIXELS` allows; `None` where Pillow's own limit holds."""
    named = os.environ.get(PIXELS)
    if not named:
        return None
    if not (named.isascii() and named.isdecimal() and int(named) > 0):
        raise ConfigError(f"{PIXELS}={named} is no number of pixels. Use a whole number above 0.")
    Image.MAX_IMAGE_PIXELS = int(named)  # Pillow refuses twice as many, the caller more than that
    return int(named)


def _length(source: str | Path | BinaryIO) -> int:
    """Bytes of a file, which may be open."""
    if isinstance(source, str | Path):
        return Path(source).stat().st_size
    place = source.tell()
    try:
        return source.seek(0, os.SEEK_END)
    finally:
        source.seek(place)


def _reason(error: Exception) -> str:
    """What is wrong with a picture, and what to do about it."""
    repair = "Repair it or remove it from the data set."
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        number = re.search(r"\d+", str(error))
        count = int(number[0]) if number else 0
        limit = _allowed_pixels() or 2 * (Image.MAX_IMAGE_PIXELS or 0)
        most = f"and {limit:,} are allowed"
        if count <= limit:
            most = f"more than {MOST_RATIO:,} for each byte"
        return (
            f"it has {count:,} pixels, {most}, because small files can claim any size. If it is to "
            f"be trusted, set {PIXELS}={count}; otherwise remove it from the data set."
        )
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_formats())}. {repair}"
    if isinstance(error, PermissionError):
        return "permission denied. Allow reading it or remove it from the data set."
    return f"{printable(str(error)) or type(error).__name__}. {repair}"


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8; of a damaged block or another number 1, as it is stored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:  # a block of bytes of any kind; the picture does not depend on it
        return 1


def _to_rgb(image: Image.Image, levels: Levels) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if _is_whole_numbers(image):  # Pillow's own conversion would clip it at 255
        if image.mode == "L" and levels == FULL:
            levels = SIGNED_BYTE
        return Image.fromarray(levels.scaled(_integers(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _is_whole_numbers(image: Image.Image) -> bool:
    """Whether a grey picture has more than 8 bits, or a sign, of which Pillow knows nothing."""
    return image.mode.startswith("I") or (image.mode == "L" and _tag(image, SAMPLE_FORMAT) == 2)


def _integers(image: Image.Image) -> np.ndarray:
    """The numbers of a picture that `_is_whole_numbers`: (H, W) int64."""
    wide = np.asarray(image)
    if image.mode == "L":
        wide = wide.view(np.int8)
    # Pillow reads 32 bits without a sign as such with one
    if image.mode == "I" and _tag(image, SAMPLE_FORMAT) == 1 and _tag(image, BITS) == 32:
        wide = wide.view(np.uint32)
    return wide.astype(np.int64)


def _stated(image: Image.Image) -> int:
    """The greatest number that a TIFF file says it could hold, where that is no multiple of 8."""
    bits = _tag(image, BITS)
    return 2**bits - 1 if 8 < bits < 16 else 0


def _is_cut(image: Image.Image) -> bool:
    """Whether Pillow has kept the upper 8 bits of 16 of each colour."""
    if image.format == "PNG":
        return True  # `may_be_wide` has seen its depth, and only grey is read whole
    if image.format == "PPM":
        return image.mode == "RGB"
    return image.format == "TIFF" and _tag(image, BITS) == 16


def _is_declared(image: Image.Image) -> bool:
    """Whether a file says what white is, as PPM does, and Pillow scales by it."""
    tiles = getattr(image, "tile", ())
    if image.format != "PPM" or not tiles:
        return False
    arguments = tiles[0][3]
    stated = arguments[-1] if isinstance(arguments, tuple) else arguments
    return stated not in (65535, "I;16B")


def _tag(image: Image.Image, number: int) -> int:
    """A whole number of a TIFF file, the first of several; 0 where there is none."""
    try:
        value = getattr(image, "tag_v2", {}).get(number, 0)
        return int(value[0] if isinstance(value, tuple) else value)
    except (ValueError, TypeError, IndexError):
        return 0


def _peculiarity(opened: Image.Image) -> str | None:
    if getattr(opened, "is_animated", False):
        if opened.format in ("TIFF", "MPO"):
            return "hold several pictures, of which the first is read"
        return "are animated; their first frame is read"
    if opened.mode == "CMYK":
        return "are CMYK and become RGB"
    if opened.mode.startswith("I"):
        return WIDE
    if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
        return "are transparent and lie on white"
    if opened.mode == "P":
        return "have a palette and become RGB"
    if _orientation(opened) != 1:
        return "are turned upright, as their EXIF tag says"
    return None


def check_geometry(preprocessing: Preprocessing) -> None:
    """Raises `ConfigError` when the size, the resize or the interpolation does not exist."""
    if preprocessing.size < 1:
        raise ConfigError(f"Image size {preprocessing.size} is not positive.")
    if preprocessing.resize not in (*RESIZES, WHOLE):
        raise unknown_name("resize", preprocessing.resize, RESIZES)
    if preprocessing.interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", preprocessing.interpolation, INTERPOLATIONS)
    if not 0 < preprocessing.crop_fraction <= 1:
        raise ConfigError(
            f"crop_fraction={preprocessing.crop_fraction:g} is outside 0..1. "
            "Use the part of the short side that the crop keeps, for example 0.9."
        )


def to_square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """An RGB picture as a square: (S, S, 3) uint8.

    "squash" and "whole" resize straight to the square, as VTAB does. "crop" brings the short side
    to `size / crop_fraction` and cuts the centre, with the roundings of torchvision and timm.
    """
    size = preprocessing.size
    interpolation = preprocessing.interpolation
    if preprocessing.resize in ("squash", WHOLE):
        return np.asarray(_resized(image, (size, size), interpolation))
    short = math.floor(size / preprocessing.crop_fraction)
    width, height = image.size
    if width <= height:
        target = (short, int(short * height / width))
    else:
        target = (int(short * width / height), short)
    resized = _resized(image, target, interpolation)
    left = round((target[0] - size) / 2)
    top = round((target[1] - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def row_type(size: int, whole: bool) -> np.dtype[Any]:
    """What an array of squares holds for each image: (size, size, 3) uint8.

    Of `whole` pictures it holds a record: that as "pixels" and, as "size", (2,) int32, the width
    and height that the picture had.
    """
    pixels = np.dtype((np.uint8, (size, size, 3)))
    return np.dtype([("pixels", pixels), ("size", "<i4", (2,))]) if whole else pixels


def row(image: Image.Image, preprocessing: Preprocessing) -> Any:
    """An RGB picture as a value of `row_type`."""
    square = to_square(image, preprocessing)
    return (square, image.size) if preprocessing.resize == WHOLE else square


def squashed(squares: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Images (N, R, R, 3) uint8 as the model takes them: (N, S, S, 3), nothing cut off."""
    size = preprocessing.size
    if squares.shape[1] == size:
        return squares
    pictures = (Image.fromarray(square) for square in squares)
    return np.stack(
        [np.asarray(_resized(p, (size, size), preprocessing.interpolation)) for p in pictures]
    )


def _resized(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    if image.size == size:
        return image
    if interpolation == TF_BILINEAR:
        return Image.fromarray(without_antialias(np.asarray(image), size))
    return image.resize(size, Image.Resampling[interpolation.upper()])


def without_antialias(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 resized to (width, height) by `TF_BILINEAR`: (height, width, 3).

    Each pixel is mixed from the four that its centre lies between, with half-pixel centres, however
    much smaller the image becomes: `tf.image.resize(..., method="bilinear", antialias=False)`.
    TensorFlow leaves fractions of a grey level; here they are rounded.
    """
    width, height = size
    above, below, down = _between(pixels.shape[0], height)
    left, right, across = _between(pixels.shape[1], width)
    down, across = down[:, None, None], across[:, None]
    rows = pixels[above] * (1 - down) + pixels[below] * down
    mixed = rows[:, left] * (1 - across) + rows[:, right] * across
    return np.rint(mixed).astype(np.uint8)


def _between(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each of `wanted` points on a line is between, and the second's share."""
    centres = (np.arange(wanted) + 0.5) * length / wanted - 0.5
    centres = centres.clip(0, length - 1)
    first = np.floor(centres).astype(np.int64)
    second = np.minimum(first + 1, length - 1)
    return first, second, (centres - first).astype(np.float32)


def backend(interpolation: str) -> str:
    """The library that resizes, and its version: "pillow 11.0.0"."""
    if interpolation == TF_BILINEAR:
        return f"numpy {np.__version__}"
    return f"pillow {PIL.__version__}"


def geometry_key(preprocessing: Preprocessing) -> str:
    """What decides the pixels: mean and standard deviation are applied later, on the device."""
    fields = [
        str(preprocessing.size),
        preprocessing.resize,
        preprocessing.interpolation,
        f"{preprocessing.crop_fraction!r}" if preprocessing.resize == "crop" else "",
    ]
    return "|".join(fields)


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` on success, so that no reader sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
