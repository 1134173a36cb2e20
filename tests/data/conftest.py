"""Small folders of images and preprocessing shared by the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.forked_matlab import forked_matlab  # noqa: F401 - a fixture

from peftbench.spec import Preprocessing

MakeFolder = Callable[[dict[str, int]], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: no test reads or writes the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PEFTBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes PNG files, all different, from `{"train/cat": 3, ...}`; returns the root."""

    def make(counts: dict[str, int]) -> Path:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{index:03d}.png")
        return root

    return make


@pytest.fixture
def small() -> Preprocessing:
    return Preprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
