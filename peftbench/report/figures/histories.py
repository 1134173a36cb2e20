"""Every epoch of the runs of a row as one array, from which its curves are computed at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from peftbench.registry import unknown_name
from peftbench.report.figures.lines import Line, LinePoint
from peftbench.report.units import units
from peftbench.report.view import View
from peftbench.results.record import Status

QUANTITIES = {"accuracy": "training accuracy in %", "loss": "training loss in nats"}


@dataclass(frozen=True, eq=False)
class History:
    """What the runs of one row of the tables measured in each epoch."""

    name: str  # of the row
    method: str
    datasets: tuple[str, ...]
    epochs: np.ndarray  # (E,), rising
    values: np.ndarray  # (E, datasets, seeds), not a number where no run has it

    def line(self, dataset: str | None = None, most: int | None = None) -> Line | None:
        """The curve on one data set, or the mean over all; `None` where there is no point of it.

        A place is the mean over data sets of the means over seeds. It exists only where every data
        set has a value; its spread is that of the means over data sets of the seeds that all of
        them have. With `most`, about so many places are left, at regular distances, and the last.
        """
        values = self.values
        if dataset is not None:
            if dataset not in self.datasets:
                return None
            values = values[:, [self.datasets.index(dataset)]]
        there = ~np.isnan(values)
        at = np.flatnonzero(there.any(2).all(1))
        if not len(at):
            return None
        if most is not None:
            at = np.append(at[: -1 : max(1, -(-len(at) // most))], at[-1])
        values, there = values[at], there[at]
        means = _mean(_mean(values, there, 2), np.isfinite(values).any(2), 1)
        shared = there.all(1)
        count = shared.sum(1)
        of_seeds = _mean(values, np.broadcast_to(shared[:, None], values.shape), 1)
        off = np.where(shared, of_seeds - _mean(of_seeds, shared, 1)[:, None], 0.0)
        spread = np.sqrt((off**2).sum(1) / np.maximum(count - 1, 1))
        places = tuple(
            LinePoint(x, mean, sd if n > 1 else None, n)
            for x, mean, sd, n in zip(
                self.epochs[at].tolist(),
                means.tolist(),
                spread.tolist(),
                count.tolist(),
                strict=True,
            )
        )
        return Line(self.name, self.method, places)


def _mean(values: np.ndarray, counted: np.ndarray, axis: int) -> np.ndarray:
    """Means along an axis of the values that count; the sum is rounded once, as `fmean` does."""
    total = np.where(counted, values, 0.0).astype(np.longdouble).sum(axis).astype(float)
    mean: np.ndarray = total / np.maximum(counted.sum(axis), 1)
    return mean


def histories(view: View, epochs: pd.DataFrame, quantity: str) -> list[History]:
    """One for each row of the tables with a finished final run, in the order of `epochs`.

    `epochs` is a table of epochs (`peftbench.results.frame.epochs`), `quantity` one of
    `QUANTITIES`; accuracies are in percent.

    Raises:
        UnknownName: there is no such quantity.
    """
    if quantity not in QUANTITIES:
        raise unknown_name("quantity", quantity, QUANTITIES)
    runs = view.labelled
    runs = runs[runs["status"] == str(Status.OK)].drop_duplicates("run_id", keep="last")
    kept = epochs[epochs["run_id"].isin(runs["run_id"])].dropna(subset=quantity)
    row = pd.Index(runs["run_id"]).get_indexer(kept["run_id"])
    (label, labels), (dataset, datasets), (seed, _) = (
        pd.factorize(values.astype(str).to_numpy(dtype=object))
        for values in (runs["label"], runs["dataset"], units(runs))
    )
    methods = dict(zip(runs["label"].astype(str), runs["method"].astype(str), strict=True))
    number = kept["epoch"].to_numpy(dtype=float)
    value = kept[quantity].to_numpy(dtype=float) * (100.0 if quantity == "accuracy" else 1.0)
    of_label = label[row]
    result = []
    for which in pd.unique(of_label):
        mine = np.flatnonzero(of_label == which)
        of_epoch, epoch = np.unique(number[mine], return_inverse=True)
        of_dataset, names = pd.factorize(dataset[row[mine]])
        of_seed, known = pd.factorize(seed[row[mine]])
        values = np.full((len(of_epoch), len(names), len(known)), np.nan)
        values[epoch, of_dataset, of_seed] = value[mine]
        name = str(labels[which])
        result.append(History(name, methods[name], tuple(datasets[names]), of_epoch, values))
    return result


def in_order(lines: list[Line | None]) -> list[Line]:
    """The lines that there are, in the order of their last value, highest first."""
    there = [line for line in lines if line is not None]
    return sorted(there, key=lambda line: (-line.places[-1].mean, line.name))
