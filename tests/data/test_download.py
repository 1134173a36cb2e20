"""Downloads: whole, resumed, and never something else than what was published."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import web

from peftbench.data.download import RemoteFile, Unreachable, fetch
from peftbench.errors import DataError

CONTENT = bytes(range(256)) * 5000  # 1.28 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def remote(site: web.Site, **changes: object) -> RemoteFile:
    fields = {"url": f"{site.address}/a.bin", "name": "a.bin", "sha256": SHA256}
    return RemoteFile(**{**fields, "bytes": len(CONTENT), **changes})


def test_a_file_arrives_whole_and_is_not_fetched_again(tmp_path: Path) -> None:
    with web.serving({"/a.bin": CONTENT}) as site:
        path = fetch(remote(site), tmp_path / "new" / "folder")
        assert path.read_bytes() == CONTENT
        assert fetch(remote(site), path.parent) == path
        assert site.asked == [("/a.bin", "")]
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with web.serving({"/a.bin": CONTENT}) as site:
        site.cut_after = [1000, 500_000]
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        assert site.asked == [
            ("/a.bin", ""), ("/a.bin", "bytes=1000-"), ("/a.bin", "bytes=501000-"),
        ]  # fmt: skip


def test_an_interrupted_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:7777])
    with web.serving({"/a.bin": CONTENT}) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        assert site.asked == [("/a.bin", "bytes=7777-")]


def test_a_whole_part_is_taken_and_a_foreign_one_fetched_anew(tmp_path: Path) -> None:
    with web.serving({"/a.bin": CONTENT}) as site:
        (tmp_path / "a.bin.part").write_bytes(CONTENT)
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        (tmp_path / "a.bin").unlink()
        (tmp_path / "a.bin.part").write_bytes(b"x" * 100)
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


def test_a_host_that_sends_no_parts_sends_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 100)
    with web.serving({"/a.bin": CONTENT}) as site:
        site.ranges = False
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    other = CONTENT[:-1] + b"x"
    hashes = {"sha256": "", "md5": "", kind: hashlib.new(kind, CONTENT).hexdigest()}
    with web.serving({"/a.bin": other}) as site:
        with pytest.raises(DataError, match=f"wrong checksum \\({kind} "):
            fetch(remote(site, **hashes), tmp_path)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "a.bin").write_bytes(other)  # put there by hand: told, and not removed
        with pytest.raises(DataError, match=r"wrong checksum .* Remove it and fetch"):
            fetch(remote(site, **hashes), tmp_path)
        assert (tmp_path / "a.bin").exists()


def test_the_hash_that_the_hub_states_is_held_against_the_file(tmp_path: Path) -> None:
    with web.serving({"/store": CONTENT}) as site:
        site.redirects = {"/a.bin": ("/store", SHA256), "/b.bin": ("/store", "0" * 64)}
        file = remote(site, sha256="", bytes=None)
        assert fetch(file, tmp_path).read_bytes() == CONTENT
        wrong = remote(site, sha256="", bytes=None, url=f"{site.address}/b.bin", name="b.bin")
        with pytest.raises(DataError, match=r"published 000000000000\.\.\."):
            fetch(wrong, tmp_path)


def test_a_page_in_place_of_the_file_is_told_before_it_is_taken(tmp_path: Path) -> None:
    with web.serving({"/a.bin": b"<html>log in</html>"}) as site:
        told = r"offers 19 bytes, and a\.bin has 1,280,000\. .* perhaps a page"
        with pytest.raises(Unreachable, match=told):
            fetch(remote(site), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_reached_fails_fast(tmp_path: Path) -> None:
    with web.serving({}) as site:
        with pytest.raises(Unreachable, match=re.escape("/a.bin answers 404 Not Found")):
            fetch(remote(site), tmp_path)
        gone = remote(site)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"Cannot reach http.*Connection refused.* goes on"):
        fetch(gone, tmp_path)
    assert time.monotonic() - began < 60  # one refused connection; a wait for one takes minutes


def test_a_remote_file_must_make_sense() -> None:
    with pytest.raises(DataError, match="no address of http"):
        RemoteFile("file:///etc/passwd", "a")
    with pytest.raises(DataError, match="no name of a file"):
        RemoteFile("https://example.org/a", "../a")


WAIT = 120.0  # seconds until a test gives up on what it waits for


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once somebody says that another process fetches the file."""
    said = threading.Event()

    def write(line: str, file: object = None) -> None:
        assert line == "waiting for another process to fetch a.bin"
        said.set()

    monkeypatch.setattr("peftbench.data.download.tqdm.write", write)
    return said


def test_of_two_that_want_a_file_one_fetches_it(tmp_path: Path, waits: threading.Event) -> None:
    asked, go_on = threading.Event(), threading.Event()
    with web.serving({"/a.bin": CONTENT}) as site, ThreadPoolExecutor(2) as pool:
        site.before = lambda: (asked.set(), go_on.wait(WAIT))
        try:
            first = pool.submit(fetch, remote(site), tmp_path)
            assert asked.wait(WAIT)
            second = pool.submit(fetch, remote(site), tmp_path)
            assert waits.wait(WAIT)
        finally:
            go_on.set()
        assert first.result(WAIT) == second.result(WAIT) == tmp_path / "a.bin"
        assert site.asked == [("/a.bin", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_where_the_one_that_fetches_dies_the_other_goes_on(
    tmp_path: Path, waits: threading.Event
) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1234])
    hold = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "a.bin.lock")]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        web.serving({"/a.bin": CONTENT}) as site,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            assert holder.stdout is not None and holder.stdout.readline().strip() == b"held"
            waiting = pool.submit(fetch, remote(site), tmp_path)
            assert waits.wait(WAIT)
            assert site.asked == []
        finally:
            holder.kill()
        assert waiting.result(WAIT).read_bytes() == CONTENT
        assert site.asked == [("/a.bin", "bytes=1234-")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_part_that_leads_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "a.bin.part").symlink_to(tmp_path / "mine")
    with (
        web.serving({"/a.bin": CONTENT}) as site,
        pytest.raises(DataError, match=r"a\.bin\.part is no plain file\. Remove it"),
    ):
        fetch(remote(site), tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"precious"
