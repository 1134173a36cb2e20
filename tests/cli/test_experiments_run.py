"""An experiment of the package, really run in a shortened form."""

from __future__ import annotations

from pathlib import Path

from support.forked_servers import forked_servers
from support.tiny_runs import QUICK

from peftbench.results.record import Status
from peftbench.results.store import ResultsStore


def test_the_mini_experiment_runs(cli, work: Path) -> None:
    """Narrowed on the command line: two of its methods, one data set and seed, one epoch."""
    narrowed = ("method=linear,mlp/2", "dataset=mini/digits", "seed=1", *QUICK)
    pool = ("hydra.launcher.jobs=1", "hydra.launcher.gpus=0", "hydra.launcher.jobs_per_process=2")
    with forked_servers():
        done = cli("run", "-m", "experiments=mini", *narrowed, *pool)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == "2 jobs: 0 already done, 2 to run, 1 at a time"
    records = list(ResultsStore(work / "results").records())
    assert [record.status for record in records] == [Status.OK] * 2
    told = {r.spec["method"]["name"]: r.spec["method"]["hyperparameters"] for r in records}
    assert told == {"linear": {}, "mlp": {"num_layers": 2, "dropout": 0.1}}
    assert {(r.spec["recipe"]["name"], r.spec["recipe"]["epochs"]) for r in records} == {
        ("short", 1)
    }
    assert all(r.metrics["test/num_images"] == 4 for r in records)
