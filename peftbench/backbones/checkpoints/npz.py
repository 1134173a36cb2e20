"""Files of weights of numpy, read by timm under a bound."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftbench import untrusted
from peftbench.backbones.checkpoints.files import (
    ALWAYS_ALLOWED,
    MOST_GROWTH,
    READING,
    corrupt,
)
from peftbench.backbones.checkpoints.paths import check_file


class _Recorded(io.FileIO):
    """A file that knows from which places it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.places: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.places.add(self.tell())
        return super().read(-1 if size is None else size) or b""


def read_npz_into(path: Path, fill: Callable[[Any], object], needed: int) -> list[str]:
    """Let `fill`, which needs about that many bytes, read a `.npz` whose sizes were checked; the
    names that it did not look at.

    Raises:
        WeightsError: the file is damaged, or unpacks to much more than weights do.
        KeyError, AssertionError: of `fill`: the file is for another model.
    """
    check_file(path)
    try:
        size = path.stat().st_size
        most = max(ALWAYS_ALLOWED, size, min(MOST_GROWTH * size, ALWAYS_ALLOWED + 2 * needed))
        names = list(untrusted.read_npz(path, most))
        with zipfile.ZipFile(path) as archive:
            places = {i.filename.removesuffix(".npy"): i.header_offset for i in archive.infolist()}
    except (*READING, TypeError, SyntaxError) as e:
        raise corrupt(path, e) from e
    with _Recorded(path) as file:
        fill(file)
        return [name for name in names if places[name] not in file.places]
