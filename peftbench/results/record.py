"""The record of one run: what was asked, how it ended, what was measured, where.

Numbers are stored in full precision; a missing value is `None`, never a sentinel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

import orjson

from peftbench.canonical import declared, later
from peftbench.errors import StoreError
from peftbench.results.validation import check_record
from peftbench.spec import SPLIT_OF_PHASE
from peftbench.tasks import Metric, Task, judged_by, task_of

SCHEMA = 1  # raised when a field changes its meaning


class Status(StrEnum):
    """How a run ended."""

    OK = "OK"
    UNSUPPORTED = "UNSUPPORTED"  # the pair makes no sense; `error` holds the reason
    NO_EFFECT = "NO_EFFECT"  # the method touched nothing
    DIVERGED = "DIVERGED"  # a loss was not finite
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMEOUT = "TIMEOUT"  # took longer than its launcher allows
    INTERRUPTED = "INTERRUPTED"  # Ctrl-C or SIGTERM; a rerun goes on from there
    ERROR = "ERROR"

    @property
    def settled(self) -> bool:
        """Whether a rerun of the same identity would end the same way."""
        return self in (Status.OK, Status.UNSUPPORTED)

    @property
    def failed(self) -> bool:
        """Whether something went wrong, which an interruption does not."""
        return not self.settled and self is not Status.INTERRUPTED


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters: three that train and the backbone they belong to."""

    method: int  # added by the method
    head: int  # the classifier, always trained
    unfrozen: int  # backbone parameters that the method trains (bias, partial, full)
    backbone: int  # the whole backbone without any classifier
    stored_bytes: int  # size of the file that holds one tuned task; 0 of a trial, which has none


@dataclass(frozen=True)
class Cost:
    """What the run took. Times in seconds or milliseconds as named; `None` where not measured."""

    device: str
    dtype: str  # arithmetic of the forward pass
    train_images_per_second: float | None = None
    step_ms: float | None = None  # median after warm-up
    latency_ms_batch1: float | None = None  # tuned model as trained
    latency_ms_batch: float | None = None  # the same with `latency_batch_size` images
    latency_batch_size: int | None = None
    merged_latency_ms_batch1: float | None = None  # after merging; None where not mergeable
    merged_latency_ms_batch: float | None = None
    forward_gmacs: float | None = None  # multiply-adds of one image, in 1e9
    peak_bytes: int | None = None  # device memory on a GPU, resident set on a CPU
    seconds_load: float | None = None
    seconds_train: float | None = None
    seconds_evaluate: float | None = None
    seconds_total: float | None = None
    processes: int = 1  # that trained together
    resumed: int = 0  # times that the training was taken up from a checkpoint
    # when latencies that another run measured were (ISO 8601, UTC), the oldest of them
    latency_measured: str | None = later(None)
    # of a frozen part whose activations were kept: the module at its end, images whose activations
    # were found and computed, and the seconds of passes that were not made
    frozen_until: str | None = later(None)
    activations_found: int | None = later(None)
    activations_computed: int | None = later(None)
    seconds_saved: float | None = later(None)
    # between the quartiles of the passes, in several blocks, that the four latencies are medians of
    latency_ms_batch1_iqr: float | None = later(None)
    latency_ms_batch_iqr: float | None = later(None)
    merged_latency_ms_batch1_iqr: float | None = later(None)
    merged_latency_ms_batch_iqr: float | None = later(None)
    # forward and backward pass of one image, in 1e9 floating-point operations, of which a
    # multiply-add has two; frozen weights without their own gradients
    training_gflops: float | None = later(None)
    kept_bytes: int | None = later(None)  # for the backward pass of recipe.batch_size images
    step_ms_without_data: float | None = later(None)  # forward, backward and optimiser of `step_ms`
    # as forward_gmacs, by what inference computed of some training images, their mean; only of
    # methods whose inference depends on the image
    measured_gmacs: float | None = later(None)
    energy_joules: float | None = later(None)  # of the device while it trained, all programs on it


