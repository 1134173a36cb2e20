"""Kept activations: computed once, checked each time, bounded, and never in the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from peftbench.run.activation_store import ActivationStore

ROWS = np.arange(40, dtype=np.uint8).reshape(10, 4)
FACTS = {"prefix": "a", "images": "b"}
Make = Callable[[], Iterator[np.ndarray]]


class Making:
    """Gives the rows in two parts, and counts how often."""

    def __init__(self, rows: np.ndarray = ROWS) -> None:
        self.rows, self.times = rows, 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.times += 1
        yield self.rows[:7]
        yield self.rows[7:]


def store(folder: Path, budget: int = 10**6) -> ActivationStore:
    return ActivationStore(folder / "activations", budget)


def test_an_entry_is_computed_once_and_found_by_whoever_asks_for_the_same(tmp_path: Path) -> None:
    making = Making()
    first = store(tmp_path).entry(FACTS, ROWS.shape, making)
    again = store(tmp_path).entry(dict(FACTS), ROWS.shape, making)
    assert first is not None and again is not None
    assert np.array_equal(first.rows, ROWS) and np.array_equal(again.rows, ROWS)
    assert (first.found, again.found, making.times) == (False, True, 1)
    assert again.seconds == first.seconds > 0


@pytest.mark.parametrize("other", [{"prefix": "c"}, {"images": "c"}, {"more": 1}])
def test_whatever_else_decides_the_numbers_is_another_entry(
    tmp_path: Path, other: dict[str, object]
) -> None:
    making = Making()
    for facts in (FACTS, {**FACTS, **other}):
        store(tmp_path).entry(facts, ROWS.shape, making)
    assert making.times == 2


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    """The entry of other facts, put under this name with all that belongs to it."""
    other = store(path.parent.parent / "elsewhere")
    assert other.entry({**FACTS, "images": "foreign"}, ROWS.shape, Making(ROWS[::-1])) is not None
    (rows,) = other.folder.glob("*.npy")
    path.write_bytes(rows.read_bytes())
    path.with_suffix(".json").write_bytes(rows.with_suffix(".json").read_bytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the rows": _flip,
    "rows cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "no rows": lambda path: path.unlink(),
    "empty rows": lambda path: path.write_bytes(b""),
    "no facts": lambda path: path.with_suffix(".json").unlink(),
    "half the facts": lambda path: os.truncate(path.with_suffix(".json"), 20),
    "facts of another kind": lambda path: path.with_suffix(".json").write_text("[1]"),
    "another entry": _foreign,
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_what_is_damaged_or_foreign_is_computed_again_and_never_used(
    tmp_path: Path, damage: str
) -> None:
    making, kept = Making(), store(tmp_path)
    kept.entry(FACTS, ROWS.shape, making)
    (path,) = kept.folder.glob("*.npy")
    DAMAGE[damage](path)
    mended = kept.entry(FACTS, ROWS.shape, making)
    assert mended is not None and not mended.found and making.times == 2
    assert np.array_equal(mended.rows, ROWS)
    found = kept.entry(FACTS, ROWS.shape, making)
    assert found is not None and found.found and np.array_equal(found.rows, ROWS)


def test_an_entry_that_is_in_use_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    kept = store(tmp_path, budget=90)
    first = kept.entry(FACTS, ROWS.shape, Making())
    for name in "xyz":
        kept.entry({"prefix": name}, ROWS.shape, Making())
    assert first is not None and np.array_equal(first.rows, ROWS)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    kept = store(tmp_path, budget=2 * (40 + 128))  # numpy's header has 128 bytes
    for age, name in ((300, "old"), (200, "older but used"), (100, "young")):
        if name == "young":
            kept.entry({"prefix": "older but used"}, ROWS.shape, Making())
        kept.entry({"prefix": name}, ROWS.shape, Making())
        for facts in kept.folder.glob("*.json"):
            if json.loads(facts.read_text())["facts"]["prefix"] == name:
                os.utime(facts, (facts.stat().st_mtime - age,) * 2)
    left = {json.loads(f.read_text())["facts"]["prefix"] for f in kept.folder.glob("*.json")}
    assert left == {"older but used", "young"}
    assert len(list(kept.folder.glob("*.npy"))) == 2


def test_an_entry_larger_than_half_the_budget_has_no_place(tmp_path: Path) -> None:
    assert store(tmp_path, budget=100).takes(50)
    assert not store(tmp_path, budget=100).takes(51)


def test_a_build_that_fails_leaves_nothing_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    kept = store(tmp_path)

    def dies() -> Iterator[np.ndarray]:
        yield ROWS[:7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.entry(FACTS, ROWS.shape, dies)
    assert not list(kept.folder.glob("*.npy")) and not list(kept.folder.glob("*.part"))
    entry = kept.entry(FACTS, ROWS.shape, Making())
    assert entry is not None and np.array_equal(entry.rows, ROWS)


def test_what_a_killed_process_left_behind_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    from filelock import FileLock

    kept = store(tmp_path)
    kept.folder.mkdir()
    left, held = kept.folder / "left.part", kept.folder / "held.part"
    left.write_bytes(b"half")
    held.write_bytes(b"half")
    with FileLock(held.with_suffix(".lock")):
        kept.entry(FACTS, ROWS.shape, Making())
        assert not left.exists() and held.exists()


def test_of_processes_that_ask_for_the_same_entry_one_computes_it(tmp_path: Path) -> None:
    making, started = Making(), threading.Barrier(4)
    found: list[bool] = []

    def ask() -> None:
        started.wait()
        entry = store(tmp_path).entry(FACTS, ROWS.shape, making)
        assert entry is not None and np.array_equal(entry.rows, ROWS)
        found.append(entry.found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert making.times == 1 and sorted(found) == [False, True, True, True]


def test_a_folder_that_cannot_be_written_to_is_a_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "activations").write_text("a file")
    assert store(tmp_path).entry(FACTS, ROWS.shape, Making()) is None
    assert "PEFTBENCH_CACHE" in caplog.text and "cache=off" in caplog.text


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from peftbench.run.activation_store import ActivationStore

def make():
    for row in np.arange(200, dtype=np.uint8).reshape(50, 4):
        time.sleep(0.01)
        yield row[None]

entry = ActivationStore(Path(sys.argv[1]), 10**6).entry({"prefix": "a"}, (50, 4), make)
assert np.array_equal(entry.rows, np.arange(200, dtype=np.uint8).reshape(50, 4))
"""


@pytest.mark.slow
def test_twenty_kills_while_it_is_computed_leave_nothing_that_is_used(tmp_path: Path) -> None:
    command, draws = [sys.executable, "-c", WRITER, str(tmp_path)], random.Random(3)
    for _ in range(20):
        process = subprocess.Popen(command)
        while not list(tmp_path.glob("*.part")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.4))
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json", ".lock"}
