"""Sweeps in which jobs fail in every way there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.forked_servers import forked_servers
from support.tiny_runs import BIAS_HOT, QUICK

from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

PATIENCE = 600.0

# a method of another package; while it attaches itself it does what it is told
METHOD = """
import os
import resource
import signal
from dataclasses import dataclass
from typing import ClassVar

import psutil
import torch

from peftbench.methods import Attachment, Method, MethodCard, register_method


@register_method("ruin")
@dataclass(frozen=True)
class Ruin(Method):
    card: ClassVar[MethodCard] = MethodCard(
        title="Ruin", summary="Ends badly.", paper="none", section="none", reference="none",
        identity_at_init=True, mergeable=False, head_only=True,
    )
    how: str = "not at all"

    def attach(self, backbone, anatomy, generator):
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "memory":
            limit = psutil.Process().memory_info().vms + 2**28
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            torch.zeros(2**28)  # 1 GiB
        return Attachment(backbone, trainable=(), touched=())

    def expected_params(self, anatomy):
        return 0
"""


def test_every_kind_of_failure_is_a_row_with_its_cause_and_the_others_finish(work: Path) -> None:
    package = work / "package"
    (package / "ruin-1.0.dist-info").mkdir(parents=True)
    (package / "ruin.py").write_text(METHOD)
    (package / "ruin-1.0.dist-info" / "METADATA").write_text("Name: ruin\nVersion: 1.0\n")
    (package / "ruin-1.0.dist-info" / "entry_points.txt").write_text(
        "[peftbench.methods]\nruin = ruin\n"
    )
    folder = work / "conf" / "method"
    folder.mkdir(parents=True)
    for how in ("crash", "memory", "well"):
        (folder / f"ruin_{how}.yaml").write_text(
            f"defaults: [/schema/method/ruin@_here_]\nhow: {how}\n"
        )
    (folder / "bias_hot.yaml").write_text(BIAS_HOT)

    # one server, from which each job is forked: a second would only load torch once more
    words = ("method=ruin_crash,ruin_memory,bias_hot,ruin_well,linear", "hydra.launcher.jobs=1")
    done = subprocess.run(
        [*(sys.executable, "-m", "peftbench", "run", "-m", *QUICK, "recipe.epochs=2"), *words],
        cwd=work,
        env=os.environ | {"PYTHONPATH": f"{package}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1, done.stderr
    by_end = {
        method["hyperparameters"].get("how", method["name"]): (r.status, r.error)
        for r in ResultsStore(work / "results").records()
        for method in [r.spec["method"]]
    }
    assert {end: status for end, (status, _) in by_end.items()} == {
        "crash": Status.ERROR,
        "memory": Status.OUT_OF_MEMORY,
        "bias": Status.DIVERGED,
        "well": Status.OK,
        "linear": Status.OK,
    }
    causes = {end: error or "" for end, (_, error) in by_end.items()}
    assert causes["crash"].startswith("its process was ended by SIGSEGV")
    assert "can't allocate memory" in causes["memory"]
    assert causes["bias"].startswith("the loss of epoch 1 of 2 is nan.")
    told = done.stderr.splitlines()
    assert len([line for line in told if line.startswith("  failed 1 x: ")]) == 3
    assert done.stdout.splitlines()[-1] == (
        "5 of 5 jobs ended: 1 DIVERGED, 1 ERROR, 2 OK, 1 OUT_OF_MEMORY"
    )


def test_a_job_that_takes_too_long_is_ended_and_recorded(cli, work: Path) -> None:
    """By itself: a time that it exceeds for certain is one that others may, on a busy machine."""
    endless = [word for word in QUICK if not word.startswith("recipe.epochs")]
    words = (*endless, "recipe.epochs=100000", "seed=5", "hydra.launcher.jobs=1")
    with forked_servers():
        late = cli("run", "-m", *words, "hydra.launcher.timeout=2")
    assert late.status == 1, late.err
    (record,) = ResultsStore(work / "results").records()
    assert record.status is Status.TIMEOUT
    seconds = re.fullmatch(r"took longer than (\d+) s.*", record.error or "")
    assert seconds is not None and int(seconds[1]) >= 2
    assert late.out.splitlines()[-1] == "1 of 1 jobs ended: 1 TIMEOUT"
