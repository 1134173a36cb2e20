"""Who holds a lock file, and whether that process is gone; nothing here blocks.

A holder touches its lock every `BEAT_SECONDS`. Ages are measured on the clock of the file system
that the lock is on, so hosts need not agree on the time, and a process is looked up by its id only
where its host, its boot and its pid namespace are ours: containers share names, and so do machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

SUBMISSION_VARIABLE = "PEFTBENCH_SUBMISSION"  # set where a job runs as part of one
BEAT_SECONDS = 30.0  # between two signs of life of a holder
SILENT_SECONDS = 600.0  # without one, after which a holder that cannot be seen counts as gone
STALE_SECONDS = 24 * 3600.0  # the same for locks from before there were signs of life
TEMPORARY_SECONDS = 3600.0  # without a write, after which nobody is at a temporary file any more
# .NAME.PID-PLACE.RANDOM.tmp; earlier and other ones have no place, or no process either
TEMPORARY = re.compile(
    r"\..+?(?:\.(\d{1,10})(?:-([0-9a-f]{8}))?)?\.(?:[0-9a-f]{8}\.tmp|(?:[0-9a-f]{8}\.)?part)|\.write-test-\d+-[0-9a-f]{8}"
)
LARGEST_LOCK = 65536  # bytes; ours have 300


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    boot: str  # tells a reboot; empty where the system does not say
    namespace: str  # pids of two containers cannot be compared
    process_start: int  # tells a pid that was given out again
    since: float  # seconds since 1970
    submission: str = ""  # to a cluster, of which it is part
    beats: float = 0.0  # seconds between its signs of life; 0: it gives none

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"

    @classmethod
    def current(cls) -> Owner:
        pid = os.getpid()
        boot = namespace = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(
            socket.gethostname(),
            pid,
            boot,
            namespace,
            process_start(pid) or 0,
            time.time(),
            os.environ.get(SUBMISSION_VARIABLE, ""),
            BEAT_SECONDS,
        )

    @classmethod
    def read(cls, lock: Path) -> Owner | None:
        """The holder named in a lock file; `None` where it names none, such as one cut short."""
        try:
            if not stat.S_ISREG(os.stat(lock).st_mode):  # a pipe would be waited for
                return None
            with open(lock, "rb") as file:
                raw = json.loads(file.read(LARGEST_LOCK))
            raw.setdefault("submission", "")  # of a lock from before there were any
            raw.setdefault("beats", 0.0)
            owner = cls(**{name: raw[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return owner if owner._makes_sense() else None

    def _makes_sense(self) -> bool:
        texts = (self.host, self.boot, self.namespace, self.submission)
        whole = (self.pid, self.process_start)
        return (
            all(isinstance(text, str) and text.isprintable() for text in texts)
            and all(type(n) is int and abs(n) < 2**62 for n in whole)
            and all(_is_time(seconds) for seconds in (self.since, self.beats))
        )

    def text(self) -> str:
        """What its lock file holds."""
        return json.dumps(asdict(self))

    def sees(self, other: Owner) -> bool:
        """Whether this process can look the other one up by its id."""
        return (self.host, self.boot, self.namespace) == (other.host, other.boot, other.namespace)


def gone(owner: Owner | None, age: float, here: Owner | None = None) -> bool:
    """Whether the holder of a lock is gone that was touched `age` seconds ago.

    `None` is a holder that the lock does not name: a disk was full, or the power failed.
    """
    here = Owner.current() if here is None else here
    if owner is None:
        return age > SILENT_SECONDS
    if here.sees(owner):
        return process_start(owner.pid) != owner.process_start
    if owner.submission and owner.submission == here.submission:
        return True  # a cluster starts a submission again when its first machine is gone
    if owner.host == here.host and owner.boot != here.boot:
        # before a reboot of this machine; another one of the same name would have said something
        up = uptime()
        if up is not None and age > up > 4 * BEAT_SECONDS:
            return True
    return age > (max(SILENT_SECONDS, 10 * owner.beats) if owner.beats else STALE_SECONDS)


def age_of(lock: Path, now: float) -> float:
    """Seconds since a lock was touched, by the clock of its file system, which says `now`.

    A lock from the future, which a clock was set to and back from, is touched: it ages from now.
    """
    try:
        age = now - lock.stat().st_mtime
    except OSError:
        return 0.0
    if age < -BEAT_SECONDS:
        with contextlib.suppress(OSError):
            os.utime(lock)
    return age


def touch(lock: Path, owner: Owner) -> bool:
    """Give a sign of life; false where the lock is no longer that of `owner`."""
    if not lock.exists() or Owner.read(lock) != owner:
        return False
    with contextlib.suppress(OSError):  # a file server that is away now may be back next time
        os.utime(lock)  # without a time: that of the file server
    return True


@contextlib.contextmanager
def beating(lock: Path, owner: Owner) -> Iterator[None]:
    """Touch a lock every `BEAT_SECONDS` from a thread of its own, whatever the process is at."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if lock.exists() and not touch(lock, owner):
                    return

    thread = threading.Thread(target=beat, name=f"holds {lock.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def time_at(folder: Path) -> float:
    """What the clock of the file system of a folder says; `OSError` where no file can be made."""
    probe = folder / f".clock.{temporary_tag()}.tmp"
    try:
        with open(probe, "xb"):
            pass
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def temporary_tag() -> str:
    """For the name of a temporary file: whose it is, and something that nobody else has."""
    return f"{os.getpid()}-{_place()}.{secrets.token_hex(4)}"


def left_over(temporary: Path, age: float) -> bool:
    """Whether the process is gone that wrote a temporary file, last touched `age` seconds ago.

    False for a file that is none of ours by its name.
    """
    match = TEMPORARY.fullmatch(temporary.name)
    if match is None:
        return False
    pid, place = match.groups()
    if pid and place == _place() and process_start(int(pid)) is None:
        return True
    return age > TEMPORARY_SECONDS


@cache
def _place() -> str:
    """Tells this boot and pid namespace from all others."""
    here = Owner.current()
    return hashlib.sha256(f"{here.host} {here.boot} {here.namespace}".encode()).hexdigest()[:8]


def uptime() -> float | None:
    """Seconds since this machine was started, `None` where the system does not say."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, `None` when no such process runs.

    Zero for a living process where the system does not tell its start.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
        return None if fields[0] in "ZX" else int(fields[19])  # a zombie runs no more
    if sys.platform == "win32":
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        return 0
    return 0


def _is_time(seconds: object) -> bool:
    return (
        isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and math.isfinite(seconds)
        and 0 <= seconds < 2**40
    )
