"""One run from end to end: what it records, what it saves, what it never does."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from support.tiny_runs import digits, repeatable, short_timings, tiny_spec

from peftbench import data
from peftbench.data import TestSplit
from peftbench.errors import ConfigError
from peftbench.methods.lora import LoRA
from peftbench.methods.mlp import MLPHead
from peftbench.results.guard import Busy
from peftbench.results.record import EpochRow, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import energy, experiment, measure
from peftbench.spec import Phase, Precision, Preprocessing, PreprocessingSpec

IMAGES = 20
SPEC = tiny_spec(
    LoRA(rank=2, dropout=0.2),
    dataset=digits(IMAGES),
    recipe={"lr": 1e-2, "batch_size": 8},
    precision=Precision.FLOAT32,
)


@dataclasses.dataclass(frozen=True)
class Finished:
    """Two runs of one spec, each in a store of its own."""

    store: ResultsStore
    record: RunRecord
    again: RunRecord
    openings: int  # of test splits, in the first run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    root = tmp_path_factory.mktemp("runs")
    calls = []
    open_once = TestSplit.open_once

    def counted(split: TestSplit) -> data.TestArrays:
        calls.append(split)
        return open_once(split)

    package = root / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "7"), ("max_energy_range_uj", "9")):
        (package / name).write_text(f"{text}\n")
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(root / "cache"))
        patch.setattr(TestSplit, "open_once", counted)
        patch.setattr(energy, "POWERCAP", package.parent)
        patch.setattr(energy, "MOST_WATTS", 0.0)  # the counter is never too late
        store = ResultsStore(root / "one")
        record = experiment.run(SPEC, store)
        openings = len(calls)
        again = experiment.run(SPEC, ResultsStore(root / "two"))
        yield Finished(store, record, again, openings)


def test_two_runs_of_one_spec_give_the_same_record(finished: Finished) -> None:
    assert finished.record.status is Status.OK
    assert repeatable(finished.again) == repeatable(finished.record)


def test_the_stored_record_is_the_returned_one(finished: Finished) -> None:
    assert finished.store.get(SPEC.run_id, "lora") == finished.record


def test_the_test_split_is_opened_once(finished: Finished) -> None:
    assert finished.openings == 1


def test_a_record_says_what_was_asked_and_how_it_ended(finished: Finished) -> None:
    record = finished.record
    assert record.run_id == SPEC.run_id
    assert record.spec == SPEC.describe()
    assert record.spec["method"]["hyperparameters"]["rank"] == 2
    assert (record.status, record.error, record.selection) == (Status.OK, None, "last")
    assert record.started <= record.finished
    assert record.started.endswith("+00:00")


def test_a_record_counts_parameters_and_bytes(finished: Finished) -> None:
    found = finished.record.parameters
    assert found is not None
    # 6 blocks x (q, v) x rank 2 x (128 inputs + 128 outputs)
    assert found.method == 6 * 2 * 2 * (128 + 128)
    assert found.head == 128 * 10 + 10
    assert found.unfrozen == 0
    # vit_mini at 12 pixels: patches 12 x 12 x 3 to 128 with bias, class token, 2 positions,
    # 6 blocks of 12 D^2 + 13 D, final norm
    d = 128
    assert found.backbone == (432 * d + d) + d + 2 * d + 6 * (12 * d * d + 13 * d) + 2 * d
    path = finished.store.artefacts(finished.record) / "tuned.safetensors"
    assert found.stored_bytes == path.stat().st_size
    assert found.stored_bytes >= 4 * (found.method + found.head)


def test_a_record_holds_every_cost(finished: Finished) -> None:
    cost = finished.record.cost
    assert cost is not None
    missing = [f.name for f in dataclasses.fields(cost) if getattr(cost, f.name) is None]
    kept = ["frozen_until", "activations_found", "activations_computed", "seconds_saved"]
    # of another run, where nothing is kept, and of methods that skip what they need not compute
    assert missing == ["latency_measured", *kept, "measured_gmacs"]
    assert cost.dtype == "float32"
    assert cost.latency_batch_size == 2
    assert cost.seconds_total is not None and cost.seconds_train is not None
    assert 0 < cost.seconds_train < cost.seconds_total
    # two tokens through the projections of 6 blocks: 12 D^2 each; patch embedding, head, attention
    # and LoRA are what is left
    assert cost.forward_gmacs is not None
    assert 6 * 2 * 12 * 128**2 / 1e9 < cost.forward_gmacs < 1.05 * 6 * 2 * 12 * 128**2 / 1e9


def test_a_record_says_where_its_numbers_come_from(finished: Finished) -> None:
    origin = finished.record.provenance
    assert origin is not None
    optional = {"git_commit", "git_dirty", "driver"}  # of a wheel, and of a machine without a GPU
    for field in dataclasses.fields(origin):
        assert field.name in optional or getattr(origin, field.name) not in (None, "", {})
    assert {"torch", "torchvision", "timm", "numpy"} <= origin.versions.keys()
    assert len(origin.backbone_sha256 or "") == 64
    assert origin.backbone_source == "vit_mini"
    assert json.loads(json.dumps(origin.preprocessing)) == {
        "size": 12,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize": "squash",
        "crop_fraction": 1.0,
        "backend": f"pillow {PIL.__version__}",
        "train_size": None,
    }
    assert origin.data == {
        "manifest": SPEC.dataset.manifest,
        "train_images": 2 * IMAGES,  # train and val
        "report_images": IMAGES,
        "classes": 10,
    }


def test_a_record_holds_a_row_for_each_epoch(finished: Finished) -> None:
    history = finished.record.history
    assert [row.epoch for row in history] == [1, 2]
    assert all(isinstance(row, EpochRow) and row.seconds > 0 for row in history)
    assert history[1].loss < history[0].loss


def test_saved_predictions_agree_with_the_metrics(finished: Finished) -> None:
    saved = finished.store.load_predictions("lora", SPEC.run_id)
    assert saved is not None
    assert saved.labels.shape == saved.classes.shape == (IMAGES,)
    hits = saved.classes == saved.labels
    per_class = [hits[saved.labels == c].mean() for c in np.unique(saved.labels)]
    metrics = finished.record.metrics
    assert metrics["test/top1"] == hits.mean()
    assert metrics["test/mean_per_class"] == pytest.approx(np.mean(per_class), abs=1e-12)
    assert metrics["test/num_images"] == IMAGES
    # |hits - confidence| summed over each of 15 bins, as a share of all images; confidences are
    # stored in float32, hence the tolerance
    bins = np.ceil(saved.confidence.astype(float) * 15)
    gaps = [abs((hits - saved.confidence.astype(float))[bins == b].sum()) for b in np.unique(bins)]
    assert metrics["test/ece"] == pytest.approx(sum(gaps) / IMAGES, abs=1e-6)
    assert metrics["test/loss"] is not None and math.isfinite(metrics["test/loss"])
    assert metrics.keys() == {
        "test/top1",
        "test/mean_per_class",
        "test/f1_macro",  # and no AUROC, of ten classes
        "test/loss",
        "test/ece",
        "test/num_images",
    }
    assert (saved.margin <= saved.confidence).all() and (saved.margin >= 0).all()


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("augmentation", ["crop_flip", "random_crop_flip"])
def test_a_run_that_crops_trains_on_whole_pictures(
    store: ResultsStore, phase: Phase, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fit = measure.fit

    def watched(fittable, train, *args, **options):
        seen.append(train)
        return fit(fittable, train, *args, **options)

    monkeypatch.setattr(measure, "fit", watched)
    spec = tiny_spec(recipe={"augmentation": augmentation}, phase=phase)
    record = experiment.run(spec, store)
    assert record.status is Status.OK, record.error
    side = {"crop_flip": 21, "random_crop_flip": 14}[augmentation]  # 12/7 and 8/7 of 12
    assert record.provenance is not None
    assert record.provenance.preprocessing["size"] == 12
    assert record.provenance.preprocessing["train_size"] == side
    (train,) = seen
    assert train.images.shape[1:] == (side, side, 3)
    assert train.sizes.tolist() == [[8, 8]] * len(train)  # as they are stored
    if phase is Phase.FINAL:
        assert record.reload is not None and record.reload["max_logit_difference"] == 0


def test_a_run_whose_whole_pictures_are_too_small_does_not_start(store: ResultsStore) -> None:
    spec = tiny_spec(
        recipe={"augmentation": "crop_flip"}, preprocessing=PreprocessingSpec(train_size=11)
    )
    with pytest.raises(ConfigError, match="train_size=11 is smaller than the input of 12 pixels"):
        experiment.run(spec, store)
    assert list(store.records()) == []


def test_saved_labels_are_those_of_the_test_split_in_its_order(finished: Finished) -> None:
    size = Preprocessing(size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    split = data.load(SPEC.dataset, Phase.FINAL, size).report
    assert isinstance(split, TestSplit)
    saved = finished.store.load_predictions("lora", SPEC.run_id)
    assert saved is not None
    assert saved.labels.tolist() == split.open_once().labels.tolist()


def test_merging_and_reloading_are_checked_and_recorded(finished: Finished) -> None:
    record = finished.record
    assert record.merge is not None and record.reload is not None
    # float32 sums in another order; logits are of size 1
    assert 0 <= record.merge["max_logit_difference"] < 1e-4
    assert record.merge["top1_difference"] == 0
    assert record.reload["max_logit_difference"] == 0
    assert 0 < record.reload["train_top1"] <= 1


def test_a_run_leaves_its_record_three_files_two_latencies_and_the_cost_of_a_step(
    finished: Finished,
) -> None:
    root = finished.store.root
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    shared = {name for name in found if name.startswith("latencies/")}
    assert len(shared) == 3  # as trained, merged, and what a step takes
    assert found - shared == {
        "runs/.store.lock",
        f"runs/lora/{SPEC.run_id}.json",
        f"runs/lora/{SPEC.run_id}/card.json",
        f"runs/lora/{SPEC.run_id}/predictions.npz",
        f"runs/lora/{SPEC.run_id}/tuned.safetensors",
    }


def safetensors_header(path: Path) -> dict:
    """The JSON header of a safetensors file, read without the library that wrote it."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size])


