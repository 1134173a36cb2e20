"""What every test runs under: no network, no display, no tracking, one thread for each worker."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from peftbench import stopping

# what the shell of a user or a job of a cluster may have set: tests have a world of their own, but
# for the arithmetic that they are to be run in
FOREIGN = ("PEFTBENCH_", "SLURM_", "SUBMITIT_", "RAY_", "WANDB_", "HYDRA_")
PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
for name in [n for n in os.environ if n.startswith(FOREIGN) or n in PROCESSES + TERMINAL]:
    if name != "PEFTBENCH_CPU_PRECISION":
        del os.environ[name]

# read when the libraries are imported, so set before any test module is
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; more threads only wait
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"

pytest_plugins = ["support.fake_jobs", "support.quick_hydra"]


def pytest_collection_finish() -> None:
    """Half a million objects of libraries live to the end: the garbage collector may forget them.

    Walking through them again and again takes a tenth of the time of the tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries report at the exit that these objects leaked


@pytest.fixture(autouse=True)
def _signals_are_for_one_test() -> Iterator[None]:
    """What stopped a run of one test stops none of the next."""
    stopping.forget()
    yield
    stopping.forget()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test derives goes into the cache of who runs it."""
    os.environ["PEFTBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
