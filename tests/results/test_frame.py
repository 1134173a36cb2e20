"""Promises of the table of runs: every run, every digit, documented columns."""

from __future__ import annotations

import dataclasses
import random
import sys

import pandas as pd
import pytest

import peftbench
from peftbench.errors import ConfigError, StoreError
from peftbench.results.columns import COLUMNS, EPOCH_COLUMNS
from peftbench.results.frame import committed, epochs, frame, select
from peftbench.results.record import Cost, EpochRow, Status
from peftbench.results.settings import settings_of, settings_text
from peftbench.results.store import ResultsStore, StoreWarning
from peftbench.results.table_files import read_table, write_table

NA = pd.NA


def test_one_run_fills_its_row_column_by_column(make_record):
    row = frame([make_record()]).iloc[0].to_dict()
    expected = {
        "schema": 1,
        "run_id": "0123456789abcdef",
        "status": "OK",
        "error": NA,
        "method": "lora",
        "method_version": 2,
        "hyperparameters": "rank=8,alpha=8.0,roles=[qkv,fc1]",
        "backbone": "vit_mini",
        "backbone_tag": "vit_mini.tag",
        "dataset": "digits",
        "suite": "mini",
        "suite_version": 3,
        "group": "natural",
        "shots": 4,
        "split_seed": NA,
        "folds": NA,
        "fold": NA,
        "seed": 1,
        "phase": "final",
        "protocol": "peftbench",  # of records without one
        "recipe": "default",
        "recipe_settings": "lr=0.001,epochs=10,flip=false",
        "epochs": 10,
        "lr": 0.001,
        "weight_decay": NA,
        "batch_size": NA,
        "preprocessing": "normalisation=checkpoint,resize=squash",
        "image_size": NA,
        "input_size": NA,
        "sites": NA,
        "drop_path": 0.1,
        "precision": "auto",
        "selection": "last",
        "selection_metric": "top1",
        "selected_epoch": NA,
        "top1_last": NA,
        "tuner": "grid",
        "trials": 12,
        "trial_epochs": 50,
        "searched": "recipe.lr,recipe.weight_decay",  # of a record that does not say it
        "split": "test",
        "top1": 0.30000000000000004,
        "mean_per_class": 1 / 3,
        "f1_macro": NA,  # of a record from before it was measured
        "auroc": NA,
        "loss": 2e-308,
        "ece": 5e-324,
        "num_images": 1797,
        "val_top1": 0.5,  # of the trial that won
        "val_mean_per_class": NA,
        "val_f1_macro": NA,
        "val_auroc": NA,
        "params_method": 300,
        "params_head": 650,
        "params_unfrozen": 20,
        "params_backbone": 5_000_000,
        "params_tuned": 320,  # 300 + 20: the head's 650 are not in it
        "stored_bytes": 3_880,
        "train_images_per_second": NA,
        "step_ms": 1.1,
        "step_ms_without_data": NA,
        "latency_ms_batch1": NA,
        "latency_ms_batch": NA,
        "latency_batch_size": NA,
        "merged_latency_ms_batch1": NA,
        "merged_latency_ms_batch": NA,
        "latency_ms_batch1_iqr": NA,
        "latency_ms_batch_iqr": NA,
        "merged_latency_ms_batch1_iqr": NA,
        "merged_latency_ms_batch_iqr": NA,
        "latency_measured": NA,
        "forward_gmacs": NA,
        "measured_gmacs": NA,
        "training_gflops": NA,
        "kept_bytes": NA,
        "peak_bytes": 2**40,
        "frozen_until": NA,
        "activations_found": NA,
        "activations_computed": NA,
        "seconds_saved": NA,
        "energy_joules": NA,
        "seconds_load": NA,
        "seconds_train": NA,
        "seconds_evaluate": NA,
        "seconds_total": NA,
        "processes": 1,
        "resumed": 0,
        "merge_max_logit_diff": 1.1e-6,
        "backbone_sha256": "ab" * 32,
        "manifest": "loaded",
        "content": NA,
        "train_images": 800,
        "classes": 10,
        "git_commit": "c0ffee",
        "git_dirty": False,
        "peftbench": "0.1.0",
        "torch": "2.9",
        "timm": "1.0",
        "host": "here",
        "device": "cpu",
        "dtype": "float32",
        "limit": NA,
        "data_settings": "shots=4",
        "shift_metrics": NA,
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:00+00:00",
    }
    assert list(row) == list(expected) == [column.name for column in COLUMNS]
    for name, value in expected.items():
        found = row[name]
        assert pd.isna(found) if value is NA else found == value, name


