"""Every run of these tests is tiny and has a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_runs import short_timings

from peftbench.results.store import ResultsStore


@pytest.fixture(autouse=True)
def quick(tmp_path: Path) -> Iterator[None]:
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
        yield


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path / "results")
