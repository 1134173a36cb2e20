"""`peftbench compare` from the command line: what it runs, keeps, tells and refuses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_runs import write_images

from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

QUICK = ("--backbone", "vit_mini", "--image-size", "12", "--minutes", "0.001")


def states(root: Path) -> dict[str, int]:
    """When each record was written."""
    return {str(p): p.stat().st_mtime_ns for p in root.rglob("*.json") if p.parent.name != "models"}


def test_a_comparison_ends_with_a_model_and_goes_on_without_running_anything_twice(
    cli, work: Path
) -> None:
    write_images(work / "pets", per_class=10)
    done = cli("compare", "pets", *QUICK, "--methods", "linear")
    assert done.status == 0, done.err
    records = list(ResultsStore("results").records())
    assert {record.spec["method"]["name"] for record in records} == {
        *("majority", "logistic", "knn", "linear")
    }
    # three that give val and are tested, three rates of linear and its final run
    assert len(records) == 3 * 2 + 3 + 1
    assert {record.status for record in records} == {Status.OK}
    assert {record.spec["dataset"]["fold"] for record in records} == {0}  # no time for others
    (linear,) = (r for r in records if r.spec["method"]["name"] == "linear" and r.split == "test")
    assert linear.tuning is not None and linear.tuning["trials"] == 3
    assert linear.tuning["searched"] == ["recipe.lr"]
    lines = done.out.splitlines()
    (taken,) = (line.split()[1].rstrip(":") for line in lines if line.startswith("Take "))
    (model,) = (line.split(": ")[1] for line in lines if line.startswith("Model of "))
    card = json.loads((work / model / "card.json").read_text(encoding="utf-8"))
    assert card["spec"]["method"]["name"] == taken
    assert f"  peftbench predict {model} PICTURES" in lines
    before = states(work / "results" / "runs")
    again = cli("compare", "pets", *QUICK, "--methods", "linear")
    assert again.status == 0, again.err
    assert states(work / "results" / "runs") == before
    assert [line for line in again.out.splitlines() if line.startswith("Take ")] == [
        line for line in lines if line.startswith("Take ")
    ]


def test_pictures_with_a_test_list_of_their_own_have_one_split(cli, work: Path) -> None:
    write_images(work / "pets", per_class=10)
    rows = ["path,label,split"]
    for kind in ("cat", "dog"):
        for index in range(10):
            split = "test" if index < 3 else "train"
            rows.append(f"pets/{kind}/{index}.png,{kind},{split}")
    (work / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = cli("compare", "list.csv", *QUICK, "--methods", "knn", "--for", "mean-per-class")
    assert done.status == 0, done.err
    assert "split 1 of 1" in done.out
    records = list(ResultsStore("results").records())
    assert {record.spec["recipe"]["class_weights"] for record in records} == {"balanced"}
    assert {record.metrics.get("test/num_images") for record in records} == {None, 6.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere"),
        (("pets", "--results-dir", "pets/cat/0.png"), "cannot be written"),
        (("pets", "--methods", "lorra"), "lora"),
        (("pets", "--backbone", "vit_minni"), "vit_mini"),
        (("pets", "--threads", "0"), "threads=0"),
        (("pets", "--image-size", "0"), "image_size=0"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line_and_leaves_nothing(
    cli, work: Path, arguments: tuple[str, ...], said: str
) -> None:
    write_images(work / "pets", per_class=4)
    done = cli("compare", *arguments, "--minutes", "0.001")
    assert done.status == 2
    assert said in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (work / "results" / "runs").exists()


def finished(root: Path) -> dict[str, bytes]:
    """Every record that needs no rerun, as it lies on disk."""
    store = ResultsStore(root)
    return {
        record.run_id: store.path(str(record.spec["method"]["name"]), record.run_id).read_bytes()
        for record in store.records()
        if record.status is Status.OK
    }


@pytest.mark.slow  # a minute
def test_a_comparison_that_is_killed_goes_on_and_repeats_no_finished_run(work: Path) -> None:
    write_images(work / "pets", per_class=12)
    command = [sys.executable, "-m", "peftbench", "compare", "pets", "--backbone", "vit_mini"]
    command += ["--image-size", "12", "--minutes", "0.5", "--threads", "1"]
    rng, settled = random.Random(0), dict[str, bytes]()
    for strike in range(6):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            time.sleep(rng.uniform(3.0, 14.0))  # it is at work after 5 s
            one.send_signal(signal.SIGTERM if strike % 2 else signal.SIGKILL)
            one.wait(120)
        after = finished(work / "results")
        assert {run_id: after[run_id] for run_id in settled} == settled
        settled = after
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Take " in done.stdout
    after = finished(work / "results")
    assert {run_id: after[run_id] for run_id in settled} == settled
    assert not (work / "results" / ".scratch").exists()
