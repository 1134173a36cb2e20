"""What these tests share: a run on pictures of every kind, made once a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.command_line import cli, work  # noqa: F401 - fixtures
from support.pictures import Finished, run_spec, write
from support.tiny_runs import short_timings

from peftbench.results.store import ResultsStore
from peftbench.run import experiment


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    root = tmp_path_factory.mktemp("finished")
    data = write(root / "kinds")
    store = ResultsStore(root / "results")
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(root / "cache"))
        record = experiment.run(run_spec(data, "test_vit", 32, "lora"), store)
    assert record.error is None
    yield Finished(store, record, data)
