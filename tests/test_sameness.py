"""What shows that nothing changed: it sees every change but those of two runs of one code."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from peftbench.methods.lora import LoRA
from peftbench.results.record import Cost, EpochRow, Provenance, RunRecord, Status
from peftbench.spec import BackboneSpec, DatasetSpec, RunSpec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import sameness  # noqa: E402 - beside the tools

SPEC = RunSpec(
    LoRA(), BackboneSpec(name="vit_mini"), DatasetSpec(name="mini/digits", reader="mini")
)


def record(seconds: float, host: str) -> dict[str, Any]:
    """A record of a run that took so long on that machine."""
    times = {
        field.name: seconds
        for field in dataclasses.fields(Cost)
        if field.name.startswith(("seconds", "step", "latency_ms", "train_images"))
    }
    run = RunRecord(
        SPEC.run_id,
        SPEC.describe(),
        Status.OK,
        metrics={"test/top1": 0.5},
        cost=Cost(f"processor of {host}", "float32", **times, peak_bytes=int(seconds)),
        history=[EpochRow(1, 2.0, 0.25, 1e-3, seconds)],
        provenance=Provenance(
            peftbench=host,
            python=host,
            versions={"torch": host},
            git_commit=host,
            git_dirty=host == "here",
            host=host,
            platform=host,
            cpu_threads=1,
            driver=host,
            preprocessing={"size": 48, "backend": host},
        ),
        started=host,
        finished=host,
    )
    content: dict[str, Any] = json.loads(run.to_json())
    return content


def swept(run: dict[str, Any], **files: str) -> dict[str, Any]:
    return {"records": {run["run_id"]: sameness.normalised(run)}, "files": files}


def test_times_machines_dates_commits_and_versions_are_no_difference() -> None:
    here, there = record(7.5, "here"), record(80.25, "there")
    assert here != there
    assert sameness.differences(swept(here), swept(there)) == []


def test_a_stand_in_keeps_whether_there_is_a_value_and_of_which_type() -> None:
    before, after = record(7.5, "here"), sameness.normalised(record(7.5, "here"))
    assert before["cost"]["merged_latency_ms_batch1"] is None
    assert after["cost"]["merged_latency_ms_batch1"] is None
    assert isinstance(after["cost"]["step_ms"], float)
    assert isinstance(after["cost"]["peak_bytes"], int)
    assert after["provenance"]["git_dirty"] is False
    assert after["provenance"]["git_commit"] == "0" * 40
    assert after["provenance"]["versions"] == {"torch": "stand-in"}
    before["cost"]["step_ms"] = None
    (line,) = sameness.differences(swept(before), {"records": {SPEC.run_id: after}, "files": {}})
    assert line.startswith(
        f"{SPEC.run_id} (lora x vit_mini x mini/digits) cost.step_ms: null became "
    )


def test_a_time_that_is_shown_in_the_place_of_another_would_be_seen() -> None:
    """Stand-ins of fields and of runs differ."""
    drawn = {
        sameness.stand_in(1.0, path, run_id)
        for path in ("cost.step_ms", "cost.seconds_train")
        for run_id in ("a" * 16, "b" * 16)
    }
    assert len(drawn) == 4
    assert all(1.0 <= value < 10.0 for value in drawn)


def test_what_varies_are_fields_that_records_have_and_no_others_change() -> None:
    given = record(7.5, "here")
    merged = ("batch1", "batch", "batch1_iqr", "batch_iqr")
    given["cost"].update({f"merged_latency_ms_{of}": 1.5 for of in merged})
    lines = sameness.differences({"records": {SPEC.run_id: given}, "files": {}}, swept(given))
    paths = {line.partition(") ")[2].partition(":")[0] for line in lines}
    expected = {
        name.replace("*", "torch" if "versions" in name else "0") for name in sameness.VARYING
    }
    assert paths == expected


def test_a_changed_number_a_lost_field_and_another_file_are_one_line_each() -> None:
    before = record(7.5, "here")
    after = copy.deepcopy(before)
    after["metrics"]["test/top1"] = 0.5000000000000001
    del after["history"][0]["lr"]
    after["schema"] = 1.0
    name = f"{SPEC.run_id} (lora x vit_mini x mini/digits)"
    assert sameness.differences(
        swept(before, page="aa", table="bb"), swept(after, table="bc", more="dd")
    ) == [
        f"{name} metrics.test/top1: 0.5 became 0.5000000000000001",
        f"{name} history.0.lr: only before",
        f"{name} schema: 1 became 1.0",
        "file page: only before",
        'file table: "bb" became "bc"',
        "file more: only after",
    ]
    nothing: dict[str, Any] = {"records": {}, "files": {}}
    assert sameness.differences(swept(before), nothing) == [f"{name}: only before"]
    assert sameness.differences(nothing, swept(before)) == [f"{name}: only after"]


def test_compare_prints_a_count_of_what_is_the_same_and_fails_on_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = record(7.5, "here"), record(80.25, "there")
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    monkeypatch.setattr(sys, "argv", ["sameness.py", "compare", *map(str, paths)])
    for path, run in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(swept(run, table="aa")), encoding="utf-8")
    assert sameness.main() == 0
    assert capsys.readouterr().out == "1 records and 1 files are the same\n"
    after["history"][0]["loss"] = 2.5
    paths[1].write_text(json.dumps(swept(after, table="aa")), encoding="utf-8")
    assert sameness.main() == 1
    name = f"{SPEC.run_id} (lora x vit_mini x mini/digits)"
    assert capsys.readouterr().out == f"{name} history.0.loss: 2.0 became 2.5\n"


def test_a_copy_has_the_layout_of_a_record_and_a_file_of_another_layout_is_refused(
    tmp_path: Path,
) -> None:
    path, to = tmp_path / "a.json", tmp_path / "copies" / "a.json"
    given = record(7.5, "here")
    given["spec"]["dataset"]["limit"] = 64
    path.write_text(sameness.written(given), encoding="utf-8")
    kept = sameness.copied(path, to)
    assert kept["spec"]["dataset"]["limit"] == 64
    copy_ = RunRecord.from_json(to.read_text(encoding="utf-8"))
    assert copy_.spec["dataset"]["limit"] is None  # the page shows whole runs only
    assert copy_.to_json() == to.read_text(encoding="utf-8")
    path.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(ValueError, match="is not JSON that is indented by one"):
        sameness.copied(path, to)


def test_run_ids_of_records_are_computed_again(tmp_path: Path) -> None:
    given = record(7.5, "here")
    path = tmp_path / "runs" / "lora" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(given), encoding="utf-8")
    assert sameness.changed_ids(tmp_path) == (1, [])
    given["run_id"] = "0" * 16
    path.write_text(json.dumps(given), encoding="utf-8")
    line = f"lora x vit_mini x mini/digits: {'0' * 16}, now {SPEC.run_id}"
    assert sameness.changed_ids(tmp_path) == (1, [line])


def test_run_ids_of_a_plan_are_read_whatever_becomes_of_the_jobs() -> None:
    text = (
        f"{'a' * 16}  to run       full x vit_mini x mini/digits, seed 0\n"
        f"{'b' * 16}  done         lora x vit_mini x mini/digits, seed 12, about 3 s\n"
        f"{'c' * 16}  unsupported  vpt_pad x vit_mini x mini/digits, seed 1: it says x and y\n"
        "3 jobs: 1 done, 1 unsupported, 1 to run\n"
    )
    assert sameness.ids_of_plan(text) == {
        ("full", "vit_mini", "mini/digits", "0"): "a" * 16,
        ("lora", "vit_mini", "mini/digits", "12"): "b" * 16,
        ("vpt_pad", "vit_mini", "mini/digits", "1"): "c" * 16,
    }
