"""A picture as the model takes it, through the very code that the pictures of its test went."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peftbench.data import images
from peftbench.data.files import readable
from peftbench.data.images import FULL, Levels
from peftbench.errors import ConfigError
from peftbench.spec import Preprocessing
from peftbench.training.pixels import Pixels

if TYPE_CHECKING:
    Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

CPU = torch.device("cpu")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transform:
    """A picture as the model takes it: decoded, turned upright, resized and normalised."""

    preprocessing: Preprocessing
    levels: Levels | None = None  # of pictures with more than 8 bits, where the data had any

    def pixels(self, picture: Picture) -> np.ndarray:
        """The picture before it is normalised: (S, S, 3) uint8.

        Args:
            picture: path of a file, a PIL image of any mode, or an RGB array (H, W, 3) uint8.

        Raises:
            DataError: the file is missing, broken, or no picture.
            ConfigError: it is none of these.
        """
        if isinstance(picture, np.ndarray):
            rgb = Image.fromarray(_checked(picture))
        elif isinstance(picture, Image.Image):
            rgb = self._decoded(picture, "in memory")
        elif isinstance(picture, str | os.PathLike):
            path = Path(picture)
            rgb = self._decoded(path, readable(str(path)))
        else:
            raise ConfigError(
                f"A {type(picture).__name__} is no picture. Give the path of a file, a PIL image "
                "or an array (H, W, 3) of uint8."
            )
        return images.to_square(rgb, self.preprocessing)

    def _decoded(self, source: Path | Image.Image, name: str) -> Image.Image:
        rgb, kind = images.inspect(source, name, self.levels or FULL)
        if kind == images.WIDE and self.levels is None:
            _warn_of_wide()
        return rgb

    def __call__(self, picture: Picture) -> Tensor:
        """The picture as the model takes it, normalised: (3, S, S) float32; see `pixels`."""
        rows = torch.from_numpy(self.pixels(picture).copy())[None]
        normalised = Pixels(rows.numpy(), self.preprocessing.mean, self.preprocessing.std, CPU)
        return normalised.ready(rows)[0]


@functools.cache  # once is enough
def _warn_of_wide() -> None:
    _log.warning(
        "A picture has more than 8 bits a pixel, and the data of this model had none like it: 0 is "
        "taken as black and 65,535 as white."
    )


def _checked(array: np.ndarray) -> np.ndarray:
    """An array that is an RGB picture (H, W, 3) of uint8; `ConfigError` for others."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ConfigError(
            f"An array {array.shape} of {array.dtype} is no picture. Give (H, W, 3), or (N, H, W, "
            "3) for several, of uint8."
        )
    return array
