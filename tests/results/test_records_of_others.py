"""Promises about records and bundles that somebody else wrote: named as broken, never obeyed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mutation import COPIES, mutations

from peftbench.errors import PeftbenchError, StoreError
from peftbench.results import privacy
from peftbench.results.bundles.incoming import _check_card, _check_predictions, import_results
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.frame import frame
from peftbench.results.identity import run_id_of
from peftbench.results.predictions import UNREADABLE
from peftbench.results.record import RunRecord, parsed
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import csv_text, read_table, write_table
from peftbench.untrusted import guarded, unguarded

Change = Callable[[dict[str, Any]], object]


def plain(make_record: Callable[..., RunRecord], seed: int = 1) -> dict[str, Any]:
    """A sound record as a file holds it, under the run id of its configuration."""
    content: dict[str, Any] = json.loads(make_record().to_json())
    content["spec"]["seed"] = seed
    content["metrics"] = {"test/top1": 0.75, "test/loss": 0.5, "test/num_images": 4.0}
    content["run_id"] = run_id_of(content["spec"])
    return content


def pack(
    path: Path,
    contents: list[dict[str, Any]],
    extras: dict[str, bytes] | None = None,
    rows: str | None = None,
) -> Path:
    """A bundle of these records with an honest index, whatever the records say."""
    files = {
        f"runs/{c['spec']['method']['name']}/{c['run_id']}.json": json.dumps(c).encode()
        for c in contents
    }
    if rows is None:
        try:
            rows = csv_text(frame([RunRecord.from_json(json.dumps(c)) for c in contents]))
        except ValueError:
            rows = "run_id\n"
    files = {**files, "rows.csv": rows.encode(), **(extras or {})}
    index = {
        "format": 1,
        "schema": 1,
        "peftbench": "0.1.0",
        "runs": len(contents),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        },
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, "bundle.json": json.dumps(index).encode()}.items():
            archive.writestr(name, data)
    return path


def put(*keys: str, to: Any) -> Change:
    """A change of one value, however deep it lies."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


