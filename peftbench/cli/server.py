"""The process behind one slot of a pool: imports torch once and forks the jobs of the slot.

Run as `python -m peftbench.cli.server` with the devices and threads of the slot in its
environment, so that they are set before torch is imported. Requests come as one JSON line each on
standard input, `{"jobs": [{"arguments": [...], "output": PATH}, ...]}`; a job gets a process forked
from the clean state, or several jobs one after another share it. Replies are JSON lines:
`ready`, then for each request `started` (process id), `begun` and `ended` (index of the job, its
exit status) and `exited` (of the process, negative for a signal).

Nothing outlives the launcher: when it goes, even by SIGKILL, the server and its job go too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from typing import IO, Any

from peftbench.cli.libraries import warm_up
from peftbench.results.disk import full_number
from peftbench.sweep.queues.processes import STOP_SECONDS, die_with, end_group
from peftbench.waiting import share_cores


def main() -> None:
    """Serve requests until standard input ends."""
    die_with(os.getppid())
    share_cores(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches jobs through the launcher
    # a cluster that ends an allocation asks every process of it; jobs need their server meanwhile
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = os.dup(sys.stdin.fileno())
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not look like a reply

    warm_up()
    _reply(replies, ready=os.getpid())
    unread = b""
    while True:
        line, unread = _line(requests, unread)
        if line is None:
            return
        pid = os.fork()
        if pid == 0:
            _run_jobs(json.loads(line)["jobs"], replies, requests)
        _reply(replies, started=pid)
        status = _wait(pid, requests)
        _reply(replies, exited=status)


def _run_jobs(jobs: list[dict[str, Any]], replies: IO[str], requests: int) -> None:
    """In the forked process: each job as a command line of its own, then the end of the process.

    Once the launcher has gone, or is about to, no further job begins.
    """
    server = os.getppid()
    os.setsid()  # a group that a signal reaches as a whole
    die_with(server)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 1
    for index, job in enumerate(jobs):
        if index and select.select([requests], [], [], 0)[0]:
            break
        output = _open(job["output"])
        os.dup2(output, sys.stdout.fileno())
        os.dup2(output, sys.stderr.fileno())
        os.close(output)
        _reply(replies, begun=index)
        status = _status_of(job["arguments"])
        _reply(replies, ended=index, status=status)
    with contextlib.suppress(OSError):  # the disk is full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _open(path: str) -> int:
    """Where a job prints: its file, or nowhere where the disk is full."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except OSError as e:
        if full_number(e) is None:
            raise
        return os.open(os.devnull, os.O_WRONLY)


def _status_of(arguments: list[str]) -> int:
    import traceback

    from peftbench.cli.main import main as command_line

    try:
        command_line(arguments)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _wait(pid: int, requests: int) -> int:
    """Exit status of the child `pid`; ends it first when the launcher has gone."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        readable, _, _ = select.select([requests], [], [], 0.05)
        if readable and not os.read(requests, 1):  # the launcher says nothing while a job runs
            end_group(pid, STOP_SECONDS)
            os._exit(0)


def _line(descriptor: int, unread: bytes) -> tuple[bytes | None, bytes]:
    """The next line, `None` at the end, and what was read beyond it."""
    while b"\n" not in unread:
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return None, b""
        unread += chunk
    line, _, rest = unread.partition(b"\n")
    return line, rest


def _reply(replies: IO[str], **message: int) -> None:
    # one write of less than a page is atomic, though job and server share the pipe
    with contextlib.suppress(BrokenPipeError):
        replies.write(json.dumps(message) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
