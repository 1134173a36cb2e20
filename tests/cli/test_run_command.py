"""`peftbench run`: what it says, what it leaves, and its exit status."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig
from support.tiny_runs import QUICK
from torch import nn

from peftbench import __version__
from peftbench.cli.start import is_one_run
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import measure


def records(folder: Path) -> dict[str, Status]:
    return {record.run_id: record.status for record in ResultsStore(folder / "results").records()}


def test_a_run_prints_its_result_and_where_its_record_is(cli, work: Path) -> None:
    done = cli("run", "method=lora", "method.rank=1", *QUICK)
    assert (done.status, done.err) == (0, "")
    (run_id,) = records(work)
    record = ResultsStore("results").get(run_id)
    assert record is not None and record.metrics["test/top1"] is not None
    top1 = 100 * record.metrics["test/top1"]
    mean = 100 * record.metrics["test/mean_per_class"]
    first, second = done.out.splitlines()
    assert first.startswith(
        f"lora x vit_mini x mini/digits, seed 0: {top1:.1f} % top-1, {mean:.1f} % mean per class "
        "of 4 test images, "
    )
    assert second == f"  results/runs/lora/{run_id}.json"
    assert (work / second.strip()).is_file()


def test_a_finished_run_is_not_repeated(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli("run", *QUICK)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measure, "fit", refuse)
    second = cli("run", *QUICK)
    assert (second.status, second.err) == (0, "")
    title = "linear x vit_mini x mini/digits, seed 0"
    assert second.out == f"{title}: already done (force=true runs it again)\n{first.out}"


def test_run_may_be_left_out(cli) -> None:
    done = cli(*QUICK, "phase=tune", "seed=4")
    assert done.status == 0
    assert done.out.startswith("linear x vit_mini x mini/digits, seed 4, tune: ")
    assert " % mean per class of 4 val images, " in done.out


def test_python_m_peftbench_is_the_same_command(
    cli, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = cli("run", "--cfg", "job", "method=lora")
    monkeypatch.setattr(sys, "argv", ["peftbench", "run", "--cfg", "job", "method=lora"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("peftbench", run_name="__main__")
    assert exit.value.code == 0
    assert capfd.readouterr().out == expected.out


def test_a_command_leaves_sys_argv_alone(cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["ipython", "--matplotlib", "seed=9"]
    monkeypatch.setattr(sys, "argv", argv)
    seen: list[list[str]] = []

    def fail(*args: object, **kwargs: object) -> nn.Module:
        seen.append(sys.argv)
        raise ArithmeticError

    monkeypatch.setattr(measure, "fit", fail)
    assert cli("run", *QUICK).status == 1
    assert [record.spec["seed"] for record in ResultsStore("results").records()] == [0]
    assert len(seen) == 1 and seen[0] is argv
    assert argv == ["ipython", "--matplotlib", "seed=9"]


def test_processes_of_a_run_get_the_arguments_of_its_command(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], int]] = []

    def start(arguments: list[str], processes: int) -> int:
        started.append((arguments, processes))
        return 5

    monkeypatch.setattr("peftbench.cli.processes.run_together", start)
    monkeypatch.setattr(sys, "argv", ["other", "method=full"])
    assert cli("run", *QUICK, "processes=2").status == 5
    assert started == [([*QUICK, "processes=2"], 2)]


def test_a_failed_run_has_status_1_and_says_why(cli, work: Path) -> None:
    done = cli("run", "method=bias", *QUICK, "recipe.lr=1e30", "recipe.epochs=2")
    assert done.status == 1
    assert done.out == ""
    first, second = done.err.splitlines()
    assert first == (
        "bias x vit_mini x mini/digits, seed 0: DIVERGED: the loss of epoch 1 of 2 is nan. "
        "Lower recipe.lr (now 1e+30) or set recipe.clip_grad."
    )
    ((run_id, status),) = records(work).items()
    assert second == f"  results/runs/bias/{run_id}.json"
    assert status is Status.DIVERGED


def test_a_pair_that_makes_no_sense_has_status_3(cli, work: Path) -> None:
    pair = ("method=vpt_deep", "backbone.name=test_resnet", "backbone.pretrained=false")
    for _ in range(2):  # and the same when it is already recorded
        done = cli("run", *pair, "dataset.limit=4")
        assert done.status == 3
        assert (
            "vpt_deep x test_resnet (random) x mini/digits, seed 0: UNSUPPORTED: vpt_deep needs a "
            "token stream, but the blocks of resnet backbones exchange feature maps." in done.err
        )
    assert list(records(work).values()) == [Status.UNSUPPORTED]


def test_an_interrupted_run_has_status_130_and_continues(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> nn.Module:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "fit", interrupt)
        done = cli("run", *QUICK)
    assert done.status == 130
    assert done.err.splitlines()[-1] == "peftbench: interrupted; the same command continues"
    assert list(records(work).values()) == [Status.INTERRUPTED]
    assert cli("run", *QUICK).status == 0
    assert list(records(work).values()) == [Status.OK]


def test_the_trace_of_a_failure_is_found_through_the_list_of_runs(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "fit", lambda *args, **kwargs: 1 / 0)
    assert cli("run", *QUICK).status == 1
    ((run_id, status),) = records(work).items()
    assert status is Status.ERROR
    listed = cli("list", "runs", "--status", "failed").out
    log = f"results/runs/linear/{run_id}/log.txt"
    assert f"ZeroDivisionError: division by zero. (trace in {log})" in listed
    assert (work / log).is_file()


def test_results_go_where_they_are_asked_to(cli, work: Path) -> None:
    done = cli("run", *QUICK, "results_dir='a b/c'")
    assert done.status == 0
    (path,) = (work / "a b" / "c" / "runs" / "linear").glob("*.json")
    assert done.out.splitlines()[1] == f"  {path.relative_to(work)}"


def test_cfg_job_prints_the_composed_configuration_and_runs_nothing(cli, work: Path) -> None:
    done = cli("run", "--cfg", "job", "method=lora", "method.rank=3", "recipe.epochs=7")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(
        "method:\n  blocks: []\n  rank: 3\n  alpha: 8.0\n  targets:\n  - auto\n"
        "  dropout: 0.0\nbackbone:\n"
    )
    assert "\n  epochs: 7\n" in done.out
    assert "hydra" not in done.out
    assert list(work.iterdir()) == []


def test_cfg_job_prints_the_values_in_force(cli, work: Path) -> None:
    folder = work / "conf" / "dataset" / "vtab"
    folder.mkdir(parents=True)
    (folder / "dtd.yaml").write_text("{name: vtab/dtd, reader: folder, root: nowhere}\n")
    chosen = ["protocol=ssf", "method=ssf", "dataset=vtab/dtd"]
    for options in (["--cfg", "job", "-p", "recipe"], ["-c", "job", "-p", "recipe"]):
        done = cli("run", *options, *chosen)
        assert (done.status, done.err) == (0, "")
        assert "\nlr: 0.005\nweight_decay: 5.0e-05\n" in done.out


def test_a_table_without_a_row_is_one_line(cli, work: Path) -> None:
    folder = work / "conf" / "dataset" / "vtab"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("{name: vtab/own, reader: folder, root: nowhere}\n")
    done = cli("run", "protocol=fact", "method=fact_tk", "dataset=vtab/own")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("peftbench: recipe=fact has no value for dataset=vtab/own in its ")
    assert done.err.count("\n") == 1


def test_an_unknown_protocol_comes_with_suggestions(cli) -> None:
    done = cli("run", "protocol=vtp")
    assert done.status == 2
    assert done.err.startswith("peftbench: Unknown protocol 'vtp'. Did you mean: vpt")


def test_options_may_stand_before_or_after_the_overrides(cli, work: Path) -> None:
    before = cli("run", "--cfg", "job", "method=lora", "seed=3")
    after = cli("run", "method=lora", "seed=3", "--cfg", "job")
    assert (after.status, after.err) == (0, "")
    assert after == before
    for sweep in (["-m", "method=linear", "seed=-1"], ["method=linear", "seed=-1", "-m"]):
        done = cli("run", *sweep)
        assert done.status == 2
        assert done.err == "peftbench: seed=-1 is negative. Use 0 or a positive integer.\n"
    done = cli("plan", "method=linear", *QUICK, "--config-dir", str(work))
    assert (done.status, done.err) == (0, "")
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], [], ["run", "--help"]])
def test_help_and_version_have_status_0(cli, arguments: list[str], work: Path) -> None:
    done = cli(*arguments)
    assert (done.status, done.err) == (0, "")
    expected = f"peftbench {__version__}\n" if arguments == ["--version"] else "usage: peftbench"
    assert done.out.startswith(expected)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("command", ["list", "report"])
def test_every_command_has_help(cli, command: str) -> None:
    done = cli(command, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"usage: peftbench {command}")


def test_the_help_of_hydra_is_refused_at_once_and_says_where_the_options_are(cli) -> None:
    refused = cli("run", "--hydra-help")
    assert refused.status == 2 and "`peftbench run --help` has the options" in refused.err


@pytest.mark.parametrize(
    ("arguments", "one"),
    [
        (("seed=1",), True),
        (("method=lora", "experiments=mini", "hydra.sweep.dir=scratch"), True),
        (("-m", "seed=1"), False),
        (("--cfg", "job"), False),
        (("--config-dir", "more", "seed=1"), False),
        (("hydra.mode=MULTIRUN",), False),
        (("+hydra.job.chdir=true",), False),
    ],
)
def test_what_is_one_run_for_sure_is_composed_once(
    work: Path, arguments: tuple[str, ...], one: bool
) -> None:
    assert is_one_run(get_args_parser().parse_args(arguments)) is one


def test_a_run_is_composed_once(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    compose = Hydra.compose_config

    def counted(*arguments: Any, **options: Any) -> DictConfig:
        composed.append(arguments)
        return compose(*arguments, **options)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    monkeypatch.setattr(Hydra, "get_mode", None)  # which composes too
    refused = cli("run", "method=lora", "method.rank=0")
    assert refused.err.startswith("peftbench: method=lora: rank=0; use 1 or more.")
    assert len(composed) == 1


@pytest.mark.parametrize("folder", ["conf", "experiments"])
def test_a_configuration_of_somebody_else_may_ask_for_many_runs(work: Path, folder: str) -> None:
    (work / folder).mkdir()
    assert not is_one_run(get_args_parser().parse_args(["seed=1"]))