def test_every_field_of_the_cost_has_a_column():
    assert {f.name for f in dataclasses.fields(Cost)} <= {column.name for column in COLUMNS}


@pytest.mark.parametrize("records", [0, 1])
def test_dtypes_are_the_documented_ones(make_record, records):
    found = frame([make_record()] * records).dtypes
    assert [str(dtype) for dtype in found] == [column.dtype for column in COLUMNS]
    assert {column.dtype for column in COLUMNS} == {"string", "Int64", "Float64", "boolean"}


def test_epochs_have_one_row_each_and_lead_to_their_run(make_record):
    history = [EpochRow(1, 2.5, 0.125, 1e-3, 0.5), EpochRow(2, float("inf"), 0.25, 1e-4, 0.75)]
    table = epochs([make_record(run_id="b", history=history[:1]), make_record(history=history)])
    assert list(table.columns) == [column.name for column in EPOCH_COLUMNS]
    assert {name: str(table[name].dtype) for name in table} == {
        column.name: column.dtype.lower() if column.dtype == "string" else column.dtype
        for column in EPOCH_COLUMNS
    }
    assert list(table.itertuples(index=False, name=None)) == [
        ("0123456789abcdef", 1, 2.5, 0.125, 1e-3, 0.5),
        ("0123456789abcdef", 2, NA, 0.25, 1e-4, 0.75),
        ("b", 1, 2.5, 0.125, 1e-3, 0.5),
    ]
    assert len(epochs([])) == 0


def test_a_failed_run_keeps_its_row(make_record):
    failed = make_record(
        status=Status.DIVERGED,
        error="loss is nan",
        metrics={},
        parameters=None,
        cost=None,
        merge=None,
        provenance=None,
    )
    row = frame([failed]).iloc[0]
    assert (row["status"], row["error"], row["method"]) == ("DIVERGED", "loss is nan", "lora")
    assert row["manifest"] == "declared"
    missing = ["top1", "params_tuned", "device", "git_dirty", "backbone_sha256"]
    assert all(row[name] is NA for name in missing)


def test_a_tuning_run_shows_val_and_never_test(make_record):
    record = make_record(metrics={"val/top1": 0.25, "test/top1": 0.75})
    record.spec["phase"] = "tune"
    row = frame([record]).iloc[0]
    assert (row["split"], row["top1"]) == ("val", 0.25)


def test_weights_that_differ_have_different_tags(make_record):
    record = make_record()
    backbone = record.spec["backbone"]
    backbone.update(pretrained=False, seed=4)
    assert frame([record])["backbone_tag"][0] == "vit_mini.tag (random, seed 4)"
    backbone.update(checkpoint="/any/where.pt", checkpoint_sha256="12345678ffff", title="")
    row = frame([record]).iloc[0]
    assert row["backbone_tag"] == "vit_mini.tag (file 12345678)"
    assert row["backbone"] == "vit_mini.tag"


def test_values_that_are_not_finite_are_missing(make_record):
    row = frame([make_record(metrics={"test/top1": float("nan"), "test/loss": None})]).iloc[0]
    assert row["top1"] is NA and row["loss"] is NA


def test_a_run_found_twice_has_one_row(make_record):
    old = make_record(status=Status.ERROR, finished="2026-01-01")
    new = make_record(finished="2025-01-01")
    assert list(frame([old, new, old])["status"]) == ["OK"]


