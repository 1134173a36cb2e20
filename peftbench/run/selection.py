"""Which epoch counts: looks at val of a trial, the best epoch on test where a protocol says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peftbench import data
from peftbench.methods.applied import Tuned
from peftbench.spec import RunSpec
from peftbench.tasks import ImageRows


@dataclass(frozen=True)
class _Best:
    """The best epoch so far."""

    epoch: int
    rows: ImageRows
    state: dict[str, torch.Tensor]


class BestOnTest:
    """Evaluates test after the epochs that a protocol declares, and keeps the best; else nothing.

    The split is opened once, before training: this is what the default protocol forbids.
    """

    def __init__(
        self,
        spec: RunSpec,
        tuned_model: Tuned,
        splits: data.Splits,
        predicted: Callable[[np.ndarray, np.ndarray], ImageRows],
    ) -> None:
        self.best: _Best | None = None
        self.last: dict[str, float] = {}  # metrics of the latest evaluation
        self.task, self.metric = spec.task, spec.judged_by
        self.num_classes = len(splits.class_names)
        self.epochs: frozenset[int] = frozenset()
        if spec.selects_on_test:
            self.epochs = spec.selection.epochs(spec.recipe.total_epochs)
            self.images, self.labels = report_split(splits)
        self.tuned = tuned_model
        self.predicted = predicted

    def __call__(self, epoch: int) -> None:
        """Look at test after `epoch`; of equally good epochs the first is kept."""
        if epoch not in self.epochs:
            return
        rows = self.predicted(self.images, self.labels)
        self.last = self.task.metrics(rows, self.num_classes)
        if self.best is None or self.metric.of(rows) > self.metric.of(self.best.rows):
            state = {name: tensor.clone() for name, tensor in self.tuned.state().items()}
            self.best = _Best(epoch, rows, state)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, for a checkpoint."""
        best = self.best and {
            "epoch": self.best.epoch,
            "rows": dict(self.best.rows),
            "state": self.best.state,
        }
        return {"best": best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is not the best epoch of such a run.
        """
        best = state["best"]
        if best is not None:
            own = {name: tensor.shape for name, tensor in self.tuned.state().items()}
            shapes = {name: tensor.shape for name, tensor in best["state"].items()}
            if best["epoch"] not in self.epochs or shapes != own:
                raise ValueError("its best epoch is none of this run")
            if any(len(row) != len(self.labels) for row in best["rows"].values()):
                raise ValueError("its best epoch is of other images")
            self.metric.of(best["rows"])  # with all that it takes
        self.best = best and _Best(best["epoch"], best["rows"], best["state"])
        self.last = state["last"]


class ValChecks:
    """Evaluates val after the epochs that a trial declares, and says whether it is hopeless."""

    def __init__(
        self,
        spec: RunSpec,
        splits: data.Splits,
        predicted: Callable[[np.ndarray, np.ndarray], ImageRows],
    ) -> None:
        self.bounds = dict(spec.looks)
        self.values: dict[int, float] = {}  # epoch -> score on val
        self.stopped_epoch: int | None = None
        if self.bounds:
            images, labels = report_split(splits)
            self.score = lambda: spec.judged_by.of(predicted(images, labels))

    def __call__(self, epoch: int) -> bool:
        """Whether the best value so far is below what a trial must have reached by `epoch`."""
        if epoch not in self.bounds:
            return False
        self.values[epoch] = self.score()
        bound = self.bounds[epoch]
        if bound is None or max(self.values.values()) >= bound:
            return False
        self.stopped_epoch = epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        """The looks so far, for a checkpoint."""
        return {"values": self.values, "stopped": self.stopped_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: these are not looks of such a run.
        """
        values, stopped = state["values"], state["stopped"]
        if not values.keys() <= self.bounds.keys():
            raise ValueError("its looks are at other epochs")
        if not all(isinstance(value, float) for value in values.values()):
            raise ValueError("its looks are no scores")
        if stopped is not None and stopped not in values:
            raise ValueError("it was stopped where nobody looked")
        self.values, self.stopped_epoch = values, stopped


def report_split(splits: data.Splits) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, S, S, 3) uint8 and labels (N,) of the split that is reported; test opens once."""
    if isinstance(splits.report, data.TestSplit):
        opened = splits.report.open_once()
        return opened.images, opened.labels
    return splits.report.images, splits.report.labels
