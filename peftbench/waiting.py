"""How threads of OpenMP wait for one another. Needs nothing else of peftbench."""

from __future__ import annotations

from collections.abc import MutableMapping

# how long a thread of OpenMP that has nothing to do keeps its core; any of them decides
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Turns of libgomp's loop before a thread sleeps: some microseconds, as libgomp has it by itself for
# more threads than cores. Its other default is 300,000, milliseconds in which a core does nothing.
# A step of a small ViT on two threads, on two cores of which other programs took half or more: 460
# to 960 ms of processor time with that, 160 to 310 ms with 1,000, 180 to 240 ms where threads sleep
# at once (OMP_WAIT_POLICY=PASSIVE), which costs a system call at every wait of a quiet machine too.
# With nothing else running, the median step of four processes took 218 to 259 ms on the clock with
# 1,000, and 191 to 277 ms without it: no difference beyond that of the machine with itself.
SPINS = "1000"


def share_cores(variables: MutableMapping[str, str]) -> None:
    """Let other programs have the cores that threads wait on, unless the user has a say in it.

    It counts for a process that has not loaded torch yet, which brings libgomp, and for those that
    it starts.
    """
    if not any(name in variables for name in WAITING):
        variables["GOMP_SPINCOUNT"] = SPINS
