"""Promises of the index of rows: few files are read again, and no table is ever another one."""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import pandas as pd
import pytest

from peftbench import report
from peftbench.cli import listing
from peftbench.results import index
from peftbench.results.frame import frame
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore

IDS = [f"{number:016x}" for number in range(4)]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, in which folders of any size have an index and files are old at once."""
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEWEST", 1)
    monkeypatch.setattr(index, "SETTLED_NS", -(10**9))
    return tmp_path / "cache" / "rows"


@pytest.fixture
def store(tmp_path, make_record) -> ResultsStore:
    """Four runs of accuracy 0.5."""
    store = ResultsStore(tmp_path / "results")
    for run_id in IDS:
        store.add(scoring(make_record, run_id, 0.5))
    return store


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Run ids of the files that are read, as they are."""
    seen: list[str] = []
    true_read = index.read

    def counting(path: Path, *, history: bool = True) -> object:
        seen.append(path.stem)
        return true_read(path, history=history)

    monkeypatch.setattr(index, "read", counting)
    return seen


def scoring(make_record, run_id: str, top1: float) -> RunRecord:
    metrics = {"test/top1": top1, "test/num_images": 10.0}
    return make_record(run_id, metrics=metrics)


def from_records(store: ResultsStore) -> pd.DataFrame:
    """The table without any index."""
    return frame(store.scan(history=False).records)


def top1(store: ResultsStore) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = frame(store)
    pd.testing.assert_frame_equal(table, from_records(store))
    return dict(zip(table["run_id"], table["top1"], strict=True))


def read_by(reads: list[str], store: ResultsStore) -> list[str]:
    reads.clear()
    top1(store)
    return list(reads)


def test_all_files_are_read_once_and_then_none(store, reads):
    assert read_by(reads, store) == IDS
    assert read_by(reads, store) == []
    assert read_by(reads, ResultsStore(store.root)) == []


def test_lists_and_tables_of_a_folder_that_was_read_read_no_record(store, reads, make_record):
    failed = make_record(IDS[3], status=Status.ERROR, error="boom", metrics={})
    store.add(failed, replace=True)
    first = listing.text("runs", str(store.root), None)
    assert reads == IDS
    assert [line.split()[:2] for line in first.splitlines()] == [
        ["RUN", "STATUS"],
        *([run_id, "OK"] for run_id in IDS[:3]),
        [IDS[3], "ERROR"],
    ]
    assert first.splitlines()[1].endswith("50.0 % test top-1")
    assert first.splitlines()[4].endswith("boom")
    reads.clear()
    assert listing.text("runs", str(store.root), None) == first
    built = report.build(store.root, parts=[report.TABLES])
    assert reads == [] and "lora" in built.text
    assert built.text == report.build(store.root, parts=[report.TABLES, report.PAGE]).text.replace(
        f"\n  {store.root / 'report.html'}", ""
    )


def test_a_replaced_record_alone_is_read_again(store, reads, make_record):
    top1(store)
    store.add(scoring(make_record, IDS[2], 0.6))
    assert read_by(reads, store) == [IDS[2]]
    assert top1(store) == {IDS[0]: 0.5, IDS[1]: 0.5, IDS[2]: 0.6, IDS[3]: 0.5}
    assert read_by(reads, store) == []


def test_an_added_record_alone_is_read_and_a_removed_one_is_gone(store, reads, make_record):
    top1(store)
    store.path("lora", IDS[1]).unlink()
    store.add(scoring(make_record, "00000000000000ff", 0.7))
    assert read_by(reads, store) == ["00000000000000ff"]
    assert list(top1(store)) == [IDS[0], IDS[2], IDS[3], "00000000000000ff"]


def test_all_runs_that_are_removed_are_gone(store):
    top1(store)
    shutil.rmtree(store.runs)
    assert top1(store) == {}


def test_a_change_of_the_same_size_and_date_is_seen(store, reads, make_record):
    top1(store)
    path = store.path("lora", IDS[0])
    before = path.stat()
    text = path.read_text().replace('"test/top1": 0.5', '"test/top1": 0.6')
    with open(path, "r+") as file:  # in place: the same inode
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert top1(store)[IDS[0]] == 0.6


def test_a_touched_record_is_read_again_once(store, reads):
    top1(store)
    os.utime(store.path("lora", IDS[3]))
    assert read_by(reads, store) == [IDS[3]]
    assert read_by(reads, store) == []


def test_a_file_touched_just_now_is_read_until_its_clock_has_moved_on(store, reads, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", 3 * 10**9)
    assert read_by(reads, store) == IDS
    assert read_by(reads, store) == IDS  # as it can change within the same tick
    in_ten_seconds = index.time.time_ns() + 10**10
    monkeypatch.setattr(index.time, "time_ns", lambda: in_ten_seconds)
    monkeypatch.setattr(index, "time_at", lambda folder: in_ten_seconds / 1e9)
    assert read_by(reads, store) == IDS
    assert read_by(reads, store) == []


def test_a_change_that_no_clock_shows_is_seen_as_long_as_the_file_is_young(
    store, make_record, monkeypatch
):
    monkeypatch.setattr(index, "SETTLED_NS", 3 * 10**9)
    monkeypatch.setattr(index, "_state", lambda entry: (1, index.time.time_ns(), 0, 1, 1))
    monkeypatch.setattr(index.time, "time_ns", lambda: 10**18)
    top1(store)
    store.add(scoring(make_record, IDS[0], 0.9))
    assert top1(store)[IDS[0]] == 0.9


def test_a_clock_that_is_set_back_makes_no_file_old(store, reads):
    in_a_year = 2 * 10**9
    os.utime(store.path("lora", IDS[0]), (in_a_year, in_a_year))
    top1(store)
    assert read_by(reads, store) == [IDS[0]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"status": "OK"', '"status": "FINE"'),
        lambda text: text.replace('"test/top1": 0.5', '"test/top1": 7.5'),
        lambda text: text.replace(IDS[1], IDS[0]),
    ],
)
def test_a_damaged_record_is_told_as_without_an_index(store, damage):
    top1(store)
    path = store.path("lora", IDS[1])
    whole = path.read_text()
    path.write_text(damage(whole))
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            table = frame(store)
        assert [str(one.message) for one in told] == [str(one) for one in store.broken()]
        assert list(table["run_id"]) == [IDS[0], IDS[2], IDS[3]]
    path.write_text(whole)
    assert list(top1(store)) == IDS


