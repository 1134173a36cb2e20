"""A run that is stopped anywhere and started again, against one that was left alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from support.stepped import random_run, told_of_steps
from support.tiny_runs import digits, repeatable, short_timings, tiny_spec

import peftbench
from peftbench.methods.vpt import VPTDeep
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import BEST_ON_TEST, Phase, RunSpec, Selection
from peftbench.training import checkpoint
from peftbench.training.saving import CheckpointPolicy

pytestmark = pytest.mark.arithmetic
# 11 images in batches of 4: three steps an epoch
SPEC = random_run(11)
# two steps an epoch, four in all: what is wrong with a state is known before the first of them
SHORT = random_run(6, epochs=2)


def saving(**when: Any) -> experiment.RunOptions:
    """Options of a run whose state is saved every so many steps or minutes."""
    return experiment.RunOptions(saving=CheckpointPolicy(**when))


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Training is interrupted in the forward pass that follows so many steps of the optimiser."""

    def stop(number: int) -> None:
        if number == steps + 1:
            raise KeyboardInterrupt

    with told_of_steps(stop):
        yield


def outcome(record: RunRecord, store: ResultsStore) -> dict[str, Any]:
    """All that a record says, and the predictions, without clocks and the count of resumptions."""
    raw = repeatable(record)
    del raw["cost"]["resumed"]
    found = store.load_predictions(record.spec["method"]["name"], record.run_id)
    assert found is not None
    return raw | {"classes": found.classes.tolist(), "confidence": found.confidence.tolist()}


def checkpoints(store: ResultsStore) -> list[Path]:
    return [path for path in store.root.glob("checkpoints/*") if path.is_file()]


