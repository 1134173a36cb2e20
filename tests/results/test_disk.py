"""A disk that is full is told as that, in one line, and nothing is left half-written."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench.errors import DiskFull, StoreError
from peftbench.results.atomic import write_atomic
from peftbench.results.disk import explained, full_number, writing
from peftbench.results.store import ResultsStore

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_told_with_its_path_and_what_is_free(tmp_path: Path, number: int) -> None:
    path = tmp_path / "runs" / "lora" / "a.json"

    def fill(file: object) -> None:
        raise OSError(number, "in other words")

    with pytest.raises(DiskFull) as refused:
        write_atomic(path, fill)
    text = str(refused.value)
    assert text.startswith(f"{path} cannot be written: ") and "\n" not in text
    assert "disk full" in text and " MB free)" in text and "what is finished is kept" in text
    assert list(path.parent.iterdir()) == []


def test_another_cause_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Permission denied") as refused, writing(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    assert not isinstance(refused.value, DiskFull) and "disk full" not in str(refused.value)
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a"):
        raise ZeroDivisionError


def test_the_cause_is_found_behind_other_exceptions_and_in_the_words_of_rust() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as first:
            raise RuntimeError("the archive cannot be closed") from first
    except RuntimeError as second:
        assert full_number(second) == errno.EDQUOT
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert full_number(ValueError(told)) == errno.ENOSPC
    assert full_number(ValueError("No such file (os error 2)")) is None
    assert full_number(OSError("no number")) is None
    assert full_number(None) is None


def test_where_it_was_comes_from_the_exception_or_from_who_knows_better() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/nowhere/a.csv")
    assert str(explained(error)).startswith("/nowhere/a.csv cannot be written: ")
    assert str(explained(error, "b.csv")).startswith("b.csv cannot be written: ")
    assert explained(DiskFull("as told before"), "b.csv").args == ("as told before",)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_limit_on_file_sizes_stops_predictions_and_records_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    code = """
import resource, sys
import numpy as np
from peftbench.errors import DiskFull
from peftbench.results.store import ResultsStore
store = ResultsStore(sys.argv[1])
with store.claim("a", "lora"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    noise = np.random.default_rng(0).random(100_000, dtype=np.float32)
    labels = np.zeros(100_000, dtype=np.int32)
    try:
        store.save_predictions(
            "lora", "a", classes=labels, confidence=noise, margin=noise, labels=labels
        )
    except DiskFull as e:
        print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "predictions.npz cannot be written: File too large (disk full for this" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".store.lock"}


def test_a_claim_on_a_full_disk_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResultsStore(tmp_path)
    store.check_writable()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DiskFull, match="disk full"), store.claim("a", "lora"):
            pass
    assert list((tmp_path / "runs" / "lora").iterdir()) == []
    with store.claim("a", "lora"):
        pass
