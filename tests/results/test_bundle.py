"""Promises of bundles: what comes out goes in unchanged, and nothing that was altered does."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import zipfile

import numpy as np
import pandas as pd
import pytest

from peftbench.errors import ConfigError, StoreError
from peftbench.results.bundles.incoming import import_results
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.frame import frame
from peftbench.results.identity import run_id_of
from peftbench.results.record import SCHEMA, Cost, Status
from peftbench.results.store import ResultsStore


@pytest.fixture
def runs(make_record):
    """Three seeds of one run, with the run ids that their configurations have."""
    made = []
    for seed in range(3):
        record = make_record(metrics={"test/top1": 0.75, "test/loss": 1 / 3}, error=None)
        record.spec["seed"] = seed
        told = dataclasses.replace(record.provenance, host="")  # nothing of this machine
        record = dataclasses.replace(record, provenance=told)
        made.append(dataclasses.replace(record, run_id=run_id_of(record.spec)))
    return made


@pytest.fixture
def root(tmp_path, runs):
    """A results folder with these runs, a card for each and the predictions of the first."""
    store = ResultsStore(tmp_path / "here")
    for record in runs:
        store.add(record)
        store.artefacts(record).mkdir()
        card = {"run_id": record.run_id, "classes": ["a", "b"]}
        (store.artefacts(record) / "card.json").write_text(json.dumps(card))
    store.save_predictions(  # three of four are right: .75
        "lora", runs[0].run_id, classes=[0, 1, 1, 0], confidence=[1] * 4, margin=[1] * 4,
        labels=[0, 1, 1, 1],
    )  # fmt: skip
    return store.root


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """The working directory, where files without a name of their own go."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def bundle(root, tmp_path):
    return export_results(root, tmp_path / "runs.zip", predictions=True).path


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def rewritten(bundle, change, *, honest=False):
    """The bundle with `change` made to its files; `honest` writes an index that fits them."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if honest:
        index = json.loads(files["bundle.json"])
        index["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
            if name != "bundle.json"
        }
        files["bundle.json"] = json.dumps(index).encode()
    out = bundle.with_name("changed.zip")
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out


RECORDS, CARDS = r"runs/lora/\w+\.json", r".*card\.json"


def edit(names, old, new):
    """A change of a text in the files whose names match."""

    def change(files):
        hits = [key for key in files if re.fullmatch(names, key)]
        assert hits and all(old in files[key] for key in hits), (hits, old)
        for key in hits:
            files[key] = files[key].replace(old, new)

    return change


def drop(files):
    """Leave out one record."""
    files.pop(next(name for name in files if re.fullmatch(RECORDS, name)))


def add(name):
    return lambda files: files.update({name: b"{}"})


def test_what_comes_out_goes_in_unchanged(root, bundle, tmp_path, runs):
    done = import_results(bundle, tmp_path / "there")
    assert sorted(done.added) == sorted(r.run_id for r in runs) and done.present == done.kept == ()
    assert contents(tmp_path / "there") == contents(root)
    tables = [frame(ResultsStore(folder)) for folder in (root, tmp_path / "there")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    again = import_results(bundle, tmp_path / "there")
    assert (again.added, len(again.present)) == ((), 3)
    assert export_results(tmp_path / "there", predictions=True).path.read_bytes() == (
        bundle.read_bytes()
    )


FILES = ("a/über.png", "a/1.png", "b/2 of 3.png", "b/3.png")


@pytest.mark.parametrize("names", [False, True])
def test_names_of_image_files_leave_the_machine_only_where_asked_for(root, tmp_path, runs, names):
    store, run_id = ResultsStore(root), runs[0].run_id
    nameless = (store.artefacts(runs[0]) / "predictions.npz").read_bytes()
    store.save_predictions(
        "lora", run_id, names=FILES, classes=[0, 1, 1, 0], confidence=[1] * 4, margin=[1] * 4,
        labels=[0, 1, 1, 1],
    )  # fmt: skip
    made = export_results(root, tmp_path / "runs.zip", predictions=True, names=names)
    import_results(made.path, tmp_path / "there")
    there = ResultsStore(tmp_path / "there")
    found = there.load_predictions("lora", run_id)
    assert found.names == (FILES if names else None)
    assert found.labels.tolist() == [0, 1, 1, 1]
    data = (there.artefacts(runs[0]) / "predictions.npz").read_bytes()
    assert (data == nameless) is not names
    again = export_results(tmp_path / "there", tmp_path / "two.zip", predictions=True, names=names)
    assert again.digest == made.digest


def test_keys_of_a_newer_writer_survive(root, tmp_path, runs):
    path = ResultsStore(root).path("lora", runs[0].run_id)
    path.write_text(path.read_text().replace('"notes"', '"remarks": ["new"],\n "notes"'))
    import_results(export_results(root).path, tmp_path / "there")
    assert "remarks" in ResultsStore(tmp_path / "there").path("lora", runs[0].run_id).read_text()


def test_a_bundle_holds_what_was_chosen_under_a_name_that_tells_its_contents(root, tmp_path):
    made = export_results(root, where=["seed=1,2"])
    assert made.runs == 2 and made.path.name == f"peftbench-results-{made.digest}.zip"
    assert export_results(root, where=["seed=1,2"]) == made
    names = zipfile.ZipFile(made.path).namelist()
    assert len([n for n in names if n.endswith("card.json")]) == 2
    assert not [n for n in names if n.endswith(".npz")]
    done = import_results(made.path, tmp_path / "there")
    assert done.digest == made.digest and len(done.added) == 2


UNLISTED = "is in it or in its list, but not in both"
INDEX, ROWS = r"bundle\.json", r"rows\.csv"


@pytest.mark.parametrize(
    ("change", "honest", "message"),
    [
        (edit(RECORDS, b"0.75", b"0.85"), False, r"altered: the hash of runs/lora/\w+\.json is"),
        (edit(CARDS, b'"a"', b'"abc"'), False, r"altered: .*card\.json does not have the size"),
        (edit(ROWS, b"0.75", b"0.85"), False, r"altered: the hash of rows\.csv is"),
        # hashes written anew: what is said twice must still agree
        (edit(RECORDS, b'"rank": 8', b'"rank": 9'), True, "its configuration has run id"),
        (edit(ROWS, b"0.75", b"0.85"), True, r"rows\.csv does not say what its records say"),
        (
            edit(RECORDS, b"0.75", b"0.85"),
            True,
            r"npz: its top-1 accuracy is 0\.75, and .* record 0\.85",
        ),
        (edit(CARDS, b'"run_id": "', b'"run_id": "f'), True, "it is the card of run f"),
        (add("runs/lora/x.sh"), True, r"'runs/lora/x\.sh' does not belong there"),
        (add("../evil.json"), True, r"'\.\./evil\.json' does not belong there"),
        (add("runs/../0123456789abcdef.json"), True, r"json' does not belong there"),
        (add("runs/lora/x.sh"), False, rf"runs/lora/x\.sh {UNLISTED}"),
        (lambda files: files.pop("rows.csv"), False, rf"rows\.csv {UNLISTED}"),
        (drop, True, "does not hold the 3 runs that it announces"),
        (lambda files: files.pop("bundle.json"), False, r"holds no bundle\.json, so it is no"),
        (edit(INDEX, b'"schema": 1', b'"schema": 99'), False, "schema 99, .* knows schema 1 to 1"),
        (edit(INDEX, b'"format": 1', b'"format": 2'), False, "has format 2, .* newer peftbench"),
        (
            edit(RECORDS, b'"schema": 1', b'"schema": 7'),
            True,
            "its schema is 7, .* newer",
        ),
    ],
)
def test_an_altered_bundle_is_refused_and_nothing_is_written(
    bundle, tmp_path, change, honest, message
):
    assert SCHEMA == 1  # of the texts above
    with pytest.raises(StoreError, match=message) as refused:
        import_results(rewritten(bundle, change, honest=honest), tmp_path / "there")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "there").exists()


def test_predictions_that_do_not_have_the_recorded_accuracy_are_refused(bundle, tmp_path):
    def swap(files):
        (name,) = (n for n in files if n.endswith(".npz"))
        buffer = io.BytesIO()
        np.savez(buffer, classes=np.array([0, 0]), labels=np.array([0, 1]))
        files[name] = buffer.getvalue()

    with pytest.raises(StoreError, match=r"accuracy is 0\.5, and that of the record 0\.75"):
        import_results(rewritten(bundle, swap, honest=True), tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("spoil", ["cut", "other", "folder", "missing"])
def test_what_is_no_bundle_is_refused_in_one_line(bundle, tmp_path, spoil):
    data = bundle.read_bytes()
    path = tmp_path / "odd.zip"
    if spoil == "folder":
        path.mkdir()
    elif spoil != "missing":
        path.write_bytes(data[: len(data) // 2] if spoil == "cut" else b"hello")
    with pytest.raises(StoreError, match="cannot be read as a bundle"):
        import_results(path, tmp_path / "there")


def test_another_result_of_a_run_that_is_here_refuses_the_bundle(bundle, root, tmp_path, runs):
    there = ResultsStore(tmp_path / "there")
    other = dataclasses.replace(runs[0], metrics={"test/top1": 0.5})
    there.add(other)
    before = contents(there.root)
    with pytest.raises(StoreError, match=rf"{other.run_id} of lora \(top1 0.5 here, 0.75 there\)"):
        import_results(bundle, there.root)
    assert contents(there.root) == before
    dry = import_results(bundle, there.root, keep=True, dry_run=True)
    assert contents(there.root) == before
    done = import_results(bundle, there.root, keep=True)
    assert done == dry and (len(done.added), done.kept) == (2, (other.run_id,))
    assert there.get(other.run_id) == other


def test_a_conflict_of_runs_that_were_computed_differently_says_so(bundle, tmp_path, runs):
    there = ResultsStore(tmp_path / "there")
    cost = Cost("NVIDIA A100-SXM4-80GB", "bfloat16")
    other = dataclasses.replace(runs[0], metrics={"test/top1": 0.5}, cost=cost)
    there.add(other)
    with pytest.raises(StoreError) as refused:
        import_results(bundle, there.root)
    said = "(top1 0.5 here in bfloat16 on a GPU, 0.75 there in float32 on a CPU)"
    assert f"{other.run_id} of lora {said}" in str(refused.value)


def test_a_failure_gives_way_to_a_result_and_never_the_other_way_round(root, tmp_path, runs):
    there = ResultsStore(tmp_path / "there")
    failed = [
        dataclasses.replace(r, status=Status.ERROR, metrics={}, error="boom") for r in runs[:2]
    ]
    for record in (failed[0], *runs[1:]):
        there.add(record)
    ResultsStore(root).add(failed[1], replace=True)
    done = import_results(export_results(root).path, there.root)
    assert (done.added, done.kept) == ((runs[0].run_id,), (runs[1].run_id,))
    assert [there.get(r.run_id) for r in runs] == runs


def test_a_record_that_is_not_what_its_run_id_says_is_not_exported(root, runs, tmp_path):
    runs[0].spec["recipe"]["lr"] = 0.5
    ResultsStore(root).add(runs[0], replace=True)
    made = export_results(root, tmp_path / "others.zip")
    assert made.runs == 2 and len(made.broken) == 1
    assert re.search("cannot be exported: its configuration has run id", str(made.broken[0]))
    for record in runs[1:]:
        ResultsStore(root).path("lora", record.run_id).unlink()
    with pytest.raises(StoreError, match="cannot be exported: its configuration has run id"):
        export_results(root, tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def test_export_overwrites_no_other_file_and_needs_runs(root, bundle, tmp_path):
    export_results(root, bundle, predictions=True)  # the same bytes
    before = bundle.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        export_results(root, bundle, ["seed=1"])
    assert bundle.read_bytes() == before
    with pytest.raises(ConfigError, match="No run has seed=7"):
        export_results(root, where=["seed=7"])
    with pytest.raises(ConfigError, match="No run is there in"):
        export_results(tmp_path / "empty")
