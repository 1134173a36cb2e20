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
@pytest.mark.parametrize(
    ("goals", "parts"),
    [
        (("tables", "figures", "report"), ["tables", "figures", "page"]),
        (("report", "table"), ["page", "tables"]),
        (("figures",), ["figures"]),
    ],
)
def test_parts_of_a_report_that_are_made_together_are_made_at_once(
    goals: tuple[str, ...], parts: list[str]
) -> None:
    done = subprocess.run(
        ["make", "-n", *goals, "RESULTS=there"], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = (line for line in done.stdout.splitlines() if " report " in line)
    only = [word for part in parts for word in ("--only", part)]
    assert shlex.split(line)[1:] == ["report", "--results-dir", "there", *only]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_variables_of_make_narrow_a_sweep_or_an_experiment_and_choose_who_runs_it() -> None:
    assert sweep() == ["experiments=mini", "results_dir=results"]
    narrowed = sweep("METHODS=linear,lora", "SEEDS=0", "LIMIT=50", "LAUNCHER=ray", "RECIPE=default")
    assert narrowed == [
        *("experiments=mini", "method=linear,lora", "seed=0", "recipe=default"),
        *("dataset.limit=50", "hydra/launcher=ray", "results_dir=results"),
    ]
    # large backbones have a suite of their own
    mini = ["experiments=mini", "backbone=efficientnet_lite0", "results_dir=results"]
    assert sweep("BACKBONE=efficientnet_lite0") == mini
    vtab = ["experiments=peftbench_vtab", "backbone=vit_b16", "data_dir=/d", "results_dir=results"]
    assert sweep("BACKBONE=vit_b16", "DATA=/d") == vtab
    # an experiment keeps its own backbones
    assert sweep("EXPERIMENT=demo") == ["experiments=demo", "results_dir=results"]
    own = "hydra.launcher.partition=gpu hydra.launcher.time=60"
    assert sweep("EXPERIMENT=demo", "SEEDS=0,1", "LAUNCHER=slurm", f"OVERRIDES={own}") == [
        *("experiments=demo", "seed=0,1", "hydra/launcher=slurm", *own.split()),
        "results_dir=results",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_depends_on_the_cpu_runs_as_on_an_old_one_and_as_on_one_with_amx() -> None:
    done = subprocess.run(
        ["make", "-n", "test-arithmetic"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    old, new = (shlex.split(x) for x in done.stdout.splitlines() if "-m pytest" in x)
    for words, arithmetic in ((old, "float32"), (new, "bfloat16")):
        assert f"PEFTBENCH_CPU_PRECISION={arithmetic}" in words
        assert "arithmetic and not gpu and not slow and not network" in words
    assert {"ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=SSE41"} <= set(old)
    assert "make test-arithmetic" in (ROOT / ".ci" / "run").read_text()