def test_a_store_gives_its_rows_and_a_warning_for_each_broken_file(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    store.add(make_record())
    (tmp_path / "runs" / "lora" / "broken.json").write_text("{")
    with pytest.warns(StoreWarning, match=r"broken\.json"):
        table = frame(store)
    assert list(table["run_id"]) == ["0123456789abcdef"]


def hard_cases(make_record):
    """Records with texts and numbers that careless writers change."""
    generator = random.Random(0)
    records = []
    texts = [
        "NA",
        "nan",
        "",
        " padded ",
        'a "quoted", text',
        "two\nlines",
        "1e5",
        "None",
        "–±\udcff",
    ]
    for i, text in enumerate(texts * 5):
        number = generator.random() * 10.0 ** generator.randint(-300, 300)
        record = make_record(
            run_id=f"{i:016d}",  # digits only: must not become a number
            error=text,
            metrics={"test/top1": number, "test/loss": generator.random()},
        )
        records.append(record)
    return records


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_written_table_is_read_back_bit_for_bit(tmp_path, make_record, file, empty):
    table = frame([] if empty else hard_cases(make_record))
    written = write_table(table, tmp_path / "new")
    assert [path.name for path in written.paths] == ["table.csv", "table.parquet"]
    assert written.notes == ()
    again = read_table(tmp_path / "new" / file)
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["table.csv", "table.parquet"]


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_a_table_from_before_a_column_existed_is_read(tmp_path, make_record, file):
    table = frame([make_record()])
    write_table(table, tmp_path)
    path = tmp_path / file
    if path.suffix == ".csv":
        pd.read_csv(path, dtype=str).drop(columns="classes").to_csv(path, index=False)
    else:
        table.drop(columns="classes").to_parquet(path)
    read = read_table(path)
    assert read["classes"][0] is NA
    pd.testing.assert_frame_equal(read.drop(columns="classes"), table.drop(columns="classes"))


def test_plain_pandas_reads_the_csv_numbers_exactly(tmp_path, make_record):
    table = frame(hard_cases(make_record))
    write_table(table, tmp_path)
    plain = pd.read_csv(tmp_path / "table.csv", converters={"top1": float})
    assert plain["top1"].tolist() == table["top1"].tolist()


def test_without_pyarrow_the_csv_is_written_and_an_outdated_parquet_removed(
    tmp_path, make_record, monkeypatch
):
    table = frame([make_record()])
    write_table(table, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    written = write_table(table, tmp_path)
    assert [path.name for path in written.paths] == ["table.csv"]
    assert "pyarrow is missing" in written.notes[0] and "pip install" in written.notes[0]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.fixture
def table(make_record):
    records = []
    for i, method in enumerate(["lora", "linear", "bias"]):
        record = make_record(run_id=str(i), method=method)
        record.spec["seed"] = i
        record.spec["dataset"]["limit"] = None if i else 20
        records.append(record)
    return frame(records)


@pytest.mark.parametrize(
    ("where", "run_ids"),
    [
        ([], {"0", "1", "2"}),
        (["method=lora,linear"], {"0", "1"}),
        (["method=lora, bias", "seed=1,2"], {"2"}),
        (["limit=null"], {"1", "2"}),
        (["limit=20"], {"0"}),
        (["git_dirty=False"], {"0", "1", "2"}),
        (["top1=0.30000000000000004"], {"0", "1", "2"}),
        (["hyperparameters=rank=8,alpha=8.0,roles=[qkv,fc1]"], {"0", "1", "2"}),
        (["seed=7"], set()),
        (["status=DIVERGED"], set()),
        (["error=null"], {"0", "1", "2"}),
    ],
)
def test_conditions_choose_rows(table, where, run_ids):
    chosen = select(table, where)
    assert set(chosen["run_id"]) == run_ids
    assert list(chosen.index) == list(range(len(chosen)))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("metod=lora", r"Unknown column 'metod'\. Did you mean: method"),
        ("method=loar", r"Unknown method 'loar'\. Did you mean: lora.*Known: bias, linear, lora"),
        ("status=FINE", r"Unknown status 'FINE'.*Known: DIVERGED"),
        ("method", r"'method' is not column=value"),
        ("=lora", r"'=lora' is not column=value"),
    ],
)
def test_a_condition_that_cannot_hold_is_explained(table, condition, message):
    with pytest.raises(ConfigError, match=message):
        select(table, ["seed=0", condition])


