"""What to say when something cannot be written: the true cause, above all that a disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from peftbench.errors import DiskFull, StoreError

FULL = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full for this user, whose quota is used up",
    errno.EFBIG: "disk full for this file: a limit on file sizes, see `ulimit -f`",
}


def full_number(error: BaseException | None) -> int | None:
    """Which of `FULL` is the cause of an exception, or of what it came from; `None` for none.

    Libraries in other languages, such as safetensors, put the number into their text.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        number = error.errno if isinstance(error, OSError) else None
        if number is None:
            match = re.search(r"\(os error (\d+)\)", str(error))
            number = int(match[1]) if match else None
        if number in FULL:
            return number
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def explained(error: BaseException, path: Path | str | None = None) -> StoreError:
    """One line for an exception that came while `path` was written, `DiskFull` where that is why.

    Without `path` the exception says where it was, or this is the working directory.
    """
    if isinstance(error, DiskFull):
        return error
    named = getattr(error, "filename", None)
    place = path if path is not None else named if isinstance(named, str | bytes) else os.curdir
    where = Path(os.fsdecode(place))
    number = full_number(error)
    if number is None:
        return StoreError(
            f"{where} cannot be written: {reason(error)}. "
            "Free some space, choose another results folder or make this one writable."
        )
    return DiskFull(
        f"{where} cannot be written: {os.strerror(number)} ({FULL[number]}, {_free(where)} free). "
        "Free some space and give the same command again; what is finished is kept."
    )


def reason(error: BaseException | None) -> str:
    """Like `Permission denied`."""
    return (getattr(error, "strerror", None) or str(error)) if error else "unknown reason"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written becomes a `StoreError` of one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise explained(error, path) from error
    except StoreError:
        raise
    except Exception as error:
        if full_number(error) is None:
            raise
        raise explained(error, path) from error


def _free(path: Path) -> str:
    """Like `3.2 MB`: what is free where `path` is or would be."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    return "an unknown part of it"