ODD: dict[str, Change] = {
    "a metric that is no number": put("metrics", "test/top1", to=float("nan")),
    "an infinite metric": put("metrics", "test/loss", to=float("inf")),
    "an accuracy of five": put("metrics", "test/top1", to=5.0),
    "a negative accuracy": put("metrics", "test/mean_per_class", to=-0.1),
    "a negative loss": put("metrics", "test/loss", to=-1.0),
    "more images than a column counts": put("metrics", "test/num_images", to=1e308),
    "half an image": put("metrics", "test/num_images", to=0.5),
    "a metric of text": put("metrics", "test/ece", to="high"),
    "a metric that is a switch": put("metrics", "test/top1", to=True),
    "metrics in a list": put("metrics", to=[0.5]),
    "well ended and nothing measured": put("metrics", to={}),
    "well ended and top-1 empty": put("metrics", "test/top1", to=None),
    "no seed": put("spec", "seed", to=None),
    "half a seed": put("spec", "seed", to=0.5),
    "a seed of 70 bits": put("spec", "seed", to=2**70),
    "a negative seed": put("spec", "seed", to=-1),
    "no name of the data set": put("spec", "dataset", "name", to=None),
    "an empty name of the data set": put("spec", "dataset", "name", to=""),
    "a data set that is a text": put("spec", "dataset", to="digits"),
    "a limit of text": put("spec", "dataset", "limit", to="ten"),
    "no name of the backbone": put("spec", "backbone", "name", to=""),
    "a title that is a list": put("spec", "backbone", "title", to=["x"]),
    "a phase that is none": put("spec", "phase", to="sometimes"),
    "a phase that is a list": put("spec", "phase", to=["final"]),
    "a rate of text": put("spec", "recipe", "lr", to="fast"),
    "half an epoch": put("spec", "recipe", "epochs", to=1.5),
    "hyper-parameters in a list": put("spec", "method", "hyperparameters", to=[1]),
    "a thousand hyper-parameters": put(
        "spec", "method", "hyperparameters", to={f"x{i}": i for i in range(1000)}
    ),
    "hyper-parameters too deep": put("spec", "method", "hyperparameters", "x", to=nested(40)),
    "a method that a terminal obeys": put("spec", "method", "name", to="lora\x1b[2J"),
    "a method that leaves its folder": put("spec", "method", "name", to=".."),
    "a method that hides its end": put("spec", "method", "name", to="lora\u202e"),
    "a method too long for a file": put("spec", "method", "name", to="x" * 300),
    "a method of 144 bytes": put("spec", "method", "name", to="ä" * 72),
    "no version of the method": put("spec", "method", "version", to=None),
    "a status that is a number": put("status", to=3),
    "a status that is a list": put("status", to=["OK"]),
    "an error that is a number": put("error", to=3),
    "parameters of 100 bits": put("parameters", "head", to=10**30),
    "negative parameters": put("parameters", "method", to=-1),
    "parameters in a text": put("parameters", to="many"),
    "a cost of text": put("cost", "step_ms", to="1 ms"),
    "a negative cost": put("cost", "seconds_train", to=-1.0),
    "a device that is a number": put("cost", "device", to=3),
    "a latency that was measured at no time": put("cost", "latency_measured", to="then"),
    "provenance without facts": put("provenance", "data", to="x"),
    "a negative number of classes": put("provenance", "data", "classes", to=-3),
    "versions that are numbers": put("provenance", "versions", to={"torch": 2}),
    "provenance that lacks fields": put("provenance", to={"host": "x"}),
    "epochs in a mapping": put("history", to={"epoch": 1}),
    "an epoch of text": put(
        "history", to=[dict.fromkeys(("epoch", "loss", "accuracy", "lr", "seconds"), "x")]
    ),
    "an accuracy of an epoch above one": put(
        "history", to=[{"epoch": 1, "loss": 1.0, "accuracy": 2.0, "lr": 0.1, "seconds": 1.0}]
    ),
    "notes that are a text": put("notes", to="none"),
    "a note that is a number": put("notes", to=[1]),
    "looks at no epoch": put("looks", to={"first": 0.5}),
    "trials of text": put("tuning", "trials", to="many"),
    "a time that is none": put("finished", to="yesterday"),
    "a time that is a number": put("started", to=5),
    "a schema of text": put("schema", to="one"),
    "an unknown key of a million values": put("remarks", to=[0] * 1_000_000),
}  # fmt: skip


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_an_odd_record_is_refused_in_a_bundle_and_named_in_a_folder(tmp_path, make_record, change):
    good, odd = plain(make_record), plain(make_record, seed=2)
    change(odd)
    try:
        odd["run_id"] = run_id_of(odd["spec"])
    except (ValueError, TypeError, AttributeError):
        odd["run_id"] = "0" * 16
    bundle = pack(tmp_path / "b.zip", [good, odd])
    with pytest.raises(StoreError) as refused:
        import_results(bundle, tmp_path / "there")
    assert str(refused.value).isprintable()
    assert not (tmp_path / "there").exists()
    store = ResultsStore(tmp_path / "here")
    folder = tmp_path / "here" / "runs" / "lora"
    folder.mkdir(parents=True)
    for content in (good, odd):  # whatever method it names
        (folder / f"{content['run_id']}.json").write_text(json.dumps(content))
    scan = store.scan()
    assert [record.run_id for record in scan.records] == [good["run_id"]]
    assert [odd["run_id"] in str(error) for error in scan.broken] == [True]
    made = export_results(tmp_path / "here", tmp_path / "out.zip")
    assert (made.runs, len(made.broken)) == (1, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"1" * 5000,
        b'{"run_id": 1e400, "spec": {}, "status": "OK"}',
        b'"text"',
        b"null",
    ],
    ids=range(9),
)
def test_a_file_that_is_no_record_is_named(tmp_path, make_record, data):
    store = ResultsStore(tmp_path)
    store.add(make_record())
    (tmp_path / "runs" / "lora" / "x.json").write_bytes(data)
    scan = store.scan()
    assert len(scan.records) == 1 and len(scan.broken) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "large"])
def test_what_is_no_file_of_bounded_size_is_named_at_once(tmp_path, make_record, kind):
    store = ResultsStore(tmp_path)
    path = store.add(make_record()).with_name("x.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with open(path, "wb") as file:
            file.truncate(5 * 2**30)  # of holes
    scan = store.scan()
    assert len(scan.records) == 1 and len(scan.broken) == 1
    with pytest.raises(StoreError, match=r"cannot be read as a bundle|holds no bundle"):
        import_results(path, tmp_path / "there")


def predictions(**changes: Any) -> bytes:
    """Four predictions of which three are right."""
    arrays: dict[str, Any] = {
        "classes": np.array([0, 1, 1, 0], np.int32),
        "labels": np.array([0, 1, 1, 1], np.int32),
        "confidence": np.ones(4, np.float32),
        "margin": np.ones(4, np.float32),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, **changes})
    return buffer.getvalue()


