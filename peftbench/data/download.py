"""Files from the web, whole or not at all: resumable, and held against their published hashes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import shutil
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from peftbench._version import __version__
from peftbench.errors import DataError

TIMEOUT = 20.0  # seconds without a byte, after which a host counts as unreachable
TRIES = 5  # of a transfer that breaks; each goes on where the last one stopped
CHUNK = 2**20
_BROKEN = (urllib.error.URLError, http.client.HTTPException, socket.timeout, ConnectionError)


class Unreachable(DataError):
    """A host does not answer, or does not have the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web, as it must arrive.

    Where no hash is published, the one that the Hugging Face Hub states of a large file is used.
    """

    url: str
    name: str  # on this disk
    sha256: str = ""
    md5: str = ""  # where only that is published
    bytes: int | None = None

    def __post_init__(self) -> None:
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise DataError(f"{self.url!r} is no address of http or https.")
        if not self.name or Path(self.name).name != self.name:
            raise DataError(f"{self.name!r} is no name of a file. Name it without folders.")


def fetch(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`; what is there already is checked and kept.

    A transfer that was interrupted is resumed, by the next call too. Of several processes that want
    the same file one fetches it, and the others wait for it.

    Raises:
        Unreachable: the host does not answer or has no such file; known within `TIMEOUT` seconds.
        DataError: what arrived is another file, or the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    if path.exists():
        _check(path, file, file.sha256)
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)  # of no use any more
        return path
    with _only_one(path):
        if path.exists():  # another process has fetched it meanwhile
            _check(path, file, file.sha256)
        else:
            _bring(file, path)
    return path


def _bring(file: RemoteFile, path: Path) -> None:
    """Transfer a file to `path`, of which the start may be there."""
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise DataError(f"{part} is no plain file. Remove it; the rest of {file.name} goes there.")
    resumed = part.exists()
    stated = _transfer(file, part)
    try:
        _check(part, file, file.sha256 or stated)
    except DataError:
        part.unlink()
        if not resumed:
            raise
        stated = _transfer(file, part)  # the first half was of something else
        try:
            _check(part, file, file.sha256 or stated)
        except DataError:
            part.unlink()
            raise
    part.replace(path)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Held by one process at a time for each file, and let go of when it dies.

    The lock stays where a transfer breaks, beside the part that it guards.
    """
    from filelock import FileLock, Timeout

    place = path.with_name(f"{path.name}.lock")
    if place.is_symlink():
        place.unlink()
    lock = FileLock(place)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(f"waiting for another process to fetch {path.name}", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"Cannot lock {place}: {reason}. Remove it if nobody fetches {path.name}, or set "
            "data_dir to a folder that you may write to."
        ) from error
    try:
        yield
    finally:
        if not path.with_name(f"{path.name}.part").exists():
            with contextlib.suppress(OSError):  # Windows keeps what is open
                place.unlink()  # who waits for it finds the file, or nothing to go on with
        lock.release()


def _transfer(file: RemoteFile, part: Path) -> str:
    """Bring `part` to the end of the file; gives the SHA-256 that the Hub states, or ""."""
    fails = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            return _receive(file, part, had)
        except urllib.error.HTTPError as error:
            if error.code == 416 and had:  # nothing is left to send
                return ""
            raise Unreachable(
                f"{file.url} answers {error.code} {error.reason}. It has moved or needs an account."
            ) from error
        except _BROKEN as error:
            came = part.stat().st_size if part.exists() else 0
            fails = 0 if came > had else fails + 1
            if came == 0 or fails == TRIES:
                reason = getattr(error, "reason", None) or error
                raise Unreachable(
                    f"Cannot reach {file.url}: {reason}. Check the connection; the same command "
                    "goes on where this one stopped."
                ) from error


def _receive(file: RemoteFile, part: Path, had: int) -> str:
    headers = {"User-Agent": f"peftbench/{__version__}", "Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    request = urllib.request.Request(file.url, headers=headers)
    opener = urllib.request.build_opener(_HubHash)
    with opener.open(request, timeout=TIMEOUT) as response:
        going_on = response.status == 206 and _first_byte(response) == had
        start = had if going_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _check_size(file, part, total, start)
        with (
            part.open("ab" if going_on else "wb") as target,
            tqdm(  # None: shown when stderr is a terminal
                total=total, initial=start, unit="B", unit_scale=True, desc=file.name, disable=None
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                target.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise ConnectionError("the connection ended before the file did")
        return str(getattr(request, "hub_sha256", ""))


class _HubHash(urllib.request.HTTPRedirectHandler):
    """The Hub names the hash of a large file where it redirects to the store that holds it."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        stated = str(headers.get("X-Linked-ETag") or "").strip('"')
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if re.fullmatch("[0-9a-f]{64}", stated):
            req.hub_sha256 = stated
        return following


def _first_byte(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return int(match[1]) if match else None


def _check_size(file: RemoteFile, part: Path, total: int | None, start: int) -> None:
    if None not in (total, file.bytes) and total != file.bytes:
        raise Unreachable(
            f"{file.url} offers {total:,} bytes, and {file.name} has {file.bytes:,}. The host "
            "sends another file, perhaps a page that asks for something."
        )
    size = total or file.bytes or 0
    free = shutil.disk_usage(part.parent).free
    if size - start > free:
        raise DataError(
            f"{file.name} needs {(size - start) / 1e9:.1f} GB in {part.parent}, where "
            f"{free / 1e9:.1f} GB are free. Make room, or set data_dir to a larger disk."
        )


def _check(path: Path, file: RemoteFile, sha256: str) -> None:
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        raise DataError(
            f"{path} has {size:,} bytes, and {file.bytes:,} are published. Remove it and fetch it "
            f"from {file.url}."
        )
    kind, wanted = ("sha256", sha256) if sha256 else ("md5", file.md5)
    if not wanted:
        return
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, kind).hexdigest()
    if digest != wanted:
        raise DataError(
            f"{path} has the wrong checksum ({kind} {digest[:12]}..., published {wanted[:12]}...): "
            f"it is broken or another file. Remove it and fetch it from {file.url}."
        )
