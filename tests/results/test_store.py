"""Promises of the results store: nothing lost, nothing half-written, nothing run twice."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from peftbench.errors import StoreError
from peftbench.results import atomic, locks
from peftbench.results.guard import Busy
from peftbench.results.locks import SILENT_SECONDS, STALE_SECONDS, SUBMISSION_VARIABLE
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore, StoreWarning

RUN = "0123456789abcdef"


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def test_a_record_comes_back_equal_to_the_last_bit(tmp_path, make_record):
    record = make_record()
    store = ResultsStore(tmp_path / "new" / "results")
    path = store.add(record)
    assert path == tmp_path / "new" / "results" / "runs" / "lora" / f"{RUN}.json"
    assert store.get(RUN) == store.get(RUN, "lora") == record
    assert list(store.records()) == [record]


def test_records_can_be_read_without_their_epochs(tmp_path, make_record):
    record = make_record()
    store = ResultsStore(tmp_path)
    store.add(record)
    (short,) = store.records(history=False)
    assert len(record.history) == 1 and short == dataclasses.replace(record, history=[])
    assert store.scan(history=False).records == (short,)


def test_half_a_surrogate_pair_of_a_file_name_can_be_read_back(tmp_path, make_record):
    # what Python makes of the byte 0xe9 in a name that is not UTF-8; JSON writes it as an escape
    record = make_record(notes=["caf\udce9.png is empty"])
    store = ResultsStore(tmp_path)
    store.add(record)
    assert store.get(RUN) == record


def test_a_missing_run_is_none_and_an_empty_store_is_empty(tmp_path):
    store = ResultsStore(tmp_path / "nothing")
    assert store.get(RUN) is None and store.get(RUN, "lora") is None
    assert list(store.records()) == [] and store.done() == frozenset()
    assert not (tmp_path / "nothing").exists()


def test_artefacts_lie_beside_the_record(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    expected = tmp_path / "runs" / "lora" / RUN
    assert store.artefacts(make_record()) == store.artefacts(("lora", RUN)) == expected


def test_files_of_a_run_are_not_taken_for_records(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    store.add(make_record())
    folder = store.artefacts(("lora", RUN))
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    (tmp_path / "runs" / "lora" / ".half.json.1.tmp").write_text("{")
    (tmp_path / "runs" / "lora" / "._copied.json").write_text("binary")
    assert len(list(store.records())) == 1 and store.broken() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\\b"])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    with pytest.raises(StoreError, match="cannot be a file name"):
        ResultsStore(tmp_path).path(name, RUN)
    with pytest.raises(StoreError, match="cannot be a file name"):
        ResultsStore(tmp_path).path("lora", name)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_an_ok_record_is_kept_when_a_rerun_fails(tmp_path, make_record, status):
    store, good = ResultsStore(tmp_path), make_record()
    bad = make_record(status=status, error="it broke", metrics={})
    store.add(good)
    store.add(bad)
    assert store.get(RUN) == good
    store.add(bad, replace=True)
    assert store.get(RUN) == bad
    store.add(good)
    assert store.get(RUN) == good


def test_a_newer_ok_record_replaces_an_ok_record(tmp_path, make_record):
    store, newer = ResultsStore(tmp_path), make_record(finished="2026-01-01")
    store.add(make_record())
    store.add(newer)
    assert store.get(RUN) == newer


def test_a_record_without_a_method_is_refused(tmp_path, make_record):
    with pytest.raises(StoreError, match="names no method"):
        ResultsStore(tmp_path).add(dataclasses.replace(make_record(), spec={}))


def test_done_holds_settled_runs_only(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    for status in Status:
        store.add(make_record(run_id=status.lower(), status=status))
    (tmp_path / "runs" / "lora" / "broken.json").write_text("{")
    assert store.done() == {"ok", "unsupported"}


def test_a_failure_between_write_and_replace_leaves_the_old_record(
    tmp_path, make_record, monkeypatch
):
    store = ResultsStore(tmp_path)
    path = store.add(make_record())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match=rf"{path} cannot be written: No space left"):
            store.add(make_record(finished="2026-01-01"))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_process_killed_between_write_and_replace_leaves_the_old_record(tmp_path, make_record):
    store, record = ResultsStore(tmp_path), make_record()
    path = store.add(record)
    code = """