def with_predictions(path: Path, content: dict[str, Any], data: bytes) -> Path:
    return pack(path, [content], {f"runs/lora/{content['run_id']}/predictions.npz": data})


def test_predictions_of_the_record_come_in(tmp_path, make_record):
    bundle = with_predictions(tmp_path / "b.zip", plain(make_record), predictions())
    assert len(import_results(bundle, tmp_path / "there").added) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (predictions(spare=np.zeros(2**24)), "unpacks to .* more than 65,696"),
        (predictions(confidence=np.full(4, np.nan, np.float32)), "confidence is not within"),
        (predictions(margin=np.ones(3, np.float32)), "margin has the shape"),
        (predictions(classes=np.array(["a"] * 4)), "accuracy is 0|classes has the shape"),
        (predictions(labels=np.zeros((2, 2), np.int32)), "shapes"),
        (
            predictions(
                **{
                    name: np.ones(8, kind)
                    for name, kind in (
                        *(("classes", np.int32), ("labels", np.int32)),
                        *(("confidence", np.float32), ("margin", np.float32)),
                    )
                }
            ),
            "accuracy is 1",
        ),
        (predictions(classes=np.array([None] * 4, object)), "Python objects"),
        (predictions(names=np.array(["a.png"] * 3)), "names has the shape"),
        (predictions(names=np.arange(4)), "names has the shape .* type int64"),
        (predictions(numbers=np.array([0, 1, 1, 3])), "numbers has one of them twice"),
        (predictions(numbers=np.array([0, 1, 2**31, 3])), "no image can have"),
        (predictions(numbers=np.array([-1, 1, 2, 3])), "no image can have"),
        (predictions(names=np.array(["a", "b", "c/../../d", "e"])), "no path below a folder"),
        (predictions(names=np.array(["a", "/b", "c", "d"])), "no path below a folder"),
        (predictions(names=np.array(["a"] * 4), spare=np.zeros(2**24)), "more than 82,080"),
        (b"PK\x05\x06" + b"\x00" * 18, "classes"),
        (b"no zip file", "not a zip file"),
    ],
)
def test_predictions_that_are_none_of_the_record_are_refused(tmp_path, make_record, data, message):
    bundle = with_predictions(tmp_path / "b.zip", plain(make_record), data)
    with pytest.raises(StoreError, match=message):
        import_results(bundle, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_bundle_unpacks_to_a_bounded_multiple_of_its_size(tmp_path, make_record):
    content = plain(make_record)
    card = {"run_id": content["run_id"], "classes": ["x" * (15 * 2**20)]}
    contents = [plain(make_record, seed=seed) for seed in range(6)]
    extras = {
        f"runs/lora/{c['run_id']}/card.json": json.dumps({**card, "run_id": c["run_id"]}).encode()
        for c in contents
    }
    bundle = pack(tmp_path / "b.zip", contents, extras)
    assert bundle.stat().st_size < 2**20
    with pytest.raises(StoreError, match="unpacks to 90 MB, more than"):
        import_results(bundle, tmp_path / "there")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_bundle_comes_in_whole_or_not_at_all(tmp_path, make_record, monkeypatch, failing):
    """Whichever rename fails, the results folder is as it was before."""
    contents = [plain(make_record, seed=seed) for seed in range(3)]
    bundle = pack(tmp_path / "b.zip", contents)
    store = ResultsStore(tmp_path / "there")
    failed = json.loads(json.dumps(contents[0]))
    failed.update(status="ERROR", error="boom", metrics={})
    store.add(RunRecord.from_json(json.dumps(failed)))
    before = {p: p.read_bytes() for p in (tmp_path / "there").rglob("*.json")}
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if ".part" in str(source) and "before" not in str(source) and ".tmp" not in str(source):
            calls.append(target)
            if len(calls) == failing + 1:
                raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StoreError, match="No space left on device"):
        import_results(bundle, tmp_path / "there")
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in (tmp_path / "there").rglob("*.json")} == before
    assert not [p for p in (tmp_path / "there").rglob("*") if p.suffix in (".part", ".lock")
                and p.name != ".store.lock"]  # fmt: skip
    assert len(import_results(bundle, tmp_path / "there").added) == 3


