"""What Slurm says of its jobs: squeue for those that it knows, sacct for those that it forgot."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence

from peftbench.sweep.queues.submission import CANCELLED, TIME_LIMIT, Gone

LOOK_SECONDS = 15.0  # between two questions to Slurm, which answers for all jobs at once
ANSWER_SECONDS = 60.0  # that it may take
FORGOTTEN = "FORGOTTEN"  # our word for a job that neither command knows any more

# states in which a job is yet to end; man squeue, JOB STATE CODES
UNDER_WAY = frozenset(
    {
        *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"),
        *("COMPLETING", "STAGE_OUT", "REQUEUED", "REQUEUE_FED", "POWER_UP_NODE", "UPDATE_DB"),
        *("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),  # HELD
        "READY",
    }
)
HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})  # until somebody releases it
MACHINE = frozenset({"NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "PREEMPTED"})  # not the job's fault


class States:
    """The states of some jobs of Slurm, asked for seldom.

    Args:
        seconds: at least, between two questions.
        ask: runs a command and gives its exit status, output and errors.
        clock: seconds.
    """

    def __init__(
        self,
        seconds: float = LOOK_SECONDS,
        ask: Callable[[Sequence[str]], tuple[int, str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.ask = _ask if ask is None else ask
        self.clock = clock
        self._followed: set[str] = set()
        self._known: dict[str, str] = {}
        self._looked: float | None = None

    def __call__(self, number: str) -> str | None:
        """Like `RUNNING`; `None` where Slurm has not been asked yet, or does not answer."""
        new = number not in self._followed
        self._followed.add(number)
        if new or self._looked is None or self.clock() - self._looked >= self.seconds:
            self._looked = self.clock()
            self._known = self._look()
        return self._known.get(number)

    def follow(self, numbers: Iterable[str], *, ask: bool = True) -> None:
        """Ask for these too from now on: at once, or when it is time again."""
        self._followed.update(numbers)
        self._looked = None if ask else self.clock()

    def forget(self, number: str) -> None:
        """Ask no more for a job."""
        self._followed.discard(number)

    def _look(self) -> dict[str, str]:
        wanted = sorted({number.partition("_")[0] for number in self._followed})
        answer = self._queue(wanted)
        states = {} if answer is None else answer
        missing = sorted(self._followed - states.keys())
        if missing:
            # after a requeue sacct may still tell of the time before; what squeue says counts
            states = self._accounts(sorted({n.partition("_")[0] for n in missing})) | states
        if answer is not None:  # it answered, so it has none of the others
            states = dict.fromkeys(missing, FORGOTTEN) | states
        return states

    def _queue(self, numbers: Sequence[str]) -> dict[str, str] | None:
        """What squeue says; `None` where it cannot be asked."""
        asked = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T"]
        status, out, errors = self.ask([*asked, f"--jobs={','.join(numbers)}"])
        if status and "Invalid job id" not in errors:  # of a single one that it does not know
            return None
        return dict(_rows(out))

    def _accounts(self, numbers: Sequence[str]) -> dict[str, str]:
        """What sacct says; nothing where accounts are not kept."""
        asked = ["sacct", "--noheader", "--parsable2", "--format=JobID,State"]
        status, out, _ = self.ask([*asked, f"--jobs={','.join(numbers)}"])
        return {} if status else dict(_rows(out))


def how_it_ended(state: str | None) -> Gone | None:
    """What a state says of the end of a job; `None` while it may go on."""
    if state is None or state in UNDER_WAY:
        return None
    if state == "CANCELLED":
        return Gone(CANCELLED)
    if state == "TIMEOUT":
        return Gone(TIME_LIMIT)
    if state == "OUT_OF_MEMORY":
        return Gone("ended as OUT_OF_MEMORY, which more of hydra.launcher.mem_gb may prevent")
    if state == FORGOTTEN:
        return Gone("is no longer known to Slurm")
    return Gone(f"ended as {state}", machine=state in MACHINE)


def _rows(text: str) -> Iterable[tuple[str, str]]:
    """(job, state) of each line such as `17_0|RUNNING` or `17|CANCELLED by 1000`."""
    for line in text.splitlines():
        number, separator, state = line.strip().partition("|")
        if not separator or "." in number or not state.strip(" |"):  # a step, or a word to the user
            continue
        first = state.partition("|")[0].split()[0].rstrip("+").upper()
        for name in _tasks(number):
            yield name, first


def _tasks(number: str) -> list[str]:
    """`17_0` of `17_0`; all tasks of a part of an array that waits, such as `17_[0-2,5%4]`."""
    job, bracket, rest = number.partition("_[")
    if not bracket:
        return [number]
    names = []
    for part in rest.rstrip("]").partition("%")[0].split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and (not high or high.isdigit()):
            names += [f"{job}_{task}" for task in range(int(low), int(high or low) + 1)]
    return names


def _ask(command: Sequence[str]) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
