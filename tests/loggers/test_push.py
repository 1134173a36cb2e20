"""`peftbench push` uploads each finished run once, to one remote run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from records import record
from wandb_log import read_runs
from wandb_server import Server, serving

from peftbench.errors import ConfigError
from peftbench.loggers import LoggerSettings, ledger
from peftbench.loggers.push import Pushed, arrived, push
from peftbench.loggers.wandb import sent
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore

pytest.importorskip("wandb")

SETTINGS = LoggerSettings(name="wandb", mode="online", timeout=60)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server


def remote(server: Server, record: RunRecord) -> tuple[object, ...]:
    run = server.runs[record.run_id]
    rows = [(line["_step"], line["epoch"], line["train/loss"]) for line in run.history.values()]
    config = json.loads(run.fields["config"])
    return (
        run.fields["groupName"],
        run.fields["jobType"],
        set(run.fields["tags"]),
        config["recipe"]["value"]["lr"],
        run.summary["status"],
        run.summary.get("test/top1"),
        run.summary["parameters/tuned"],
        run.summary["cost/seconds_train"],
        rows,
    )


def test_pushing_twice_gives_one_remote_run_each(store: ResultsStore, server: Server) -> None:
    good, bad = record(), record("bias", Status.DIVERGED)
    store.add(good)
    store.add(bad)
    lines: list[str] = []
    assert push(store.root, settings=SETTINGS, say=lines.append) == Pushed(sent=2, reports=1)
    assert [line.partition("]")[0] for line in lines] == [
        "[1/2",
        "[2/2",
        "report of results: pushed",
    ]

    rows = [(1, 1, 2.5), (2, 2, 1.5)]
    names = {"vit_mini", "mini/digits", "mini"}
    expected = {
        good.run_id: ("linear", "OK", 0.75),
        bad.run_id: ("bias", "DIVERGED", None),
    }
    for each in (good, bad):
        method, status, top1 = expected[each.run_id]
        tags = names | {method, status}
        assert remote(server, each) == (
            "results", "final", tags, 1e-3, status, top1, 15, 3.5, rows,
        )  # fmt: skip
    assert server.runs[good.run_id].exit_codes == [0]
    assert server.runs[bad.run_id].exit_codes == [1]
    assert server.runs[bad.run_id].summary["error"] == "the loss is not finite"
    (report,) = server.artifacts.items()
    assert report[0].startswith("report-") and report[0] in server.runs
    assert {"table.csv", "table.md"} <= report[1]

    known, asked = set(server.runs), server.requests
    assert push(store.root, settings=SETTINGS, say=lines.append) == Pushed(skipped=2)
    assert server.requests == asked
    where = ["method=linear"]
    assert push(store.root, where, settings=SETTINGS, force=True).sent == 1
    assert set(server.runs) == known
    assert server.runs[good.run_id].resumed == 1
    assert server.runs[good.run_id].exit_codes == [0, 0]
    assert remote(server, good)[-1] == rows  # an epoch that is there is not there twice


def test_a_server_that_is_away_fails_a_few_runs_and_leaves_the_rest(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    for method in ("linear", "bias", "mlp", "lora", "full"):
        store.add(record(method))
    lines: list[str] = []
    done = push(store.root, settings=SETTINGS, say=lines.append)
    assert (done, done.complete) == (Pushed(failed=3, left=2), False)
    assert all("http://127.0.0.1:9 cannot be reached" in line for line in lines[:3])
    assert lines[3:] == ["3 failures in a row: stopped. The same command continues."]
    assert read_runs(store.root) == []


def test_offline_runs_and_their_report_wait_for_wandb_sync(cli, work: Path) -> None:
    store = ResultsStore(work / "results")
    good = record()
    store.add(good)
    done = cli("push", "--mode", "offline", "--group", "night", "--project", "mine")
    assert (done.status, done.err) == (0, "")
    assert "1 pushed, 0 already there; 1 reports pushed\n" in done.out
    report, run = sorted(read_runs(store.root), key=lambda run: run.job_type == "final")
    assert (run.run_id, run.group, run.project) == (good.run_id, "night", "mine")
    assert (report.group, report.job_type, len(report.artifacts)) == ("night", "report", 1)
    assert {"table.csv", "table.md"} <= set(report.artifacts[0][1])
    again = cli("push", "--mode", "offline", "--group", "night", "--project", "mine")
    assert again.out == "0 pushed, 1 already there; 0 reports pushed\n"
    assert len(read_runs(store.root)) == 2


def test_without_a_key_nothing_is_tried(cli, work: Path) -> None:
    ResultsStore(work / "results").add(record())
    done = cli("push")
    assert (done.status, done.out) == (2, "")
    assert "no key for https://api.wandb.ai. Run `wandb login`" in done.err


def test_a_folder_without_runs_is_no_failure(cli, work: Path) -> None:
    done = cli("push", "--mode", "offline")
    assert (done.status, done.out) == (
        0,
        "No such runs in results. Run: peftbench run method=linear\n",
    )


def test_an_unreadable_record_is_named_and_counts_as_a_failure(cli, work: Path) -> None:
    store = ResultsStore(work / "results")
    path = store.path("linear", "0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    done = cli("push", "--mode", "offline")
    assert done.status == 1
    assert str(path.relative_to(work)) in done.out


def test_a_record_that_changed_is_sent_again(store: ResultsStore) -> None:
    settings = dataclasses.replace(SETTINGS, mode="offline")
    first = record()
    ledger.write(store.root, first.run_id, sent(first, settings, "offline"))
    later = dataclasses.replace(first, finished="2025-02-02T00:00:00+00:00")
    assert arrived(store.root, first, settings)
    assert not arrived(store.root, later, settings)
    assert not arrived(store.root, first, dataclasses.replace(settings, project="other"))
    assert not arrived(store.root, first, dataclasses.replace(settings, group="other"))
    assert not arrived(store.root, first, dataclasses.replace(settings, mode="online"))


def test_a_column_that_does_not_exist_is_refused(store: ResultsStore) -> None:
    store.add(record())
    settings = dataclasses.replace(SETTINGS, mode="offline")
    with pytest.raises(ConfigError, match=r"Unknown column 'methd'\. Did you mean: method"):
        push(store.root, ["methd=lora"], settings=settings)