def test_of_copies_of_a_run_the_current_one_counts(store, make_record):
    # a failed copy in one folder, a newer one in another, whose names sort behind
    failed = make_record(IDS[0], status=Status.ERROR, error="boom", metrics={})
    newer = make_record(
        IDS[1], metrics={"test/top1": 0.8}, finished="2025-01-01T00:02:00+00:00", notes=["again"]
    )
    for method, record in (("m1", failed), ("m2", newer)):
        path = store.path(method, record.run_id)
        path.parent.mkdir(parents=True)
        path.write_text(record.to_json())
    for _ in range(2):
        assert top1(store) == {IDS[0]: 0.5, IDS[1]: 0.8, IDS[2]: 0.5, IDS[3]: 0.5}


def test_values_that_the_index_cannot_hold_are_read_each_time(store, make_record, reads):
    odd = make_record(
        IDS[0], status=Status.ERROR, error="caf\udce9.png is empty", metrics={"test/top1": 0.5}
    )
    huge = json.loads(make_record(IDS[1]).to_json())
    huge["parameters"] |= {"method": 2**63 - 1, "unfrozen": 2**63 - 1}
    huge["tuning"] = {"tuner": [{"a": None}], "trials": 1, "epochs": True}
    store.path("lora", IDS[0]).write_text(odd.to_json())
    store.path("lora", IDS[1]).write_text(json.dumps(huge))
    top1(store)
    assert IDS[0] in read_by(reads, store) and IDS[2] not in read_by(reads, store)


DAMAGES = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9")),
    "of another kind": lambda path: path.write_bytes(b"\x00" * 100),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link in a circle": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_as_none(store, cache, reads, damage):
    top1(store)
    (path,) = cache.glob("*.json")
    damage(path)
    assert read_by(reads, store) == IDS
    assert set(top1(store).values()) == {0.5}


def test_an_index_of_other_code_is_as_none(store, reads, monkeypatch):
    top1(store)
    monkeypatch.setattr(index, "_code", lambda: "another version")
    assert read_by(reads, store) == IDS
    assert read_by(reads, store) == []


def test_an_index_of_another_folder_is_as_none(store, cache, reads, make_record):
    top1(store)
    (ours,) = cache.glob("*.json")
    copy = ResultsStore(store.root.with_name("copy"))
    for run_id in IDS:
        copy.add(scoring(make_record, run_id, 0.7))
    top1(copy)
    (theirs,) = set(cache.glob("*.json")) - {ours}
    shutil.copy(ours, theirs)
    assert read_by(reads, copy) == IDS
    assert set(top1(copy).values()) == {0.7}


def test_an_index_of_another_user_is_as_none(store, reads, monkeypatch):
    top1(store)
    monkeypatch.setattr(index.os, "geteuid", lambda: os.getuid() + 1)
    assert read_by(reads, store) == IDS


def test_nothing_is_written_to_the_results_folder_and_nothing_there_is_an_index(store, cache):
    before = sorted(store.root.rglob("*"))
    top1(store)
    assert sorted(store.root.rglob("*")) == before
    (path,) = cache.glob("*.json")
    for folder in (store.root, store.runs, store.runs / "lora"):  # a folder of somebody else's
        shutil.copy(path, folder / f".{path.name}")
    shutil.rmtree(cache)
    store.path("lora", IDS[0]).write_text(
        store.path("lora", IDS[0]).read_text().replace('"test/top1": 0.5', '"test/top1": 0.1')
    )
    assert top1(store)[IDS[0]] == 0.1


def test_a_cache_that_cannot_be_written_is_as_none(store, reads, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert read_by(reads, store) == IDS


def test_a_user_without_a_home_has_no_index(store, reads, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PEFTBENCH_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    for _ in range(2):
        assert read_by(reads, store) == IDS


def test_what_others_may_not_read_is_kept_from_them(store, cache):
    top1(store)
    assert cache.stat().st_mode & 0o077 == 0


def test_few_files_have_no_index(store, cache, monkeypatch):
    monkeypatch.setattr(index, "FEWEST", 5)
    assert set(top1(store).values()) == {0.5}
    assert not cache.exists()


def test_folders_that_were_read_last_are_remembered(tmp_path, cache, make_record, monkeypatch):
    monkeypatch.setattr(index, "MOST_INDEXES", 2)
    for name in "abc":
        store = ResultsStore(tmp_path / name)
        store.add(scoring(make_record, IDS[0], 0.5))
        top1(store)
    assert len(list(cache.glob("*.json"))) == 2


def test_readers_and_writers_at_the_same_time_see_what_was_written(store, make_record):
    wrong: list[object] = []
    over = threading.Event()

    def reading() -> None:
        while not over.is_set():
            table = frame(store)
            if list(table["run_id"]) != IDS or not set(table["top1"]) <= {0.5, 0.25}:
                wrong.append(table)

    readers = [threading.Thread(target=reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(20):
        store.add(scoring(make_record, IDS[turn % 4], 0.25 if turn % 3 else 0.5))
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong
    top1(store)
