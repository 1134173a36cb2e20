"""What a tuned model said of each test image, as it is stored."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from peftbench.untrusted import check_directory, read_npz

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROWS = ("classes", "confidence", "margin", "labels")  # arrays that every file has
NAMES = "names"
NUMBERS = "numbers"
LONGEST_NAME = 1024  # characters of the path of an image; longer ones are not stored
MOST_NAMES = 64 * 2**20  # bytes of all names of a run, four for each character of the longest


@dataclass(frozen=True)
class Predictions:
    """What a tuned model said of each test image, in the order of the split; arrays are (N,)."""

    classes: npt.NDArray[np.int32]  # predicted
    confidence: npt.NDArray[np.float32]  # probability of the predicted class
    margin: npt.NDArray[np.float32]  # best minus second-best probability
    labels: npt.NDArray[np.int32]  # true
    # N paths of the images' files below the folder of the data; `None` where they are no files,
    # where the run is from before they were kept, and where a bundle left them out
    names: tuple[str, ...] | None = None
    # of each image among all of the data set, whatever split it is in, so that splits can be put
    # together; `None` of data sets with given splits alone, and of older runs
    numbers: npt.NDArray[np.int32] | None = None


# what reading a zip file, an array or a text of somebody else's may end in
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(OverflowError, RecursionError, struct.error, zlib.error, zipfile.BadZipFile),
)


def predictions_of(arrays: Mapping[str, np.ndarray]) -> Predictions:
    """The arrays of a file of predictions; `ValueError` unless they are one for each image."""
    lacking = [name for name in ROWS if name not in arrays]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")
    kinds = {"classes": "iu", "labels": "iu", "confidence": "f", "margin": "f"}
    kinds |= {NAMES: "U", NUMBERS: "iu"}
    for name, known in kinds.items():
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in known or array.shape != (len(arrays["labels"]),):
            raise ValueError(f"{name} has the shape {array.shape} and the type {array.dtype}")
    names = None
    if NAMES in arrays:
        names = tuple(arrays[NAMES].tolist())
        _check_names(names)
    numbers = arrays.get(NUMBERS)
    if numbers is not None:
        _check_numbers(numbers)
    classes, confidence, margin, labels = (arrays[name] for name in ROWS)
    return Predictions(classes, confidence, margin, labels, names, numbers)


def _check_numbers(numbers: np.ndarray) -> None:
    """Refuse numbers (N,) that do not tell the images apart."""
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < 2**31:
        raise ValueError("numbers has some that no image can have")
    if len(set(numbers.tolist())) < len(numbers):
        raise ValueError("numbers has one of them twice")


def _check_names(names: Sequence[str]) -> None:
    """Refuse paths that lead out of the folder of the data: who reads them may open them."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or len(name) > LONGEST_NAME:
            raise ValueError(f"names has {name[:60]!r}, which is no path below a folder")


def names_array(names: Sequence[str]) -> np.ndarray | None:
    """Paths as text (N,), as they are stored; `None` where they would be too many or too long."""
    import numpy as np

    longest = max(map(len, names), default=0)
    if longest > LONGEST_NAME or 4 * longest * len(names) > MOST_NAMES:
        return None
    return np.array(names, dtype=f"U{max(longest, 1)}")


def has_names(data: bytes) -> bool:
    """Whether a file of predictions lists names among its contents.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged, or lists too much.
    """
    file = io.BytesIO(data)
    check_directory(file)
    with zipfile.ZipFile(file) as archive:
        return f"{NAMES}.npy" in archive.namelist()


def without_names(data: bytes) -> bytes:
    """A file of predictions without the names of files; the same bytes where it has none.

    Raises:
        ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: it is damaged.
    """
    import numpy as np

    if not has_names(data):
        return data
    arrays = read_npz(io.BytesIO(data))
    del arrays[NAMES]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
