"""What commands say of a run that was stopped, and how they end where they are stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.tiny_runs import QUICK, compose, statuses
from torch import nn

from peftbench.config.build import build
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import measure


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_has_the_status_of_its_signal_and_the_same_one_continues(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch, signum: int, status: int
) -> None:
    def stopped(*args: object, **kwargs: object) -> nn.Module:
        os.kill(os.getpid(), signum)
        raise AssertionError("the signal was not heard")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "fit", stopped)
        done = cli("run", *QUICK)
    assert done.status == status
    assert done.err.splitlines()[-1] == "peftbench: interrupted; the same command continues"
    assert statuses(work / "results") == {"INTERRUPTED": 1}
    assert cli("run", *QUICK).status == 0
    assert statuses(work / "results") == {"OK": 1}


def test_lists_and_plans_do_not_call_a_stopped_run_failed(cli, work: Path) -> None:
    spec = build(compose(*QUICK))
    why = "stopped before its end"
    record = RunRecord(spec.run_id, spec.describe(), Status.INTERRUPTED, error=why)
    ResultsStore(work / "results").add(record)
    assert cli("list", "runs", "--status", "failed").out == "no runs of that kind in results\n"
    assert why in cli("list", "runs", "--status", "interrupted").out
    first, total, *_ = cli("plan", *QUICK, "seed=0").out.splitlines()
    assert first == f"{spec.run_id}  interrupted  linear x vit_mini x mini/digits, seed 0"
    assert total == "1 jobs: 0 done, 0 unsupported, 1 to run (1 interrupted)"
