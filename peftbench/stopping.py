"""Ctrl-C and SIGTERM: obeyed at once, or where the work under way is whole.

Needs nothing else of peftbench.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HELD = "\npeftbench: stopping after this step; Ctrl-C again stops at once\n"


class Stopped(KeyboardInterrupt):
    """A process that was asked to stop does so where its work is whole."""


@dataclass
class _Heard:
    """What this process was told so far."""

    signum: int | None = None  # of the first signal
    held: bool = False  # whether it waits for `check`


_heard = _Heard()


def listen() -> None:
    """From now on a signal raises `KeyboardInterrupt` where it comes, or waits inside `held`.

    Whatever came before is forgotten. A second Ctrl-C is obeyed at once, everywhere; a second
    SIGTERM is not heard, as a cluster sends one after that of the launcher.
    """
    forget()
    for signum in SIGNALS:
        signal.signal(signum, _hear)


def forget() -> None:
    """What came before was for other work."""
    _heard.signum, _heard.held = None, False


def asked() -> int | None:
    """The signal that this process was asked to stop by, `None` if it was not."""
    return _heard.signum


def agree(signum: int) -> None:
    """Another process of the same run was asked to stop by `signum`."""
    if _heard.signum is None:
        _heard.signum = signum


def check() -> None:
    """Raise `Stopped` where a signal waits."""
    if _heard.signum is not None:
        raise Stopped


def exit_status() -> int:
    """That of a process which a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_heard.signum or signal.SIGINT)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, the first signal waits until `check` is called, or until the end.

    It counts for the main thread alone, where signals are heard. In a program that does not
    `listen`, Ctrl-C is heard inside, and SIGTERM is left to that program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    foreign = handler is signal.default_int_handler
    if handler is not _hear:  # nobody has listened since; what came before was for another run
        _heard.signum = None
    if foreign:
        signal.signal(signal.SIGINT, _hear)
    _heard.held = True
    try:
        yield
        check()
    finally:
        _heard.held = False
        if foreign:
            _heard.signum = None
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _hear(signum: int, frame: object) -> None:
    first, _heard.signum = _heard.signum is None, _heard.signum or signum
    if first and _heard.held:
        with contextlib.suppress(OSError):  # a stream that is being written takes nothing here
            os.write(2, HELD.encode())
        return
    if first or signum == signal.SIGINT:
        raise KeyboardInterrupt
