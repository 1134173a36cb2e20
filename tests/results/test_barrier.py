"""Promises of the one wait for many files: after it, all of them would survive a power cut."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from peftbench.errors import StoreError
from peftbench.results import barrier as barriers
from peftbench.results.barrier import LOCAL, barrier
from peftbench.results.bundles import incoming
from peftbench.results.bundles.incoming import import_results
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.identity import run_id_of
from peftbench.results.store import ResultsStore

EXT4, NFS = 0xEF53, 0x6969


class Libc:
    """A C library whose file systems are of one kind, and whose `syncfs` ends with `number`."""

    def __init__(self, kind: int, number: int = 0) -> None:
        self.kind, self.number, self.calls = kind, number, 0

    def statfs(self, path: bytes, status: ctypes.Array) -> int:
        assert os.path.exists(path)
        ctypes.c_long.from_buffer(status).value = self.kind
        return 0

    def syncfs(self, descriptor: int) -> int:
        self.calls += 1
        ctypes.set_errno(self.number)
        return -1 if self.number else 0


@pytest.fixture
def synced(monkeypatch):
    """Names of the files and folders that are synchronised one by one."""
    seen = []
    fsync = os.fsync

    def counting(descriptor):
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counting)
    return seen


@pytest.fixture
def files(tmp_path):
    """Three files in a folder."""
    (tmp_path / "folder").mkdir()
    made = [tmp_path / "folder" / name for name in "abc"]
    for path in made:
        path.write_text(path.name)
    return made


def use(monkeypatch, libc):
    monkeypatch.setattr(barriers, "_libc", lambda: libc)
    return libc


@pytest.mark.parametrize("kind", sorted(LOCAL))
def test_a_local_file_system_is_synchronised_once(monkeypatch, files, synced, kind):
    libc = use(monkeypatch, Libc(kind))
    barrier(files, [files[0].parent])
    assert libc.calls == 1 and synced == []


@pytest.mark.parametrize("libc", [None, Libc(NFS), Libc(EXT4, errno.ENOSYS)])
def test_elsewhere_every_file_and_folder_is_waited_for(monkeypatch, files, synced, libc):
    use(monkeypatch, libc)
    barrier(files, [files[0].parent])
    assert synced == ["a", "b", "c", "folder"]


def test_a_disk_that_is_full_is_told_and_not_asked_again(monkeypatch, files, synced):
    use(monkeypatch, Libc(EXT4, errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device"):
        barrier(files)
    assert synced == []


def test_nothing_is_waited_for_where_nothing_was_written(monkeypatch, synced):
    libc = use(monkeypatch, Libc(EXT4))
    barrier([])
    assert libc.calls == 0 and synced == []


@pytest.fixture
def bundle(tmp_path, make_record, monkeypatch):
    """Five runs of two methods, each with a card: ten files."""
    store = ResultsStore(tmp_path / "here")
    for seed in range(5):
        record = make_record(method=("lora", "ssf")[seed % 2])
        record.spec["seed"] = seed
        object.__setattr__(record, "run_id", run_id_of(record.spec))
        store.add(record)
        store.artefacts(record).mkdir()
        (store.artefacts(record) / "card.json").write_text(f'{{"run_id": "{record.run_id}"}}')
    return export_results(store.root, tmp_path / "runs.zip").path


@pytest.fixture
def events(monkeypatch, synced):
    """What happens: "files N" and "folders" for barriers, "move" for a file that comes in."""
    seen = []
    replace = os.replace

    def waited(files, folders=()):
        assert all(path.is_file() for path in files) and all(path.is_dir() for path in folders)
        seen.append(f"files {len(files)}" if files else "folders")

    def moved(source, target):
        seen.append("move")
        replace(source, target)

    monkeypatch.setattr(incoming, "barrier", waited)
    monkeypatch.setattr(os, "replace", moved)
    return seen


def test_an_import_waits_once_before_any_file_comes_in_and_once_after_the_last(
    bundle, tmp_path, events, synced
):
    assert len(import_results(bundle, tmp_path / "there").added) == 5
    assert events == ["files 10", *["move"] * 10, "folders"]
    assert synced == []  # no lock either, which is held for a moment


def test_a_long_import_waits_for_batches(bundle, tmp_path, events, monkeypatch):
    monkeypatch.setattr(incoming, "MOST_FILES", 4)
    import_results(bundle, tmp_path / "there")
    assert events == ["files 4", "files 4", "files 2", *["move"] * 10, "folders"]


def test_large_files_wait_in_smaller_batches(bundle, tmp_path, events, monkeypatch):
    monkeypatch.setattr(incoming, "MOST_WAITING", 500)  # of a card and a record of 2,000 bytes
    import_results(bundle, tmp_path / "there")
    assert events == [*["files 2"] * 5, *["move"] * 10, "folders"]


def test_the_folders_of_an_import_are_synchronised_up_to_the_one_that_it_was_made_in(
    bundle, tmp_path, synced, monkeypatch
):
    use(monkeypatch, None)
    done = import_results(bundle, tmp_path / "there")
    folders = synced[10:]
    assert sorted(set(folders)) == sorted(
        {"runs", "there", tmp_path.name, "lora", "ssf", *done.added}
    )


@pytest.mark.parametrize("which", [1, 2])
def test_a_disk_that_fails_at_a_barrier_leaves_the_folder_as_it_was(
    bundle, tmp_path, monkeypatch, which
):
    calls = []

    def failing(files, folders=()):
        calls.append(len(files))
        if len(calls) == which:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(incoming, "barrier", failing)
    with pytest.raises(StoreError, match=r"Input/output error") as refused:
        import_results(bundle, tmp_path / "there")
    assert "\n" not in str(refused.value) and "mported" in str(refused.value)
    assert not (tmp_path / "there").exists()
