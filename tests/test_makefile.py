"""What `make sweep` calls, read from make itself; nothing is run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sweep(*variables: str) -> list[str]:
    """Arguments of the `peftbench run -m` of `make sweep VARIABLES...`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", "sweep", *variables],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in done.stdout.splitlines() if " run -m " in line)
    return shlex.split(line)[3:]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_variables_of_make_narrow_a_sweep_or_an_experiment_and_choose_who_runs_it() -> None:
    default = ["method=glob(*)", "backbone=vit_mini", "dataset=glob(mini/*)", "seed=0,1,2"]
    assert sweep() == [*default, "recipe=short", "results_dir=results"]
    narrowed = sweep("METHODS=linear,lora", "SEEDS=0", "LIMIT=50", "LAUNCHER=ray", "RECIPE=default")
    assert narrowed == [
        *("method=linear,lora", "backbone=vit_mini", "dataset=glob(mini/*)", "seed=0"),
        *("recipe=default", "dataset.limit=50", "hydra/launcher=ray", "results_dir=results"),
    ]
    # an experiment says what it needs itself
    assert sweep("EXPERIMENT=demo") == ["experiments=demo", "results_dir=results"]
    own = "hydra.launcher.partition=gpu hydra.launcher.time=60"
    assert sweep("EXPERIMENT=demo", "SEEDS=0,1", "LAUNCHER=slurm", f"OVERRIDES={own}") == [
        *("experiments=demo", "seed=0,1", "hydra/launcher=slurm", "results_dir=results"),
        *own.split(),
    ]
