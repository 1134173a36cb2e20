"""MATLAB files: what is in them arrives, and what is wrong with them is one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from peftbench.data import matlab
from peftbench.errors import DataError

scipy = pytest.importorskip("scipy.io", exc_type=ImportError)


def write(path: Path, **variables: object) -> Path:
    scipy.savemat(path, variables, do_compression=True)
    return path


def test_numbers_texts_cells_and_structures_arrive(tmp_path: Path) -> None:
    records = np.array([(1, "x.jpg"), (2, "ÿ.jpg")], dtype=[("class", "O"), ("fname", "O")])
    path = write(
        tmp_path / "a.mat",
        X=np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        y=np.array([[3.0], [1.0]]),
        names=np.array(["a/b c.jpg", "ü.jpg"], dtype=object).reshape(-1, 1),
        rows=records,
        one="alone",
        number=2.5,
    )
    found = matlab.read(path)
    assert set(found) == {"X", "y", "names", "rows", "one", "number"}
    assert found["X"].dtype == np.uint8 and found["X"][1, 2, 3] == 23
    assert found["X"].shape == (2, 3, 4)
    assert matlab.whole_numbers(path, found, "y") == [3, 1]
    assert matlab.texts(path, found, "names") == ["a/b c.jpg", "ü.jpg"]
    assert matlab.texts(path, found, "one") == ["alone"]
    assert found["rows"] == [{"class": 1, "fname": "x.jpg"}, {"class": 2, "fname": "ÿ.jpg"}]
    assert found["number"] == 2.5
    assert list(matlab.read(path, ["y"])) == ["y"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([1.0, np.nan]), "cannot convert float NaN to integer"),
        (np.array([1.0, np.inf]), "cannot convert float infinity to integer"),
        (np.array([1.5, 2.0]), "a number in it is not whole"),
        (np.array(["a", "b"], dtype=object), "invalid literal for int() with base 10: 'a'"),
        ("4", "a number in it is not whole"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_named(
    tmp_path: Path, value: object, reason: str
) -> None:
    path = write(tmp_path / "a.mat", labels=value)
    with pytest.raises(DataError) as refusal:
        matlab.whole_numbers(path, matlab.read(path), "labels")
    assert str(refusal.value) == (
        f"{path}: labels holds no whole numbers: {reason}. Fetch it again."
    )


def test_names_that_are_no_texts_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", file_list=np.array([1, 2]))
    with pytest.raises(DataError, match=r"file_list holds .* where texts belong"):
        matlab.texts(path, matlab.read(path), "file_list")
    with pytest.raises(DataError, match="has no variable 'labels'"):
        matlab.texts(path, matlab.read(path), "labels")


def test_what_is_no_matlab_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    for content in (b"", b"x" * 500, b"\x89HDF\r\n\x1a\n" + bytes(600)):
        path.write_bytes(content)
        with pytest.raises(DataError) as refusal:
            matlab.read(path)
        assert str(refusal.value).startswith(f"Cannot read {path}: ")
        assert "\n" not in str(refusal.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="it is no plain file but a named pipe"):
        matlab.read(path)


def acting(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another program be run in the place of the reader; it finds its arguments in `argv`."""

    def command(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-S", "-c", code, *arguments]

    monkeypatch.setattr(matlab, "_command", command)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by it (SIGSEGV)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by it (SIGKILL)"),
        ("import os; os._exit(120)", "ended with status 120"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_file_that_ends_its_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, end: str
) -> None:
    path = write(tmp_path / "a.mat", labels=np.arange(3))
    acting(code, monkeypatch)
    with pytest.raises(DataError) as refusal:
        matlab.read(path)
    assert str(refusal.value) == (
        f"{path} cannot be read as a MATLAB file: SciPy's reader {end}. Fetch it again."
    )


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="the system has no such limit")
def test_a_file_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mat", labels=np.arange(3))
    monkeypatch.setattr(matlab, "SECONDS", 1)
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[4]), 2))"
    acting(f"{limit}\nwhile True: pass", monkeypatch)
    with pytest.raises(DataError, match="SciPy's reader found no end in it"):
        matlab.read(path)
    monkeypatch.setattr(matlab, "SECONDS", 0.01)
    acting("import time; time.sleep(60)", monkeypatch)
    with pytest.raises(DataError, match="SciPy's reader found no end in it"):
        matlab.read(path)


def test_a_full_disk_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mat", labels=np.arange(3))
    acting("print('\"No space left on device\"'); raise SystemExit(4)", monkeypatch)
    with pytest.raises(DataError) as refusal:
        matlab.read(path)
    assert str(refusal.value).startswith(f"Cannot unpack {path} into ")
    assert str(refusal.value).endswith(
        ": No space left on device. Set TMPDIR to a folder with space."
    )


def test_modules_beside_the_program_do_not_stand_in_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mat", labels=np.arange(3))
    (tmp_path / "scipy.py").write_text("raise SystemExit(9)")
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert matlab.whole_numbers(path, matlab.read(Path("a.mat")), "labels") == [0, 1, 2]
