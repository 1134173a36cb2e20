"""What malloc does with memory that is freed. Needs nothing else of peftbench.

A training step frees its activations and asks for as many again. glibc gives a block of more than
32 MB back to the system at once, which then clears every page of it anew: 1.4 million page faults
in a step of EfficientNet-Lite0 on 32 images of 224 pixels, and as much time in the kernel as in the
step itself. `benchmarks/allocation.py` measures it. Steps are alike, so that what is kept is 7 %
more than they need; evaluation, whose blocks are not, would take half as much again, and is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# parameters of mallopt(3), and their numbers in malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
# the variables by which a user has a say in it
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
TUNABLES = "GLIBC_TUNABLES"
MOST = 2**31 - 1  # bytes at the top of the heap beyond which they are given back all the same
# what glibc comes to by itself where large blocks are freed: its threshold rises to this much
LARGE = 32 * 2**20
MAPPINGS = 65_536


@contextlib.contextmanager
def freed_is_kept(variables: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Inside, this process uses freed memory again without asking the system; it has it back then.

    Yields:
        whether it is so: not without glibc, nor where a user's variables, the environment by
        default, say what malloc is to do.
    """
    said = os.environ if variables is None else variables
    if any(name in said for name in SETTINGS) or "malloc" in said.get(TUNABLES, ""):
        yield False
        return
    kept = _set(MMAP_MAX, 0) and _set(TRIM_THRESHOLD, MOST)
    try:
        yield kept
    finally:
        if kept:
            _set(MMAP_MAX, MAPPINGS)
            _set(MMAP_THRESHOLD, LARGE)
            _set(TRIM_THRESHOLD, 2 * LARGE)
            give_back()


def give_back() -> None:
    """Give the system all pages that nothing uses now."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _set(parameter: int, value: int) -> bool:
    """Whether glibc took it."""
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(parameter, value))


def _of_glibc(name: str) -> Any:
    """A function of the C library of this process, if it is there."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
