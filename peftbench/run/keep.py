"""What is done with a finished model: its files, the checks of them, and its latencies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from peftbench.artefacts import task_file
from peftbench.backbones.copies import full_copy
from peftbench.backbones.load import load
from peftbench.errors import NotMergeable, WeightsError
from peftbench.results.latencies import Latencies
from peftbench.results.record import Cost
from peftbench.results.store import ResultsStore
from peftbench.run import cost
from peftbench.run.bench import Bench, attach
from peftbench.run.ending import PendingRecord
from peftbench.run.latency import Found, latency_of
from peftbench.tasks import ImageRows, Task
from peftbench.training.evaluate import predict


@dataclass(frozen=True)
class Kept:
    """The sample that the checks of a model are made on. Of training images: test is read once."""

    images: np.ndarray  # (N, S, S, 3) uint8
    labels: np.ndarray  # (N,)
    reference: np.ndarray  # outputs of the model as it was trained
    task: Task

    def score_of(self, outputs: np.ndarray) -> float:
        """What the task's own score is of outputs (N, ...) of the sample.

        Others may need more of a sample than it has, such as images of each class.
        """
        return self.task.score.of(self.task.rows(outputs, self.labels))


def save_predictions(store: ResultsStore, bench: Bench, rows: ImageRows) -> None:
    """Write what the model says of each image of the reported split, and of which file it is."""
    spec = bench.spec
    names, numbers = bench.splits.reported_files, bench.splits.numbers
    store.save_predictions(
        spec.method.name, spec.run_id, spec.task, names=names, numbers=numbers, **rows
    )


def keep(pending: PendingRecord, bench: Bench, store: ResultsStore) -> Kept:
    """Save the tuned tensors and their card, and load them again.

    Raises:
        WeightsError: the reloaded task predicts otherwise.
    """
    images, labels = bench.sample()
    outputs = bench.predict(images, bench.compute.alone())
    kept = Kept(images, labels, outputs, bench.spec.task)
    folder = store.artefacts((bench.spec.method.name, bench.spec.run_id))
    stored_bytes = task_file.save(bench.tuned, folder, _card(pending, bench))
    pending.parameters = dataclasses.replace(bench.parameters, stored_bytes=stored_bytes)
    pending.reload = _check_reload(bench, store, kept)
    return kept


def time_tuned(pending: PendingRecord, bench: Bench, known: Latencies, spent: Cost) -> Cost:
    """`spent` with the latencies and multiply-adds of the model as it was trained."""
    found = latency_of(bench.tuned.model, bench, known, merged=False)
    _note(pending, "latency", found)
    return dataclasses.replace(
        spent,
        latency_ms_batch1=found.latency.one_ms,
        latency_ms_batch=found.latency.batch_ms,
        latency_batch_size=cost.LATENCY_BATCH,
        latency_measured=found.since,
        latency_ms_batch1_iqr=found.latency.one_iqr_ms,
        latency_ms_batch_iqr=found.latency.batch_iqr_ms,
        forward_gmacs=found.latency.forward_gmacs,
    )


def counted_on_images(bench: Bench, kept: Kept, spent: Cost) -> Cost:
    """`spent` with what inference computes of the sample, where that depends on the image."""
    if not bench.tuned.method.card.dynamic:
        return spent
    norm, alone = bench.backbone.preprocessing, bench.compute.alone()
    gmacs = cost.measured_gmacs(full_copy(bench.tuned.model), kept.images, norm, alone)
    return dataclasses.replace(spent, measured_gmacs=gmacs)


def merge(pending: PendingRecord, bench: Bench, kept: Kept) -> nn.Module | None:
    """A merged copy, compared with the model as it was trained.

    `None`, with a note, where these hyper-parameters have no place in it.
    """
    tuned = bench.tuned
    if not tuned.method.card.mergeable:
        return None
    try:
        merged = tuned.method.merge(full_copy(tuned.model))
    except NotMergeable as e:
        if not tuned.method.unmergeable(tuned.anatomy):  # which a note has said since the start
            pending.notes.append(str(e))
        return None
    preprocessing, alone = bench.backbone.preprocessing, bench.compute.alone()
    after = predict(merged, kept.images, preprocessing, alone, kept.task)
    difference = kept.score_of(after) - kept.score_of(kept.reference)
    pending.merge = {
        "max_logit_difference": _max_difference(after, kept.reference),
        f"{kept.task.score.name}_difference": difference,
    }
    return merged


def time_merged(
    pending: PendingRecord, bench: Bench, known: Latencies, merged: nn.Module, spent: Cost
) -> Cost:
    """`spent` with the latencies of the merged model."""
    found = latency_of(merged, bench, known, merged=True)
    _note(pending, "merged latency", found)
    return dataclasses.replace(
        spent,
        merged_latency_ms_batch1=found.latency.one_ms,
        merged_latency_ms_batch=found.latency.batch_ms,
        merged_latency_ms_batch1_iqr=found.latency.one_iqr_ms,
        merged_latency_ms_batch_iqr=found.latency.batch_iqr_ms,
        latency_measured=min(filter(None, (spent.latency_measured, found.since)), default=None),
    )


def _note(pending: PendingRecord, what: str, found: Found) -> None:
    if found.latency.disturbed is not None:
        pending.notes.append(f"{what}: disturbed, {found.latency.disturbed}")


def _check_reload(bench: Bench, store: ResultsStore, kept: Kept) -> dict[str, float]:
    """Predict with a fresh backbone and the saved tensors; raises unless the metric is the same."""
    spec, compute = bench.spec, bench.compute.alone()
    fresh = load(spec.backbone, 2, spec.preprocessing, compute.device, compute.dtype)
    if fresh.sha256 != bench.backbone.sha256:
        raise WeightsError(
            f"backbone {spec.backbone.name!r} gave other weights when it was loaded again "
            f"({bench.backbone.sha256[:12]}, then {fresh.sha256[:12]})."
        )
    # the same weights in the same architecture, of which the anatomy is known
    # with what images decided, in the form in which it is stored
    stored = bench.tuned.method.stored_as(bench.tuned.anatomy)
    again = attach(
        dataclasses.replace(spec, method=stored),
        fresh,
        bench.tuned.anatomy,
        bench.splits.num_classes,
    )
    task_file.load(again, store.artefacts((spec.method.name, spec.run_id)))
    reloaded = predict(again.model, kept.images, fresh.preprocessing, compute, kept.task)
    before, after = kept.score_of(kept.reference), kept.score_of(reloaded)
    if before != after:
        raise WeightsError(
            f"the reloaded task reaches {after} where the trained one reached {before} on the same "
            "images: a tensor that training changed is not saved. Report this as a bug."
        )
    return {
        f"train_{kept.task.score.name}": after,
        "max_logit_difference": _max_difference(reloaded, kept.reference),
    }


def _max_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _card(pending: PendingRecord, bench: Bench) -> dict[str, Any]:
    """What the file of a task says of it."""
    method_card = dataclasses.asdict(bench.tuned.method.card)
    del method_card["look"]  # of the report, and not of the task
    method = bench.tuned.method
    settled = {} if method == bench.spec.method else method.identity()["hyperparameters"]
    return {
        "run_id": bench.spec.run_id,
        "spec": bench.spec.describe(),
        **({"settled": settled} if settled else {}),  # with the structure that images decided
        "method_card": method_card,
        "classes": list(bench.splits.class_names),
        "metrics": pending.metrics,
        "dtype": str(bench.compute.dtype).removeprefix("torch."),
        "provenance": dataclasses.asdict(bench.provenance),
    }
