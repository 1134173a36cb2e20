"""Pictures to square uint8 arrays: decoding and resizing."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps

from peftbench.errors import ConfigError, DataError
from peftbench.registry import unknown_name
from peftbench.spec import INTERPOLATIONS, RESIZES, TF_BILINEAR, WHOLE, Preprocessing

BESIDE = ".peftbench"  # folder for what is derived from data, in the folder of the data

# What Pillow raises for files that are not pictures, are cut short, or claim absurd sizes.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(source: str | Path | BinaryIO, name: str) -> Image.Image:
    """The picture as RGB: upright by its EXIF tag, transparency on white, 16-bit grey scaled.

    A file that cannot be read raises `DataError` with `name`.
    """
    return inspect(source, name)[0]


def inspect(source: str | Path | BinaryIO, name: str) -> tuple[Image.Image, str | None]:
    """As `decode`, with what was done beyond decoding where the picture is no ordinary one."""
    try:
        with Image.open(source) as opened:
            kind = _peculiarity(opened)
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened)), kind
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"Cannot decode image {name}: {reason}. Repair it or remove it from the data set."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        wide = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray(np.round(wide / 257.0).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _peculiarity(opened: Image.Image) -> str | None:
    if getattr(opened, "n_frames", 1) > 1:
        return "are animated; their first frame is read"
    if opened.mode == "CMYK":
        return "are CMYK and become RGB"
    if opened.mode.startswith("I"):
        return "have 16 bits a pixel and are scaled to 8"
    if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
        return "are transparent and lie on white"
    if opened.mode == "P":
        return "have a palette and become RGB"
    if opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
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


def fit(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
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
    square = fit(image, preprocessing)
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


def cache_dir() -> Path:
    """Where what is derived from data is kept: `PEFTBENCH_CACHE`, or `~/.cache/peftbench`."""
    named = os.environ.get("PEFTBENCH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "peftbench"


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