import os, sys
from pathlib import Path
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore
record = RunRecord.from_json(Path(sys.argv[2]).read_text())
os.replace = lambda *_: os._exit(9)
ResultsStore(sys.argv[1]).add(record)
"""
    process = run_python(code, tmp_path, path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 9, errors
    assert len(list(path.parent.iterdir())) == 2  # the leftover proves that the crash happened
    assert store.get(RUN) == record and list(store.records()) == [record]
    store.add(record)  # and the lock of the dead process is gone


def test_concurrent_writers_leave_whole_files(tmp_path, make_record):
    record = make_record()
    source = tmp_path / "record.json"
    source.write_text(record.to_json())
    code = """
import dataclasses, sys
from pathlib import Path
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
store, me = ResultsStore(sys.argv[1]), sys.argv[3]
record = RunRecord.from_json(Path(sys.argv[2]).read_text())
sys.stdin.readline()
for i in range(10):
    store.add(dataclasses.replace(record, run_id=f"own-{me}-{i}"))
    status = Status.OK if me == "2" and i == 3 else Status.ERROR
    store.add(dataclasses.replace(record, run_id="shared", status=status, error=me * 5000))
"""
    writers = [run_python(code, tmp_path, source, i) for i in range(3)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors
    scan = ResultsStore(tmp_path).scan()
    assert scan.broken == () and len(scan.records) == 3 * 10 + 1
    shared = ResultsStore(tmp_path).get("shared")
    assert shared.status is Status.OK and shared.error == "2" * 5000  # no failure won over it
    assert not list(tmp_path.rglob("*.tmp"))


BROKEN = {
    "half-written": '{"run_id": "x", "spec"',
    "empty": "",
    "not a record": "[1, 2]",
    "unknown status": '{"run_id": "x", "spec": {"method": {"name": "lora"}}, "status": "FINE"}',
    "missing field": '{"run_id": "x", "spec": {}, "status": "OK", "history": [{"epoch": 1}]}',
    "wrong history": '{"run_id": "x", "spec": {}, "status": "OK", "history": [3]}',
    "epoch without a rate": (
        '{"run_id": "x", "spec": {"method": {"name": "lora"}}, "status": "OK", "history": '
        '[{"epoch": 1, "loss": 1, "accuracy": 1, "seconds": 1}]}'
    ),
    "no method": '{"run_id": "x", "spec": {}, "status": "OK"}',
    "spec is text": '{"run_id": "x", "spec": "lora", "status": "OK"}',
    "text metric": '{"run_id": "x", "spec": {"method": {"name": "lora"}}, "status": "OK", '
    '"metrics": {"test/top1": "high"}}',
    "other id": '{"run_id": "y", "spec": {"method": {"name": "lora"}}, "status": "OK"}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_and_hides_no_other(tmp_path, make_record, text):
    store = ResultsStore(tmp_path)
    store.add(make_record())
    path = tmp_path / "runs" / "lora" / "x.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=re.escape(str(path))):
        store.get("x", "lora")
    with pytest.raises(StoreError, match=re.escape(str(path))):
        store.get("x")
    with pytest.warns(StoreWarning, match=re.escape(str(path))):
        assert [record.run_id for record in store.records()] == [RUN]
    assert [str(path) in str(error) for error in store.broken()] == [True]


def test_a_rerun_repairs_a_broken_file(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    path = store.add(make_record())
    path.write_bytes(b"\xff\xfe")
    failed = make_record(status=Status.ERROR)
    store.add(failed)
    assert store.get(RUN) == failed


def test_of_two_copies_of_a_run_the_finished_one_is_current(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    good = make_record(finished="2025-01-01")
    later = make_record(status=Status.ERROR, finished="2026-01-01")
    store.add(good)
    other = tmp_path / "runs" / "copied" / f"{RUN}.json"
    other.parent.mkdir()
    other.write_text(later.to_json())
    assert store.get(RUN) == good


def test_check_writable_leaves_nothing_but_the_folder(tmp_path):
    ResultsStore(tmp_path / "a" / "b").check_writable()
    assert [p.name for p in (tmp_path / "a" / "b").rglob("*")] == ["runs"]


@pytest.mark.parametrize("below", ["", "results"])
def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path, make_record, below):
    file = tmp_path / "file"
    file.write_text("mine")
    store = ResultsStore(file / below)
    with pytest.raises(StoreError) as caught:
        store.check_writable()
    message = str(caught.value)
    assert str(file / below) in message and "\n" not in message
    assert "cannot be written" in message and "Choose another results folder" in message
    with pytest.raises(StoreError, match="cannot be written"):
        store.add(make_record())
    with pytest.raises(StoreError, match="cannot be written"), store.claim(RUN, "lora"):
        pass
    assert file.read_text() == "mine" and list(store.records()) == []


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):  # root would be let in
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "open", refused, raising=False)
    with pytest.raises(StoreError, match="Permission denied"):
        ResultsStore(tmp_path).check_writable()


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        ResultsStore(tmp_path).check_writable()


def test_a_claim_holds_and_releases(tmp_path):
    store = ResultsStore(tmp_path)
    with store.claim(RUN, "lora") as lock:
        owner = json.loads(lock.read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), os.uname().nodename)
        with (
            pytest.raises(Busy, match=rf"process {os.getpid()} on .* delete {lock}"),
            store.claim(RUN, "lora"),
        ):
            pass
        assert lock.exists()
        with store.claim(RUN, "linear"), store.claim("other", "lora"):
            pass
    assert not lock.exists()
    with store.claim(RUN, "lora"):
        pass


def test_a_claim_is_released_when_the_run_fails(tmp_path):
    store = ResultsStore(tmp_path)
    with pytest.raises(ZeroDivisionError), store.claim(RUN, "lora") as lock:
        raise ZeroDivisionError
    assert not lock.exists()


def test_a_claim_of_another_living_process_is_respected_and_of_a_dead_one_taken_over(tmp_path):
    code = """
