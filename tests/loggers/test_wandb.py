"""`logger=wandb` mirrors a run, offline without a key, and never gets in its way."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from records import record
from support.tiny_runs import tiny_spec
from wandb_log import read_runs

from peftbench.loggers import WARNING, LoggerSettings, ledger, make
from peftbench.loggers.wandb import (
    Child,
    finish_message,
    resolve_mode,
    start_message,
    summary,
    tags,
)
from peftbench.results import privacy
from peftbench.results.record import Provenance, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import Phase
from peftbench.sweep.launchers import pool
from peftbench.sweep.launchers.base import _sweep_name

pytest.importorskip("wandb")

CPU = experiment.RunOptions(device="cpu")
PATIENT = 300.0  # seconds; tests run on busy machines


def settings(**changes: object) -> LoggerSettings:
    fields: dict[str, object] = {"name": "wandb", "group": "night", "timeout": PATIENT}
    return LoggerSettings(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_run_without_a_key_is_mirrored_offline(
    store: ResultsStore, quick: None, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec("partial", phase=Phase.TUNE)
    logger = make(settings(tags=("mine",)), store.root)
    record = experiment.run(spec, store, CPU, logger=logger)
    assert record.status is Status.OK
    assert capfd.readouterr() == ("", "")

    (run,) = read_runs(store.root)
    assert (run.run_id, run.project, run.group) == (spec.run_id, "peftbench", "night")
    assert (run.job_type, run.exit_code) == ("tune", 0)
    assert run.host == "not told"  # the client would send that of this machine
    assert run.tags == ("partial", "vit_mini", "mini/digits", "mini", "mine", "OK")
    assert run.config == {"run_id": spec.run_id, **spec.describe()}
    losses = [(row["_step"], row["epoch"], row["train/loss"]) for row in run.history]
    assert losses == [(row.epoch, row.epoch, row.loss) for row in record.history]
    expected = summary(record)
    assert {key: run.summary[key] for key in expected} == expected
    assert ledger.read(store.root, spec.run_id) == ledger.LedgerEntry(
        "night", "offline peftbench at https://api.wandb.ai", record.finished
    )


def test_a_blocked_network_costs_one_line_and_the_run_is_kept_offline(
    store: ResultsStore,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    logger = make(settings(mode="online"), store.root)
    record = experiment.run(tiny_spec(), store, CPU, logger=logger)
    assert record.status is Status.OK
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"{WARNING}logger=wandb: http://127.0.0.1:9 cannot be reached")
    assert "`peftbench push` uploads it later." in line
    (run,) = read_runs(store.root)
    assert run.run_id == record.run_id
    assert run.summary["status"] == "OK"
    entry = ledger.read(store.root, record.run_id)
    assert entry == ledger.LedgerEntry("night")  # has arrived nowhere


def test_a_server_that_never_answers_delays_no_run_beyond_the_timeout(
    store: ResultsStore,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        logger = make(settings(mode="online", timeout=1), store.root)
        finished = {}
        finish = logger.finish

        def timed(record):
            began = time.perf_counter()
            finish(record)
            finished["seconds"] = time.perf_counter() - began

        monkeypatch.setattr(logger, "finish", timed)
        record = experiment.run(tiny_spec(), store, CPU, logger=logger)
    assert record.status is Status.OK
    assert finished["seconds"] < 1 + 60  # and what a busy machine needs to end a process
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{WARNING}logger=wandb: no answer within 1 s of the end of the run.")


def test_a_run_whose_process_is_gone_ends_as_failed(store: ResultsStore) -> None:
    spec = tiny_spec()
    child = Child(store.root)
    child.tell("start", **start_message(spec.run_id, spec.describe(), settings(), "offline"))
    with child.deadline(PATIENT):
        child.end()  # what the death of the parent looks like
    (run,) = read_runs(store.root)
    assert (run.run_id, run.exit_code) == (spec.run_id, 1)


def test_a_child_that_dies_says_why_and_leaves_nothing_open(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftbench.loggers.wandb.CHILD", "peftbench.no_such_module")
    child = Child(store.root)
    with pytest.raises(Exception, match=r"ended with status 1: .*No module named"):
        child.ask("finish")
    assert child.gone
    child.kill()  # a second time does nothing


def test_failed_runs_are_told_from_those_that_make_no_sense() -> None:
    codes = {status: finish_message(record(status=status), settings()) for status in Status}
    assert {status for status, told in codes.items() if told["exit_code"]} == {
        status for status in Status if not status.settled
    }
    assert all(told["tags"][-1] == status for status, told in codes.items())
    assert codes[Status.DIVERGED]["summary"]["error"] == "the loss is not finite"
    assert codes[Status.OK]["summary"]["error"] is None


def test_the_summary_is_flat_and_holds_no_value_that_json_lacks() -> None:
    told = summary(dataclasses.replace(record(), metrics={"test/top1": 0.5, "test/ece": None}))
    assert told["test/top1"] == 0.5
    assert "test/ece" not in told
    assert (told["parameters/tuned"], told["parameters/stored_bytes"]) == (15, 120)
    assert all(not isinstance(value, dict) for value in told.values())


def test_what_is_sent_tells_neither_where_files_lie_nor_whose_machine_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privacy, "_here", lambda: ("node17", "annelise"))
    run = record()
    run.spec["dataset"]["root"] = "/home/annelise/My Data/set"
    run.spec["backbone"] |= {
        "checkpoint": "/scratch/annelise/a.pth",
        "checkpoint_sha256": "ab" * 32,
    }
    origin = Provenance(
        *("0.1.0", "3.11", {"torch": "2.9"}, None, None, "node17", "linux", 2),
        backbone_source="/scratch/annelise/a.pth",
    )
    run = dataclasses.replace(
        run,
        provenance=origin,
        error="/home/annelise/My Data/set/1.png cannot be decoded on node17",
        notes=["weights of /scratch/annelise/a.pth"],
    )
    told = [
        start_message(run.run_id, run.spec, settings(), "offline"),
        finish_message(run, settings()),
    ]
    text = json.dumps(told)
    assert not [word for word in ("annelise", "node17", "/home", "/scratch") if word in text]
    assert "1.png cannot be decoded on ..." in text and "weights of a.pth" in text
    assert told[0]["init"]["config"]["backbone"]["checkpoint"] == "a.pth"


def test_tags_are_unique_and_short() -> None:
    spec = tiny_spec().describe()
    spec["dataset"] |= {"name": "x" * 100, "suite": ""}
    assert tags(spec, ("linear", "own")) == ["linear", "vit_mini", "x" * 64, "own"]


def test_the_mode_follows_the_key(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == "offline"
    assert resolve_mode("online") == "online"
    netrc = nobody / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    os.chmod(netrc, 0o600)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere:8080")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert resolve_mode("auto") == "online"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"


@pytest.mark.parametrize("wrong", ["", "machine", "machine x\nmachine"])
def test_a_damaged_netrc_is_no_key(nobody: Path, wrong: str) -> None:
    (nobody / ".netrc").write_text(wrong)
    assert resolve_mode("auto") == "offline"


def sweep(*overrides: str, experiment: str | None = None) -> str:
    hydra = {
        "overrides": {"task": list(overrides)},
        "runtime": {"choices": {"experiments": experiment}},
    }
    return _sweep_name(OmegaConf.create({"hydra": hydra}))


def test_a_sweep_is_named_after_its_experiment_or_by_what_it_asks_for() -> None:
    assert sweep("experiments=demo", experiment="demo") == "demo"
    name = sweep("method=linear,lora", "seed=0,1")
    assert name.startswith("sweep-") and len(name) == 14
    same = ("results_dir=x", "device=cpu", "threads=1", "force=true", "logger=wandb")
    assert sweep("seed=0,1", "method=linear,lora", *same, "logger.project=p") == name
    assert sweep("seed=0,1,2", "method=linear,lora") != name


def test_every_job_of_a_sweep_gets_the_group(monkeypatch: pytest.MonkeyPatch, cli) -> None:
    jobs = []
    monkeypatch.setattr(pool, "show", lambda found, store, slots, **_: jobs.extend(found))
    cli("plan", "logger=wandb", "seed=0,1")
    groups = {override for job in jobs for override in job.overrides if "logger.group" in override}
    assert len(jobs) == 2 and len(groups) == 1
    jobs.clear()
    cli("plan", "logger=wandb", "logger.group=mine", "seed=0")
    assert [o for o in jobs[0].overrides if "logger.group" in o] == ["logger.group=mine"]
    jobs.clear()
    cli("plan", "seed=0")
    assert not [o for o in jobs[0].overrides if "logger" in o]
