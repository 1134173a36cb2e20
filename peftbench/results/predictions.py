"""What a tuned model said of each test image, as it is stored."""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if sys.platform != "win32":
    pass
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Predictions:
    """What a tuned model said of each test image, in the order of the split; all are (N,)."""

    classes: npt.NDArray[np.int32]  # predicted
    confidence: npt.NDArray[np.float32]  # probability of the predicted class
    margin: npt.NDArray[np.float32]  # best minus second-best probability
    labels: npt.NDArray[np.int32]  # true


# what reading a zip file, an array or a text of somebody else's may end in
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(OverflowError, RecursionError, struct.error, zlib.error, zipfile.BadZipFile),
)


def predictions_of(arrays: Mapping[str, np.ndarray]) -> Predictions:
    """The arrays of a file of predictions; `ValueError` unless they are one for each image."""
    lacking = [name for name in Predictions.__dataclass_fields__ if name not in arrays]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")
    predictions = Predictions(**{name: arrays[name] for name in Predictions.__dataclass_fields__})
    for name, kinds in (
        *(("classes", "iu"), ("labels", "iu"), ("confidence", "f"), ("margin", "f")),
    ):
        array = arrays[name]
        if array.dtype.kind not in kinds or array.shape != (len(predictions.labels),):
            raise ValueError(f"{name} has the shape {array.shape} and the type {array.dtype}")
    return predictions