def test_settings_are_spelled_as_on_the_command_line_and_read_back():
    values = {"rank": 8, "alpha": 8.0, "roles": ["qkv", "fc1"], "bias": None, "on": True}
    text = settings_text(values)
    assert text == "rank=8,alpha=8.0,roles=[qkv,fc1],bias=null,on=true"
    assert settings_of(text) == {
        "rank": "8",
        "alpha": "8.0",
        "roles": "[qkv,fc1]",
        "bias": "null",
        "on": "true",
    }
    assert settings_of("") == {} == settings_of(settings_text({}))
    odd = settings_text({"text": 'a,b="c"', "map": {"k": [1, 2]}, "empty": "", "last": 1})
    assert list(settings_of(odd)) == ["text", "map", "empty", "last"]
    assert settings_of(odd)["map"] == "{k:[1,2]}"


def test_a_table_from_before_a_column_existed_has_it_missing(tmp_path, make_record):
    write_table(frame([make_record()]), tmp_path)
    old = pd.read_csv(tmp_path / "table.csv", dtype=str).drop(columns=["tuner", "trials"])
    old.to_csv(tmp_path / "old.csv", index=False)
    found = read_table(tmp_path / "old.csv")
    assert found.dtypes.to_dict() == frame([make_record()]).dtypes.to_dict()
    assert found["tuner"].isna().all() and found["trial_epochs"].tolist() == [50]


def test_results_are_a_frame_of_a_folder_or_of_one_file(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    for run_id, method in (("a0", "lora"), ("a1", "ssf")):
        record = make_record(run_id, method)
        store.add(record)
    found = peftbench.results(tmp_path)
    write_table(found, tmp_path)
    for name in ("table.csv", "table.parquet"):
        pd.testing.assert_frame_equal(peftbench.results(tmp_path / name), found)
    assert peftbench.results(tmp_path, where="method=ssf")["run_id"].tolist() == ["a1"]
    assert len(peftbench.results(str(tmp_path), where=["method=ssf", "seed=9"])) == 0
    with pytest.raises(ConfigError, match="Unknown column 'metod'"):
        peftbench.results(tmp_path, where="metod=ssf")


def test_results_that_are_not_there_are_refused_in_one_line(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_text("not one")
    for name, message in (
        ("nowhere", "There are no runs in"),
        ("table.csv", "There is no table"),
        ("other.csv", "rows without run_id"),
        ("broken.parquet", "is not a table of runs"),
    ):
        with pytest.raises(StoreError, match=message) as error:
            peftbench.results(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_a_data_set_was_asked_and_shifted_test_sets_have_columns(make_record):
    record = make_record()
    record.spec["dataset"] |= {"shots": 4, "shot_seed": 1, "final_trains_on": "train"}
    record.metrics.update({"last_epoch/top1": 0.5, "imagenet_a/top1": 0.25, "imagenet_c/mce": 0.75})
    row = frame([record]).iloc[0]
    # which list of shots trains varies as the seed does, so that it tells no rows apart
    assert row["data_settings"] == "shots=4,final_trains_on=train"
    assert row["shift_metrics"] == "imagenet_a/top1=0.25,imagenet_c/mce=0.75"


def test_runs_of_changed_code_are_told_from_those_that_can_be_had_again(make_record):
    clean = make_record()
    origin = clean.provenance
    changed = [
        dataclasses.replace(
            clean, run_id=name, provenance=dataclasses.replace(origin, git_dirty=dirty)
        )
        for name, dirty in (("a" * 16, True), ("b" * 16, None), ("c" * 16, True))
    ]
    kept, lines = committed(frame([clean, *changed]))
    assert set(kept["run_id"]) == {clean.run_id, "b" * 16}  # an installed package has no commit
    assert lines == ["2 runs of code that differs from its commit (--dirty shows them)"]
    assert committed(kept)[1] == []