@dataclass(frozen=True)
class EpochRow:
    """One epoch of training: mean loss and accuracy over its images, rate at its last step."""

    epoch: int
    loss: float
    accuracy: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: code, versions, machine, and what was really loaded."""

    peftbench: str
    python: str
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None
    host: str
    platform: str
    cpu_threads: int
    driver: str | None = None
    backbone_sha256: str | None = None  # of the loaded backbone tensors
    backbone_source: str | None = None  # file or tag they came from
    preprocessing: dict[str, Any] = field(default_factory=dict)  # resolved
    data: dict[str, Any] = field(default_factory=dict)  # manifest hash and counts of each split
    sites: str | None = None  # how the backbone's layers are known: described, inferred, corrected


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or not. `spec` is the declared run, `run_id` the digest of its identity."""

    run_id: str
    spec: dict[str, Any]
    status: Status
    error: str | None = None
    # keyed "test/top1", "val/loss"; "last_epoch/top1" where another epoch is reported
    metrics: dict[str, float | None] = field(default_factory=dict)
    selection: str = "last"  # which epoch is reported; "best_on_test" flatters
    selected_epoch: int | None = None  # None: the last
    parameters: Parameters | None = None
    cost: Cost | None = None
    merge: dict[str, float] | None = None  # max_logit_difference and top1_difference by merging
    reload: dict[str, float] | None = None  # train_top1 and max_logit_difference after reloading
    history: list[EpochRow] = field(default_factory=list)
    provenance: Provenance | None = None
    notes: list[str] = field(default_factory=list)
    looks: dict[str, float] = field(default_factory=dict)  # of a trial: epoch -> score on val
    stopped_epoch: int | None = None  # a trial that its search gave up after this epoch
    tuning: dict[str, Any] | None = (
        None  # tuner, trials, epochs of each, keys searched, val_top1 or the like of the winner
    )
    started: str = ""  # ISO 8601, UTC
    finished: str = ""
    micro_batch: int | None = None  # images in memory at a time; None for a whole batch
    schema: int = SCHEMA

    @property
    def task(self) -> Task:
        """What was learned."""
        return task_of(self.spec)

    @property
    def split(self) -> str | None:
        """What the run reports on, "test" or "val"; `None` where the record names no phase."""
        return SPLIT_OF_PHASE.get(str(self.spec.get("phase")))

    @property
    def judged_by(self) -> Metric:
        """What chose trials and epochs, and is the score of the run."""
        return judged_by(self.spec)

    @property
    def score(self) -> float | None:
        """What the run is judged by, as it was measured; `None` where it was not."""
        return self.reported(self.judged_by.name)

    def reported(self, metric: str) -> float | None:
        """A metric of the reported split; `None` where it was not measured."""
        return self.metrics.get(f"{self.split}/{metric}")

    def to_json(self) -> str:
        """Indented JSON; floats keep every digit, non-finite values become null."""
        raw = dataclasses.asdict(self)
        if self.cost is not None:
            raw["cost"] = declared(self.cost)
        return json.dumps(_finite(raw), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, history: bool = True) -> RunRecord:
        """The record in `text`; keys of newer schemas are ignored, `ValueError` if it is none.

        Without `history` the epochs are checked and left out: of a long training they are most of
        the record, and a table of runs has no use for them.
        """
        raw = parsed(text)
        if not isinstance(raw, dict) or not {"run_id", "spec", "status"} <= raw.keys():
            raise ValueError("not a run record: run_id, spec or status is missing")
        if not isinstance(raw["spec"], dict) or not isinstance(raw.get("metrics", {}), dict):
            raise ValueError("not a run record: spec or metrics is not a mapping")
        check_record(raw, cls, EpochRow)
        try:
            raw["status"] = Status(raw["status"])
            epochs = raw.get("history", []) if history else []
            raw["history"] = [_build(EpochRow, row) for row in epochs]
            for key, kind in _PARTS.items():
                if raw.get(key) is not None:
                    raw[key] = _build(kind, raw[key])
            record: RunRecord = _build(cls, raw)
        except (TypeError, AttributeError) as e:
            raise ValueError(f"not a run record: {e}") from e
        return record


_PARTS = {"parameters": Parameters, "cost": Cost, "provenance": Provenance}


def parsed(text: str | bytes) -> Any:
    """The values in `text`, by a parser that takes a seventh of the time of Python's own.

    Raises:
        ValueError: it is no JSON, which knows no NaN and no infinity, or lies too deep.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:  # takes halves of surrogate pairs, which file names can hold
            return json.loads(text, parse_constant=_no_number)
        except RecursionError as e:
            raise ValueError("its lists and mappings lie too deep within one another") from e


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}, which is no finite number")


@cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(kind))


def _build(kind: Any, raw: dict[str, Any]) -> Any:
    names = _names(kind)
    if raw.keys() <= names:
        return kind(**raw)
    return kind(**{key: value for key, value in raw.items() if key in names})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, float) and value - value != 0.0:  # inf and nan
        return None
    return value


def method_of(record: RunRecord) -> str:
    """Name of the method of a record; `StoreError` where its spec names none."""
    method = record.spec.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    if not isinstance(name, str):
        raise StoreError(f"Run {record.run_id} names no method: its spec has method={method!r}.")
    return name


def preference(record: RunRecord) -> tuple[bool, bool, str]:
    """Sorts records of one run id; the greatest is the current one: `OK`, settled, then newest."""
    return preferred(record.status, record.finished)


def preferred(status: str, finished: str) -> tuple[bool, bool, str]:
    """The same of what a record says."""
    ended = Status(status)
    return (ended is Status.OK, ended.settled, finished)


def current(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record per run id, where copied folders hold several."""
    best: dict[str, RunRecord] = {}
    for record in records:
        known = best.get(record.run_id)
        if known is None or preference(record) > preference(known):
            best[record.run_id] = record
    return list(best.values())
