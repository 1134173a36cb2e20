"""Latencies that runs share: taken over if they are of the very same, and measured anew if not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftbench.results.latencies import Latencies, Latency

OF = {"method": "lora", "threads": 1, "batch_sizes": [1, 64]}
FOUND = Latency(one_ms=1.5, batch_ms=40.0, measured="2026-01-02T03:04:05+00:00")


def file_of(root: Path) -> Path:
    (path,) = (root / "latencies").iterdir()
    return path


def test_what_one_run_measures_another_finds(tmp_path: Path) -> None:
    Latencies(tmp_path).keep(OF, FOUND)
    assert Latencies(tmp_path).find(dict(OF)) == FOUND


def test_what_disturbed_a_latency_stays_known(tmp_path: Path) -> None:
    disturbed = Latency(1.5, 40.0, FOUND.measured, "spread 34 %")
    Latencies(tmp_path).keep(OF, disturbed)
    assert Latencies(tmp_path).find(OF) == disturbed


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch_sizes": [1, 32]}, {"host": "there"}])
def test_a_latency_of_anything_else_is_not_found(tmp_path: Path, change: dict[str, object]) -> None:
    Latencies(tmp_path).keep(OF, FOUND)
    assert Latencies(tmp_path).find(OF | change) is None


def test_a_run_that_is_forced_finds_nothing_and_replaces_it(tmp_path: Path) -> None:
    Latencies(tmp_path).keep(OF, FOUND)
    forced = Latencies(tmp_path, renew=True)
    assert forced.find(OF) is None
    newer = Latency(1.4, 39.0, "2026-02-02T03:04:05+00:00")
    forced.keep(OF, newer)
    assert Latencies(tmp_path).find(OF) == newer


@pytest.mark.parametrize(
    "change",
    [
        {"of": {"method": "lora"}},
        {"one_ms": 0.0},
        {"one_ms": -1.0},
        {"one_ms": 1},
        {"one_ms": "1.5"},
        {"batch_ms": None},
        {"measured": "yesterday"},
        {"measured": None},
        {"disturbed": 3},
        {"disturbed": "spread\x1b[31m 34 %"},
        {"forward_gmacs": 0.0},
        {"more": 1},
    ],
)
def test_a_file_of_another_content_counts_for_nothing_and_is_replaced(
    tmp_path: Path, change: dict[str, object]
) -> None:
    known = Latencies(tmp_path)
    known.keep(OF, FOUND)
    path = file_of(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert known.find(OF) is None
    known.keep(OF, FOUND)
    assert known.find(OF) == FOUND


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"NaN", b"[" * 20000])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, data: bytes) -> None:
    known = Latencies(tmp_path)
    known.keep(OF, FOUND)
    file_of(tmp_path).write_bytes(data)
    assert known.find(OF) is None


def test_numbers_that_are_not_finite_count_for_nothing(tmp_path: Path) -> None:
    known = Latencies(tmp_path)
    known.keep(OF, FOUND)
    path = file_of(tmp_path)
    path.write_text(path.read_text().replace("40.0", "Infinity"))
    assert known.find(OF) is None


def test_where_nothing_can_be_written_nothing_is_known_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "latencies").write_text("a file in the place of the folder")
    known = Latencies(tmp_path)
    known.keep(OF, FOUND)
    assert known.find(OF) is None
