"""What a command does not need, it does not load: no model library before a model is built."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.tiny_runs import QUICK, compose

from peftbench.cli.libraries import load_libraries
from peftbench.config.build import build
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.waiting import WAITING

HEAVY = ("torch", "torchvision", "timm", "wandb", "scipy", "matplotlib")
ON_A_CPU = "device=cpu hydra.launcher.gpus=0"  # a GPU is torch's to look for
A_PICTURE = next(Path(__file__).parents[2].glob("results/mini/*.png"))
RUN = f"dataset=mini/digits seed=7 precision=float32 {' '.join(QUICK)}"

# each command, and how what it prints begins
COMMANDS = {
    "--help": "usage: peftbench",
    "list methods": "METHOD ",
    "list methods --long": "adapter (Adapter): ",
    "list datasets": "DATASET ",
    "list backbones": "BACKBONE ",
    "list experiments": "EXPERIMENT ",
    "list protocols": "PROTOCOL ",
    "list tables": "TABLE ",
    "list runs": "RUN ",
    "report --help": "usage: peftbench report",
    "run --cfg job": "method:\n  blocks: []\n",
    "predict zzzz gone.png": "peftbench: There is no picture to predict: gone.png does not exist.",
    f"predict zzzz {A_PICTURE}": "peftbench: Unknown run 'zzzz'. Known: ",
    f"predict no/where {A_PICTURE}": "peftbench: no/where/card.json does not exist. Give a folder ",
    "run method=lorra": "peftbench: Unknown method 'lorra'. Did you mean: lora, ",
    "run backbone=vit_minni": "peftbench: Unknown backbone 'vit_minni'. Did you mean: vit_mini",
    "run recipe.lrr=1": "peftbench: Unknown key in recipe: 'lrr'. Did you mean: lr? ",
    "run method=lora method.rnak=2": "peftbench: Unknown key in method: 'rnak'. Did you mean: rank",
    "run method=lora method.rank=0": "peftbench: method=lora: rank=0; use 1 or more.",
    "run method=adapter method.activation=gelo": "peftbench: Unknown activation of method=adapter:",
    f"run {RUN}": "linear x vit_mini x mini/digits, seed 7: already done",
    f"plan {RUN} {ON_A_CPU}": "",  # the id of the run that is done
    f"plan method=lora dataset=mini/digits precision=float32 {ON_A_CPU}": "",
}

# one interpreter for all of them: what none of them imports, each of them alone does not either
CODE = f"""
import contextlib, io, json, sys
from peftbench.cli.main import main
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(out):
            try:
                main(arguments)
            except SystemExit:
                pass
    print(json.dumps([out.getvalue(), sorted(set({HEAVY!r}) & sys.modules.keys())]))
"""


class Answer(NamedTuple):
    printed: str
    loaded: list[str]  # of `HEAVY`, by this command or an earlier one


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each command prints in a folder with one finished run, and what was loaded by then."""
    work: Path = tmp_path_factory.mktemp("work")
    spec = build(compose(*RUN.split()))
    metrics: dict[str, float | None] = {"test/top1": 0.5}
    ResultsStore(work / "results").add(
        RunRecord(spec.run_id, spec.describe(), Status.OK, metrics=metrics)
    )
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps([shlex.split(command) for command in COMMANDS]),
        cwd=work,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        command: Answer(*json.loads(line))
        for command, line in zip(COMMANDS, done.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_builds_no_model_loads_no_model_library(
    answers: dict[str, Answer], command: str
) -> None:
    answer = answers[command]
    assert answer.printed.startswith(COMMANDS[command])
    assert answer.loaded == []


def test_the_plans_are_of_a_finished_run_and_of_one_to_do(answers: dict[str, Answer]) -> None:
    finished, to_do = (answers[c].printed.splitlines() for c in COMMANDS if c.startswith("plan"))
    assert finished[-1] == "1 jobs: 1 done, 0 unsupported, 0 to run"
    # 6 blocks x rank 8 x two targets x (128 inputs + 128 outputs), 4 bytes each, and 40 kB
    assert to_do[1:3] == ["1 jobs: 0 done, 0 unsupported, 1 to run", "about 138.3 kB on disk"]


def test_what_builds_a_model_is_seen_to_load_it() -> None:
    code = "import sys, peftbench.methods as m; m.apply; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_slot_of_a_sweep_loads_the_model_libraries_before_it_takes_a_job() -> None:
    code = (
        "import sys; from peftbench.cli.libraries import warm_up; warm_up(); "
        "print(sorted({'torch', 'timm', 'hydra', 'peftbench.run.keep'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['hydra', 'peftbench.run.keep', 'timm', 'torch']\n"


@pytest.mark.parametrize(
    "begin",
    [
        "from peftbench.cli import run as at; at.run_with_hydra = told; at.run([])",
        "from peftbench.cli import server as at; at.die_with = print; at.warm_up = told; at.main()",
    ],
    ids=["a run", "a slot"],
)
def test_how_threads_wait_is_said_before_torch_is_there_to_hear_it(begin: str) -> None:
    code = f"""
import os, sys
def told(*_):
    print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'], file=sys.stderr)
    sys.exit()
{begin}
"""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept)
    assert (done.returncode, done.stderr) == (0, "False 1000\n")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_waits_for_an_import_and_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    seen = []
    monkeypatch.setattr(importlib, "import_module", lambda name: seen.append(gc.isenabled()))
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_libraries()
        assert (seen, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if before else gc.disable)()
