"""Memory that a step frees serves the next one, and a user has a say in it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from peftbench.allocation import freed_is_kept

# blocks of 48 MiB, as a large activation takes; the first round finds the memory
CODE = """
import ctypes, json, resource
from peftbench.allocation import freed_is_kept

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size on every machine

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    before = faults()
    blocks = [ctypes.create_string_buffer(48 * 2**20) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, len(block))
    del blocks, block
    return faults() - before

before = step()
with freed_is_kept() as kept:
    first, second = step(), step()
print(json.dumps([kept, before, first, second, step()]))
"""


def steps(**variables: str) -> tuple[bool, int, int, int, int]:
    """Whether memory is kept; page faults of a step before, of two inside, and of one behind."""
    mine = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**mine, **variables}, capture_output=True, check=True
    )
    kept, *faults = json.loads(done.stdout)
    return kept, *faults


on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="malloc is that of glibc on Linux alone"
)


@on_glibc
def test_a_step_finds_the_memory_that_the_step_before_it_freed_and_gives_it_back_at_the_end() -> (
    None
):
    kept, before, first, second, behind = steps()
    assert kept
    assert second < 0.05 * first
    assert behind > 0.5 * before


@on_glibc
def test_without_it_every_step_asks_the_system_anew() -> None:
    kept, _, first, second, _ = steps(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    assert second > 0.5 * first


@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},
    ],
)
def test_a_user_who_says_what_malloc_does_is_heard(variables: dict[str, str]) -> None:
    with freed_is_kept(variables) as kept:
        assert not kept
