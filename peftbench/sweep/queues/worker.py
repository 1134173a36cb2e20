"""What runs on another machine: the jobs of one submission, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from peftbench.results.store import SUBMISSION_VARIABLE
from peftbench.sweep.queues.pool import Command, Pool
from peftbench.sweep.queues.slots import Slot
from peftbench.sweep.queues.submission import TIME_LIMIT, Submission, progress, tell

INTERRUPTED = (130, 143)  # exit statuses of a job that a signal stopped
SIGNAL_SECONDS = 3.0  # between the signals that a cluster sends to the processes of an allocation


def serve(path: str, limits: tuple[type[BaseException], ...] = ()) -> bool:
    """Run the jobs of the submission in the file `path` and tell how each ends; false if stopped.

    SIGTERM and Ctrl-C stop it, after the job under way has written its record: whether for good is
    known to its cluster alone, which may start it again, here or elsewhere, to go on where it was.
    An exception of `limits`, by which a cluster says that time is up, ends it.
    """
    submission = Submission.read(Path(path))
    events = Path(path).with_suffix(".events")
    before = progress(events)
    host = socket.gethostname()
    with _surroundings(submission):
        pool: Pool[int] = Pool(
            [Slot(submission.slot, submission.devices, submission.threads)],
            timeout=submission.timeout,
            on_begin=lambda index, slot: tell(events, begun=index, host=host),
        )
        pool.add(
            Command(index, arguments, Path(output))
            for index, (arguments, output) in enumerate(
                zip(submission.arguments, submission.outputs, strict=True)
            )
            if index not in before.ended
        )
        try:
            for job in pool.run():
                if job.status in INTERRUPTED and not job.timed_out:
                    time.sleep(SIGNAL_SECONDS)  # the signal that stopped it is for all of us
                tell(
                    events,
                    ended=job.job,
                    status=job.status,
                    seconds=job.seconds,
                    timed_out=job.timed_out,
                )
        except (KeyboardInterrupt, SystemExit):  # the latter of submitit, to be started again
            tell(events, stopped=host)
            return False
        except limits:
            tell(events, over=TIME_LIMIT)
        except (OSError, RuntimeError) as e:  # the process for its jobs cannot be started
            tell(events, over=f"failed: {e}")
        else:
            tell(events, over="")
    return True


@contextlib.contextmanager
def _surroundings(submission: Submission) -> Iterator[None]:
    """The launcher's folder and a name for locks; SIGTERM as Ctrl-C."""
    folder, variable = os.getcwd(), os.environ.get(SUBMISSION_VARIABLE)
    os.chdir(submission.directory)
    os.environ[SUBMISSION_VARIABLE] = submission.name
    alone = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _interrupt) if alone else None
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGTERM, handler)
        if variable is None:
            del os.environ[SUBMISSION_VARIABLE]
        else:
            os.environ[SUBMISSION_VARIABLE] = variable
        os.chdir(folder)


def _interrupt(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the jobs are being stopped already
    raise KeyboardInterrupt