def test_the_tuned_file_holds_what_trained_and_what_changed_and_no_pickle(
    store: ResultsStore,
) -> None:
    record = experiment.run(tiny_spec(MLPHead(num_layers=2)), store)
    path = store.artefacts(record) / "tuned.safetensors"
    header = safetensors_header(path)
    assert header.pop("__metadata__") == {"run_id": record.run_id}
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == {
        "head.linear0.weight": (128, 128),
        "head.linear0.bias": (128,),
        "head.bn0.weight": (128,),
        "head.bn0.bias": (128,),
        "head.bn0.running_mean": (128,),
        "head.bn0.running_var": (128,),
        "head.bn0.num_batches_tracked": (),
        "head.last.weight": (10, 128),
        "head.last.bias": (10,),
    }
    with np.load(store.artefacts(record) / "predictions.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_the_card_names_the_run_the_classes_and_the_metrics(finished: Finished) -> None:
    path = finished.store.artefacts(finished.record) / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    assert card["run_id"] == SPEC.run_id
    assert card["spec"] == SPEC.describe()
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["metrics"] == finished.record.metrics
    assert card["method_card"]["paper"] == "arXiv:2106.09685"


def test_the_tune_phase_reports_val_and_never_touches_test(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a test split was made")

    monkeypatch.setattr(TestSplit, "__init__", refuse)
    decoded = []
    read_dataset = data.READERS["mini"]

    def watched(spec):
        listing = read_dataset(spec)

        def decode(part, preprocessing, split):
            decoded.append(split)
            return listing.decode(part, preprocessing, split)

        return dataclasses.replace(listing, decode=decode)

    monkeypatch.setitem(data.READERS._entries, "mini", watched)
    record = experiment.run(tiny_spec(phase=Phase.TUNE), store)
    assert record.status is Status.OK
    assert {key.partition("/")[0] for key in record.metrics} == {"val"}
    assert record.metrics["val/num_images"] == 4
    assert record.provenance is not None and record.provenance.data["train_images"] == 4
    assert decoded == ["train and val"]  # which both phases share
    # of hundreds of trials none is deployed: no weights, no latencies
    assert list(store.root.rglob("*.safetensors")) == []
    assert record.parameters is not None and record.parameters.stored_bytes == 0
    assert record.cost is not None and record.cost.latency_ms_batch1 is None
    assert record.cost.seconds_total is not None and record.cost.seconds_train is not None


def test_a_hopeless_trial_stops_and_looking_changes_nothing_else(store: ResultsStore) -> None:
    def trial(*looks: tuple[int, float | None]) -> RunRecord:
        spec = tiny_spec(
            "vpt_deep", phase=Phase.TUNE, looks=looks, recipe={"epochs": 4}, dataset=digits(12)
        )
        return experiment.run(spec, store)

    plain, looked = trial(), trial((1, None), (3, 0.0))
    assert looked.status is Status.OK
    assert looked.stopped_epoch is None
    assert looked.metrics == plain.metrics
    assert looked.looks.keys() == {"1", "3"}
    losses = [row.loss for row in plain.history]
    assert [row.loss for row in looked.history] == losses

    stopped = trial((1, None), (2, 1.1), (3, None))  # no accuracy is 1.1
    assert stopped.status is Status.OK
    assert stopped.stopped_epoch == 2
    assert [row.loss for row in stopped.history] == losses[:2]
    assert stopped.looks.keys() == {"1", "2"}
    assert stopped.looks["1"] == looked.looks["1"]
    assert stopped.metrics["val/top1"] == stopped.looks["2"]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each training that was really started."""
    started = []
    fit = measure.fit

    def counted(*args, **kwargs):
        started.append("fit")
        return fit(*args, **kwargs)

    monkeypatch.setattr(measure, "fit", counted)
    return started


def test_a_settled_run_is_not_run_again_unless_forced(store: ResultsStore, fits: list[str]) -> None:
    first = experiment.run(tiny_spec(), store)
    stored = store.get(first.run_id)
    assert experiment.run(tiny_spec(), store) == stored
    assert len(fits) == 1
    forced = experiment.run(tiny_spec(), store, force=True)
    assert len(fits) == 2
    assert repeatable(forced) == repeatable(first)


@pytest.mark.parametrize("status", [status for status in Status if not status.settled])
def test_a_failed_run_is_run_again(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    started = []

    def fit(*args: object, **kwargs: object) -> None:
        started.append("fit")
        raise MemoryError

    monkeypatch.setattr(measure, "fit", fit)
    spec = tiny_spec()
    store.add(RunRecord(spec.run_id, spec.describe(), status, "it failed"))
    assert experiment.run(spec, store).status is Status.OUT_OF_MEMORY
    assert started == ["fit"]
    stored = store.get(spec.run_id)
    assert stored is not None and stored.status is Status.OUT_OF_MEMORY


def test_a_broken_record_is_run_again(store: ResultsStore) -> None:
    spec = tiny_spec()
    path = store.path("linear", spec.run_id)
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    assert experiment.run(spec, store).status is Status.OK
    assert store.broken() == []


def test_a_run_that_another_process_holds_is_refused(store: ResultsStore) -> None:
    spec = tiny_spec()
    with (
        store.claim(spec.run_id, "linear"),
        pytest.raises(Busy, match=f"Run {spec.run_id} of linear is already running"),
    ):
        experiment.run(spec, store)
    assert store.get(spec.run_id) is None


def test_a_run_gives_the_same_record_alone_and_after_another(
    finished: Finished, store: ResultsStore
) -> None:
    assert experiment.run(tiny_spec("full"), store).status is Status.OK
    after = experiment.run(SPEC, store)
    assert repeatable(after) == repeatable(finished.record)


def test_the_seed_changes_the_result(finished: Finished, store: ResultsStore) -> None:
    other = experiment.run(dataclasses.replace(SPEC, seed=1), store)
    assert other.metrics["test/loss"] != finished.record.metrics["test/loss"]
    assert other.history[0].loss != finished.record.history[0].loss


def test_a_second_look_at_the_test_split_ends_a_run(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = data.load

    def opened_already(*args, **kwargs):
        splits = load(*args, **kwargs)
        splits.report.open_once()
        return splits

    monkeypatch.setattr(data, "load", opened_already)
    record = experiment.run(tiny_spec(), store)
    assert record.status is Status.ERROR
    assert record.error == (
        "The test split was opened a second time in one run; it is reported once. "
        "Use the tune phase to look at results while choosing."
    )