import sys
from peftbench.results.store import ResultsStore
with ResultsStore(sys.argv[1]).claim(sys.argv[2], "lora"):
    print("held", flush=True)
    sys.stdin.readline()
"""
    process = run_python(code, tmp_path, RUN)
    assert process.stdout.readline() == "held\n"
    store = ResultsStore(tmp_path)
    with pytest.raises(Busy, match=f"process {process.pid} "), store.claim(RUN, "lora"):
        pass
    process.kill()  # not yet waited for: a zombie holds nothing
    lock = store.path("lora", RUN).with_suffix(".lock")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock.exists()
    with store.claim(RUN, "lora"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    process.communicate()


def test_of_many_claims_at_once_one_wins(tmp_path):
    store = ResultsStore(tmp_path)
    store.check_writable()
    lock = store.path("lora", RUN).with_suffix(".lock")
    lock.parent.mkdir()
    lock.write_text(json.dumps({**owner(), "pid": 2**22 + 1, "process_start": 5}))  # a dead one
    start, stop, won = threading.Barrier(8), threading.Barrier(8), []

    def contend() -> None:
        start.wait()
        try:
            with store.claim(RUN, "lora"):
                won.append(True)
                stop.wait()
        except Busy:
            stop.wait()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert won == [True]


def owner() -> dict[str, object]:
    """This process, as a lock file names it."""
    return dataclasses.asdict(locks.Owner.current())


def leave_lock(store: ResultsStore, text: str, age: float = 0.0) -> Path:
    lock = store.path("lora", RUN).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(text)
    then = lock.stat().st_mtime - age
    os.utime(lock, (then, then))
    return lock


@pytest.mark.parametrize(
    "change",
    [{"pid": 2**22 + 1}, {"process_start": -1}, {"pid": 2**22 + 1, "beats": 0.0}],
    ids=["no such process", "pid given out again", "of an earlier version"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fresh_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, change):
    store = ResultsStore(tmp_path)
    leave_lock(store, json.dumps({**owner(), **change}))
    with store.claim(RUN, "lora") as lock:
        assert json.loads(lock.read_text()) | {"since": 0} == owner() | {"since": 0}


ELSEWHERE = {
    "another host": {"host": "elsewhere"},
    "a container on this host": {"namespace": "pid:[1]"},
    "another machine of this name": {"boot": "another"},
    "a container on another host of this name": {"boot": "another", "namespace": "pid:[1]"},
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE.keys())
@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_lock_whose_process_cannot_be_seen_is_taken_over_once_it_is_silent(
    tmp_path, monkeypatch, change, version
):
    monkeypatch.setattr(locks, "uptime", lambda: 30 * 24 * 3600.0)
    raw, patience = {**owner(), **change}, SILENT_SECONDS
    if version == "earlier":  # whose holders never touch their locks
        patience = STALE_SECONDS
        del raw["beats"]
    young, old = ResultsStore(tmp_path / "young"), ResultsStore(tmp_path / "old")
    leave_lock(young, json.dumps(raw), age=patience - 100)
    with pytest.raises(Busy, match="already running: process"), young.claim(RUN, "lora"):
        pass
    assert (young.holder(RUN, "lora") or "").startswith("process ")
    leave_lock(old, json.dumps(raw), age=patience + 100)
    assert old.holder(RUN, "lora") is None
    with old.claim(RUN, "lora"):
        pass


@pytest.mark.parametrize(
    ("version", "up", "age", "taken"),
    [
        ("this", 300.0, 400.0, True),  # last touched before this machine was started
        ("this", 5000.0, 400.0, False),  # since then, so by another machine of its name
        ("this", 60.0, 400.0, False),  # another machine may not have come to say something yet
        ("this", None, 400.0, False),
        ("earlier", 300.0, 400.0, True),
        ("earlier", 5000.0, 400.0, False),
    ],
)
def test_a_lock_from_before_a_reboot_is_told_from_one_of_a_namesake(
    tmp_path, monkeypatch, version, up, age, taken
):
    monkeypatch.setattr(locks, "uptime", lambda: up)
    raw = {**owner(), "boot": "another"}
    if version == "earlier":
        del raw["beats"]
    store = ResultsStore(tmp_path)
    leave_lock(store, json.dumps(raw), age=age)
    assert (store.holder(RUN, "lora") is None) is taken


CUT_SHORT = {
    "empty": "",
    "half": '{"host": "vm", "pid": 12',
    "no mapping": "[1]",
    "nothing but zeros": "\0" * 300,
    "a key is missing": '{"host": "vm", "pid": 12}',
    "a host of another type": json.dumps({**owner(), "host": ["vm"]}),
    "a time that never was": json.dumps({**owner(), "since": 1e300}),
    "a word for a terminal": json.dumps({**owner(), "host": "\x1b[2J"}),
    "a process without a number": json.dumps({**owner(), "pid": "1"}),
    "deep": "[" * 60_000,
}


@pytest.mark.parametrize("text", CUT_SHORT.values(), ids=CUT_SHORT.keys())
def test_a_lock_that_was_cut_short_holds_for_minutes_and_is_then_taken_over(tmp_path, text):
    young, old = ResultsStore(tmp_path / "young"), ResultsStore(tmp_path / "old")
    leave_lock(young, text, age=SILENT_SECONDS - 100)
    with pytest.raises(Busy, match="does not name, as it was cut short"), young.claim(RUN, "lora"):
        pass
    leave_lock(old, text, age=SILENT_SECONDS + 100)
    with old.claim(RUN, "lora") as lock:
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_lock_from_the_future_ages_from_now_on(tmp_path):
    store = ResultsStore(tmp_path)
    lock = leave_lock(store, json.dumps({**owner(), "host": "elsewhere"}), age=-7 * 24 * 3600.0)
    ahead = lock.stat().st_mtime
    assert store.holder(RUN, "lora") is not None
    assert lock.stat().st_mtime < ahead - 6 * 24 * 3600


def test_a_holder_touches_its_lock_all_the_time_and_no_lock_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    store = ResultsStore(tmp_path)
    with store.claim(RUN, "lora") as lock:
        for _ in range(2):
            os.utime(lock, (1e9, 1e9))
            deadline = time.monotonic() + 60
            while lock.stat().st_mtime == 1e9:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        mine = locks.Owner.read(lock)
    assert not lock.exists() and not locks.touch(lock, mine)
    lock.write_text(json.dumps({**owner(), "host": "elsewhere"}))
    os.utime(lock, (1e9, 1e9))
    assert not locks.touch(lock, mine)
    assert lock.stat().st_mtime == 1e9


def test_a_submission_that_is_started_again_goes_on_with_its_own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv(SUBMISSION_VARIABLE, "launch-7")
    raw = owner()
    for change, taken in (({}, True), ({"submission": "launch-8"}, False), ({"pid": 1}, True)):
        store = ResultsStore(tmp_path / str(change))
        leave_lock(store, json.dumps({**raw, "host": "the first node", **change}))
        assert (store.holder(RUN, "lora") is None) is taken
    store = ResultsStore(tmp_path / "lives")
    leave_lock(store, json.dumps(raw))  # this process, which is seen to be alive
    assert store.holder(RUN, "lora") is not None


def test_a_guard_of_another_user_can_still_be_locked(tmp_path, make_record, monkeypatch):
    store = ResultsStore(tmp_path)
    store.add(make_record())
    guard, opened, touched = tmp_path / "runs" / ".store.lock", os.open, os.utime

    def refuse(path, *rest, **options):
        if Path(path) == guard and rest and rest[0] & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    def keep(path, *rest, **options):
        if path == guard:
            raise PermissionError(1, "Operation not permitted", str(path))
        return touched(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "utime", keep)
    with store.claim(RUN, "lora"), pytest.raises(Busy), store.claim(RUN, "lora"):
        pass
    leave_lock(store, json.dumps({**owner(), "host": "elsewhere"}), age=SILENT_SECONDS + 100)
    assert store.holder(RUN, "lora") is None
    assert not list((tmp_path / "runs").glob("*.tmp"))


@pytest.mark.parametrize(("folder", "guard"), [(0o755, 0o644), (0o775, 0o664), (0o777, 0o666)])
def test_those_who_share_the_folder_share_its_guard(tmp_path, folder, guard):
    store = ResultsStore(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(folder)
    before = os.umask(0o022)
    try:
        store.check_writable()
        with store.claim(RUN, "lora"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "runs" / ".store.lock").stat().st_mode & 0o777 == guard


def test_what_nobody_holds_is_swept_and_what_somebody_may_hold_stays(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    record = store.add(make_record())
    method = record.parent

    def leave(path: Path, age: float = 0.0, text: str = "half") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        return path

    far = json.dumps({**owner(), "host": "elsewhere"})
    dead = locks.temporary_tag().replace(f"{os.getpid()}-", f"{2**22 + 1}-")
    swept = [
        leave(method / "silent.lock", SILENT_SECONDS + 100, far),
        leave(method / "cut.lock", SILENT_SECONDS + 100, ""),
        leave(method / "dead.lock", 0, json.dumps({**owner(), "pid": 2**22 + 1})),
        leave(method / f".x.json.{dead}.tmp"),
        leave(method / "x" / f".predictions.npz.{dead}.tmp"),
        leave(method / ".x.json.12.0123abcd.tmp", 7200),  # of an earlier version, on any host
        leave(tmp_path / ".table.csv.12-0123abcd.0123abcd.tmp", 7200),
        leave(tmp_path / "submitted" / "a" / f".launcher.{dead}.tmp"),
        leave(tmp_path / "checkpoints" / ".x.safetensors.0123abcd.tmp", 7200),
        leave(method / "x" / ".tuned.12.part", 7200),
        leave(tmp_path / "runs" / ".write-test-12-0123abcd", 7200),
        leave(tmp_path / ".scratch" / "silent" / "runs" / "lora" / "silent" / "card.json"),
        leave(tmp_path / ".scratch" / "nobody" / "process1.json"),
    ]
    kept = [
        record,
        leave(method / "far.lock", SILENT_SECONDS - 100, far),
        leave(method / "new.lock", 0, ""),
        leave(method / f".x.json.{locks.temporary_tag()}.tmp"),  # of this process
        leave(method / ".x.json.12.0123abcd.tmp.mine", 7200),
        leave(method / ".x.json.99.0123abcd.tmp", 100),
        leave(method / "x" / "notes.tmp", 7200),
        leave(method / "x" / "notes.part", 7200),
        leave(tmp_path / "checkpoints" / ".x.safetensors.0123abcd.tmp2", 7200),
        leave(tmp_path / "checkpoints" / ".y.safetensors.0123abcd.tmp", 100),
        leave(tmp_path / ".scratch" / "far" / "runs" / "lora" / "far" / "card.json"),
    ]
    removed = store.tidy()
    assert [path for path in swept if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert len(removed) == len(swept)
    assert store.tidy() == []
    assert ResultsStore(tmp_path / "nothing").tidy() == []


def test_the_folder_of_an_import_that_was_killed_is_swept_and_that_of_a_living_one_stays(tmp_path):
    store = ResultsStore(tmp_path)
    (tmp_path / "runs").mkdir()
    alive = locks.temporary_tag()
    dead = alive.replace(f"{os.getpid()}-", f"{2**22 + 1}-")

    def staged(tag: str, age: float, newest: float) -> Path:
        folder = tmp_path / f".import.{tag}.part"
        record = folder / "runs" / "lora" / "x.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        for path, seconds in [(record, newest), *((up, age) for up in record.parents[:3])]:
            os.utime(path, (time.time() - seconds, time.time() - seconds))
        return folder

    swept = [
        staged(dead, 0, 0),
        staged("12.0123abcd", 7200, 7200),  # of an earlier version
        staged("12-0123abcd.0123abcd", 7200, 7200),  # of another host
    ]
    kept = [
        staged(alive, 0, 0),
        staged("13-0123abcd.0123abcd", 7200, 100),  # its last file has just been written
    ]
    link = tmp_path / ".import.14.0123abcd.part"
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "mine").write_text("")
    link.symlink_to(target)
    assert sorted(store.tidy()) == sorted(swept)
    assert [path for path in swept if path.exists()] == []
    assert all((path / "runs" / "lora" / "x.json").is_file() for path in kept)
    assert (target / "mine").is_file()


def test_a_cluster_that_knows_its_process_gone_releases_its_lock_and_no_other(
    tmp_path, monkeypatch
):
    store = ResultsStore(tmp_path)
    monkeypatch.setenv(SUBMISSION_VARIABLE, "launch-7")
    with store.claim(RUN, "lora") as lock:
        held = lock.read_text()
    monkeypatch.delenv(SUBMISSION_VARIABLE)  # the launcher is part of none
    lock.write_text(held.replace('"host": "', '"host": "far-'))  # whose processes nobody sees here
    store.release(RUN, "lora", "launch-8")
    store.release(RUN, "lora", "")
    assert "far-" in (store.holder(RUN, "lora") or "")
    store.release(RUN, "lora", "launch-7")
    assert store.holder(RUN, "lora") is None
    store.release(RUN, "lora", "launch-7")  # there is none any more

    # a lock of a process outside of any submission, or from before there were any
    raw = json.loads(held)
    del raw["submission"]
    lock.write_text(json.dumps(raw))
    store.release(RUN, "lora", "")
    assert store.holder(RUN, "lora") is not None


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path):
    store = ResultsStore(tmp_path)
    with store.claim(RUN, "lora") as lock:
        lock.write_text(json.dumps({**owner(), "host": "elsewhere"}))
    assert lock.exists()


def test_predictions_come_back_equal(tmp_path):
    store = ResultsStore(tmp_path)
    path = store.save_predictions(
        "lora",
        RUN,
        classes=np.array([3, 1, 2], dtype=np.int64),
        confidence=np.array([0.1, 1 / 3, 1.0], dtype=np.float32),
        margin=np.array([0.0, -0.0, np.inf], dtype=np.float32),
        labels=[3, 1, 0],
    )
    assert path == tmp_path / "runs" / "lora" / RUN / "predictions.npz"
    found = store.load_predictions("lora", RUN)
    assert found.classes.dtype == found.labels.dtype == np.int32
    assert found.confidence.dtype == found.margin.dtype == np.float32
    np.testing.assert_array_equal(found.classes, [3, 1, 2])
    np.testing.assert_array_equal(found.confidence, np.float32([0.1, 1 / 3, 1.0]))
    np.testing.assert_array_equal(found.margin, np.float32([0.0, -0.0, np.inf]))
    np.testing.assert_array_equal(found.labels, [3, 1, 0])
    assert [p.name for p in path.parent.iterdir()] == ["predictions.npz"]


def test_predictions_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(StoreError, match="arrays of one length"):
        ResultsStore(tmp_path).save_predictions(
            "lora", RUN, classes=[1, 2], confidence=[0.5], margin=[0.1, 0.2], labels=[1, 2]
        )


def test_missing_predictions_are_none_and_broken_or_pickled_ones_are_named(tmp_path):
    store = ResultsStore(tmp_path)
    assert store.load_predictions("lora", RUN) is None
    path = store.artefacts(("lora", RUN)) / "predictions.npz"
    path.parent.mkdir(parents=True)
    for write in (
        lambda: path.write_bytes(b"PK\x03\x04 half"),
        lambda: path.write_bytes(b""),
        lambda: np.savez(path, classes=np.array([{}], dtype=object)),
        lambda: np.savez(path, classes=np.zeros(3)),
    ):
        write()
        with pytest.raises(StoreError, match=re.escape(str(path))):
            store.load_predictions("lora", RUN)


def test_importing_results_is_cheap_and_loads_no_torch():
    code = """
import sys
import peftbench.results, peftbench.results.store
assert not {"torch", "timm", "numpy", "pandas", "matplotlib"} & sys.modules.keys()
import peftbench.results.frame
assert not {"torch", "timm", "matplotlib"} & sys.modules.keys()
"""
    process = run_python(code)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_a_record_of_a_newer_schema_is_read(tmp_path, make_record):
    store, record = ResultsStore(tmp_path), make_record()
    path = store.add(record)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99, "future": 1}))
    assert store.get(RUN) == dataclasses.replace(record, schema=99)
    assert isinstance(store.get(RUN), RunRecord)