def test_a_name_too_long_for_a_file_brings_in_no_run(tmp_path, make_record):
    good, long = plain(make_record), plain(make_record, seed=2)
    long["spec"]["method"]["name"] = "x" * 300
    long["run_id"] = run_id_of(long["spec"])
    bundle = pack(tmp_path / "b.zip", [good, long])
    with pytest.raises(StoreError, match="which cannot be that of a folder"):
        import_results(bundle, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_bundle_tells_nothing_of_the_machine_and_its_runs_are_the_same_ones(
    tmp_path, make_record, monkeypatch
):
    monkeypatch.setattr(privacy, "_here", lambda: ("node17", "annelise"))
    content = plain(make_record)
    content["spec"]["dataset"]["root"] = "/home/annelise/My Data/digits"
    content["notes"] = ["/home/annelise/My Data/digits/1.png on node17 is small"]
    content["provenance"]["host"] = "node17"
    record = RunRecord.from_json(json.dumps(content))
    store = ResultsStore(tmp_path / "here")
    store.add(record)
    artefacts = store.artefacts(record)
    artefacts.mkdir()
    card = {k: content[k] for k in ("run_id", "spec", "provenance")} | {"classes": ["/m/01"]}
    (artefacts / "card.json").write_text(json.dumps(card))
    made = export_results(tmp_path / "here", tmp_path / "b.zip")
    with zipfile.ZipFile(made.path) as archive:
        text = "".join(archive.read(name).decode() for name in archive.namelist())
    for secret in ("annelise", "node17", "/home", "My Data"):
        assert secret not in text
    assert "/m/01" in text
    assert import_results(made.path, tmp_path / "here").present == (record.run_id,)
    assert import_results(made.path, tmp_path / "there").added == (record.run_id,)
    again = export_results(tmp_path / "there", tmp_path / "again.zip")
    assert again.path.read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("cell", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "'=x", "''@x", "-", "=-1"])
def test_formulas_are_quoted_in_tables_and_read_back(cell: str) -> None:
    assert guarded(cell) == "'" + cell
    assert unguarded(guarded(cell)) == cell


@pytest.mark.parametrize("cell", ["-1", "+1", "-1.5e-3", ".5", "x=1", "'x", "", "a-b"])
def test_numbers_and_texts_stay_as_they_are_in_tables(cell: str) -> None:
    assert guarded(cell) == cell == unguarded(cell)


def test_a_sum_that_no_column_holds_is_missing(make_record):
    content = plain(make_record)
    content["parameters"].update(method=2**63 - 1, unfrozen=2**63 - 1)
    table = frame([RunRecord.from_json(json.dumps(content))])
    assert table["params_method"][0] == 2**63 - 1
    assert table["params_tuned"].isna().all()


def test_names_of_others_reach_tables_as_one_harmless_line(tmp_path, make_record):
    record = make_record()
    record.spec["dataset"]["name"] = "=HYPERLINK()\x1b[2J\u202e\nx"
    table = frame([record])
    assert table["dataset"][0] == "=HYPERLINK()\\x1b[2J\\u202e\\nx"
    write_table(table, tmp_path)
    text = (tmp_path / "table.csv").read_text()
    assert "\x1b" not in text and "\u202e" not in text and ",'=HYPERLINK" in text
    assert read_table(tmp_path / "table.csv").equals(table)


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 1e308, 2**63, 10**40, float("nan"), float("inf")),
    *("", "x", "\x1b[2J\u202e\n", "=1+1", "/home/x", [], {}, [[]], {"a": {"b": None}}, nested(50)),
)