def left_alone(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """The outcome of a run that nothing stops."""
    store = ResultsStore(folder)
    with short_timings():
        record = experiment.run(spec, store)
    assert record.status is Status.OK
    return outcome(record, store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return left_alone(SPEC, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return left_alone(SHORT, tmp_path_factory.mktemp("whole_short"))


# saved every two steps: in an epoch, at the end of one (6), and before anything was saved (1)
@pytest.mark.parametrize("steps", [1, 3, 5, 6, 8])
def test_a_stopped_run_goes_on_to_the_same_record_bit_for_bit(
    store: ResultsStore, whole: dict[str, Any], steps: int
) -> None:
    with stopped_after(steps):
        stopped = experiment.run(SPEC, store, saving(steps=2))
    assert stopped.status is Status.INTERRUPTED
    assert len(checkpoints(store)) == (steps >= 2)
    torch.manual_seed(99)  # another process has drawn other numbers
    record = experiment.run(SPEC, store, saving(steps=2))
    assert record.cost is not None
    assert record.cost.resumed == (steps >= 2)
    assert outcome(record, store) == whole
    assert checkpoints(store) == []


def test_a_run_that_is_stopped_twice_counts_both(
    store: ResultsStore, whole: dict[str, Any]
) -> None:
    for steps in (3, 2):  # of each process
        with stopped_after(steps):
            experiment.run(SPEC, store, saving(steps=1))
    record = experiment.run(SPEC, store, saving(steps=1))
    assert record.cost is not None and record.cost.resumed == 2
    assert outcome(record, store) == whole


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec("bias", selection=Selection(rule=BEST_ON_TEST), recipe={"epochs": 4}),
        tiny_spec("bias", phase=Phase.TUNE, looks=((1, None), (3, None)), recipe={"epochs": 4}),
        tiny_spec("full", recipe={"epochs": 4, "optimizer": "sgd", "momentum": 0.9}),
        tiny_spec("full", recipe={"epochs": 4, "layer_decay": 0.6}),
        tiny_spec("lora", recipe={"epochs": 4, "consistency": "fast"}),
        tiny_spec("bias", dataset=digits(11), recipe={"mixup": 0.8, "class_weights": "balanced"}),
        tiny_spec("bias", dataset=digits(11), recipe={"mixup": 0.8, "sampling": "balanced"}),
    ],
    ids=["best_on_test", "looks", "sgd", "layers", "fast", "weighed", "drawn"],
)
def test_what_was_seen_on_the_way_is_kept(store: ResultsStore, spec: RunSpec) -> None:
    elsewhere = ResultsStore(store.root.parent / "whole")
    expected = outcome(experiment.run(spec, elsewhere), elsewhere)
    with stopped_after(5):  # of eight, or sixteen
        experiment.run(spec, store, saving(steps=1))
    assert outcome(experiment.run(spec, store, saving(steps=1)), store) == expected


def test_a_state_of_another_version_is_not_taken_up(
    store: ResultsStore, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(5), monkeypatch.context() as older:
        older.setattr(peftbench, "__version__", "0.0")
        experiment.run(SPEC, store, saving(steps=2))
    (path,) = checkpoints(store)
    record = experiment.run(SPEC, store, saving(steps=2))
    assert record.cost is not None and record.cost.resumed == 0
    assert record.notes == [f"started anew: {path} has another peftbench"]
    assert outcome(record, store) | {"notes": []} == whole


def test_a_damaged_state_is_not_taken_up(store: ResultsStore, whole: dict[str, Any]) -> None:
    with stopped_after(5):
        experiment.run(SPEC, store, saving(steps=2))
    (path,) = checkpoints(store)
    path.write_bytes(path.read_bytes()[:-40])
    record = experiment.run(SPEC, store, saving(steps=2))
    (note,) = record.notes
    assert note.startswith(f"started anew: {path} cannot be read (SafetensorError: ")
    assert outcome(record, store) | {"notes": []} == whole


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the state in a checkpoint, given as its JSON head and its tensors, in place."""
    with safe_open(str(path), "pt") as file:
        head = json.loads(file.metadata()["peftbench"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(head, tensors)
    save_file(tensors, str(path), metadata={"peftbench": json.dumps(head)})


def at(state: Any, *names: str) -> Any:
    """The value below `names` in the head of a checkpoint, in which mappings are lists of pairs."""
    for name in names:
        state = next(value for key, value in state["items"] if str(key) == name)
    return state


def put(state: Any, value: Any, *names: str) -> None:
    """Another value there."""
    items = at(state, *names[:-1])["items"]
    items[:] = [[k, v if str(k) != names[-1] else value] for k, v in items]


def without(state: Any, *names: str) -> None:
    items = at(state, *names[:-1])["items"]
    items[:] = [[k, v] for k, v in items if str(k) != names[-1]]


def first(tensors: dict[str, Any], part: str) -> str:
    return next(k for k, v in tensors.items() if part in k and v.is_floating_point() and v.ndim > 1)


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "empty": lambda h, t: h.update(state={"items": []}),
    "no state": lambda h, t: h.pop("state"),
    "no identity": lambda h, t: h.pop("identity"),
    "identity is a list": lambda h, t: h.update(identity=[1]),
    "resumed is a text": lambda h, t: h.update(resumed="1"),
    "state is a list": lambda h, t: h.update(state=[1, 2]),
    "no weights": lambda h, t: without(h["state"], "parts", "weights"),
    "no optimiser": lambda h, t: without(h["state"], "parts", "optimizer"),
    "no moments": lambda h, t: put(h["state"], {"items": []}, "parts", "optimizer", "state"),
    "another part": lambda h, t: at(h["state"], "parts")["items"].append(["more", 1]),
    "no step": lambda h, t: without(h["state"], "parts", "progress", "step"),
    "step is a text": lambda h, t: put(h["state"], "3", "parts", "progress", "step"),
    "epoch before the first": lambda h, t: put(h["state"], -1, "parts", "progress", "epoch"),
    "epoch without a row": lambda h, t: put(h["state"], 9, "parts", "progress", "epoch"),
    "history of other rows": lambda h, t: put(
        h["state"], [{"items": [["epoch", 1]]}], "parts", "progress", "history"
    ),
    "order of another size": lambda h, t: t.update({"/parts/progress/order": torch.zeros(3)}),
    "no random numbers": lambda h, t: put(h["state"], [], "random"),
    "a weight of another shape": lambda h, t: t.update({first(t, "/weights/"): torch.zeros(1)}),
    "a weight that is NaN": lambda h, t: t[first(t, "/weights/")].fill_(torch.nan),
    "a moment of another shape": lambda h, t: t.update({first(t, "/exp_avg"): torch.zeros(2)}),
    "a tensor is missing": lambda h, t: t.pop(first(t, "/weights/")),
    "average of other weights": lambda h, t: put(h["state"], None, "parts", "average", "averages"),
    "deep": lambda h, t: h.update(state=nested(200)),
}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a `SHORT` run that was stopped within its second epoch."""
    store = ResultsStore(tmp_path_factory.mktemp("left"))
    with short_timings(), stopped_after(3):
        experiment.run(SHORT, store, saving(steps=3))
    (path,) = checkpoints(store)
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_with_unexpected_content_is_not_taken_up(
    store: ResultsStore, whole_short: dict[str, Any], left: Path, name: str
) -> None:
    path = store.root / "checkpoints" / left.name
    path.parent.mkdir(parents=True)
    shutil.copyfile(left, path)
    rewritten(path, CHANGES[name])
    record = experiment.run(SHORT, store, saving(steps=3))
    assert record.status is Status.OK, record.error
    (note,) = record.notes
    assert note.startswith(f"started anew: {path} ") and "\n" not in note
    assert outcome(record, store) | {"notes": []} == whole_short
    assert checkpoints(store) == []


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [a_pipe, Path.mkdir, Path.touch], ids=["FIFO", "folder", "empty"])
def test_what_is_no_checkpoint_does_not_stop_a_run(
    store: ResultsStore, whole_short: dict[str, Any], left: Path, make: Callable[[Path], None]
) -> None:
    path = store.root / "checkpoints" / left.name
    path.parent.mkdir(parents=True)
    make(path)
    record = experiment.run(SHORT, store, saving(steps=3))
    assert record.status is Status.OK, record.error
    assert record.notes[0].startswith(f"started anew: {path} cannot be read (")
    assert outcome(record, store) | {"notes": []} == whole_short


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error: I/O error: No space left on device (os error 28)"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_state_that_cannot_be_saved_is_noted_and_training_goes_on(
    store: ResultsStore,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def full(tensors: object, path: str, **more: object) -> None:
        Path(path).write_bytes(b"cut short")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    record = experiment.run(SPEC, store, saving(steps=2))
    place = store.root / "checkpoints"
    reason = getattr(error, "strerror", None) or str(error)
    assert record.notes == [f"its state could not be saved in {place}: {reason}"]
    assert outcome(record, store) | {"notes": []} == whole
    assert checkpoints(store) == []


def test_a_disk_that_fills_up_keeps_the_earlier_state(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    part = {"weights": Kept(torch.arange(1000.0))}
    saver = checkpoint.Checkpoints(tmp_path / "state.safetensors", steps=1)
    saver.save(part)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        saver.save({"weights": Kept(torch.zeros(1000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (note,) = saver.notes
    assert note.startswith(f"its state could not be saved in {tmp_path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    found = {"weights": Kept(torch.ones(1000))}
    assert checkpoint.Checkpoints(tmp_path / "state.safetensors").restore(found)
    assert torch.equal(found["weights"].tensor, torch.arange(1000.0))


class Kept:
    """One tensor that is saved."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor = state["tensor"]


def test_force_starts_anew(store: ResultsStore) -> None:
    with stopped_after(5):
        experiment.run(SPEC, store, saving(steps=2))
    record = experiment.run(SPEC, store, saving(steps=2), force=True)
    assert record.cost is not None and record.cost.resumed == 0


def test_the_clock_saves_too(store: ResultsStore) -> None:
    with stopped_after(4):
        experiment.run(SPEC, store, saving(minutes=1e-9))
    assert len(checkpoints(store)) == 1
    record = experiment.run(SPEC, store, saving(minutes=60))
    assert record.cost is not None and record.cost.resumed == 1, record.error


def test_predictions_are_compared_as_they_are(store: ResultsStore, whole: dict[str, Any]) -> None:
    other = experiment.run(tiny_spec(VPTDeep(dropout=0.3), dataset=digits(11), seed=1), store)
    assert not np.array_equal(outcome(other, store)["confidence"], whole["confidence"])