def altered(content: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """The content with one value anywhere in it replaced, taken out or added."""
    content = copy.deepcopy(content)
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = source.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or source.random() < 0.15:
            break
        place = inner
    if source.random() < 0.15:
        del place[key]
    else:
        place[key] = source.choice(ODD_VALUES)
    return content


def grown() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def damaged(content: dict[str, Any], seed: int) -> Iterator[bytes]:
    """Damaged files of a plain mapping: half in their bytes, half in their values."""
    yield from mutations(json.dumps(content).encode(), COPIES // 2, seed=seed)
    source = random.Random(seed)
    for _ in range(COPIES // 2):
        yield json.dumps(altered(content, source)).encode()


@pytest.mark.slow
def test_damaged_records_end_in_a_line(tmp_path, make_record):
    before = grown()
    store = ResultsStore(tmp_path)
    good = plain(make_record)
    path = store.path("lora", good["run_id"])
    path.parent.mkdir(parents=True)
    read: list[RunRecord] = []
    for number, data in enumerate(damaged(good, seed=5)):
        path.write_bytes(data)
        scan = store.scan()
        assert len(scan.records) + len(scan.broken) == 1
        read += scan.records
        if number % 100 == 99:  # many at a time, as one takes as long
            csv_text(frame(read))
            for record in read:
                json.dumps(privacy.public(json.loads(record.to_json())), allow_nan=False)
            read.clear()
    assert grown() - before < 500e6


def with_extras(make_record):
    """A record as plain values, and the files that a bundle has beside it."""
    good = plain(make_record)
    prefix = f"runs/lora/{good['run_id']}"
    card = {"run_id": good["run_id"], "spec": good["spec"], "classes": ["a", "b"]}
    return good, {
        f"{prefix}/card.json": json.dumps(card).encode(),
        f"{prefix}/predictions.npz": predictions(),
    }


@pytest.mark.slow
def test_damaged_bundles_end_in_a_line(tmp_path, make_record):
    before = grown()
    good, extras = with_extras(make_record)
    whole = pack(tmp_path / "b.zip", [good], extras).read_bytes()
    path = tmp_path / "damaged.zip"
    for number, data in enumerate(mutations(whole, COPIES, seed=1)):
        path.write_bytes(data)
        refused(path, tmp_path / "there" / str(number))
    assert grown() - before < 500e6
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_bundles_of_damaged_files_under_their_true_hashes_end_in_a_line(tmp_path, make_record):
    """Hashes are written anew, so that readers of records, cards and predictions are reached."""
    before = grown()
    good, extras = with_extras(make_record)
    rows = csv_text(frame([RunRecord.from_json(json.dumps(good))]))
    path = tmp_path / "damaged.zip"
    source = random.Random(11)
    for number in range(COPIES // 6):
        content = altered(good, source)
        try:
            content["run_id"] = run_id_of(content["spec"])
            pack(path, [content], rows=rows)
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
        refused(path, tmp_path / "there" / str(number))
    for name, data in extras.items():
        for number, changed in enumerate(mutations(data, COPIES // 6, seed=3)):
            pack(path, [good], {**extras, name: changed}, rows=rows)
            refused(path, tmp_path / "there" / str(number))
    assert grown() - before < 500e6
    assert not (tmp_path / "there").exists()


def refused(bundle: Path, root: Path) -> None:
    """Try an import, which may refuse in one line."""
    try:
        import_results(bundle, root, dry_run=True)
    except PeftbenchError as error:
        assert str(error).isprintable()


@pytest.mark.slow
def test_damaged_cards_are_refused_or_fit_their_record(make_record):
    before = grown()
    good = plain(make_record)
    record = RunRecord.from_json(json.dumps(good))
    card = {key: good[key] for key in ("run_id", "spec", "metrics", "provenance")} | {
        "classes": ["a", "b"],
        "method_card": {"title": "LoRA", "deviations": ["none"]},
    }
    for data in damaged(card, seed=2):
        with contextlib.suppress(*UNREADABLE):
            _check_card(data, record)
            privacy.public(parsed(data))
    assert grown() - before < 500e6


@pytest.mark.slow
def test_damaged_predictions_are_refused_or_fit_their_record(tmp_path, make_record):
    before = grown()
    record = RunRecord.from_json(json.dumps(plain(make_record)))
    store = ResultsStore(tmp_path)
    path = store.artefacts(record) / "predictions.npz"
    path.parent.mkdir(parents=True)
    packed = io.BytesIO(predictions())
    with np.load(packed) as arrays:
        stored = io.BytesIO()
        np.savez(stored, **arrays)  # not packed, so that headers and numbers are reached
    for data in (
        *mutations(predictions(), COPIES // 2, seed=4),
        *mutations(stored.getvalue(), COPIES // 2, seed=6),
    ):
        with contextlib.suppress(*UNREADABLE):
            _check_predictions(data, record)
        path.write_bytes(data)
        with contextlib.suppress(StoreError):
            store.load_predictions("lora", record.run_id)
    assert grown() - before < 500e6
