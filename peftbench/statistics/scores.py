"""Scores of several methods on several data sets, checked once for everything that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from peftbench.errors import ConfigError

COLUMNS = ("label", "dataset", "seed", "score")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class IncompleteScores:
    """A method that has no score on some data sets, and is compared with no other."""

    label: str
    lacks: tuple[str, ...]


def check(scores: pd.DataFrame) -> pd.DataFrame:
    """`scores` without rows that lack a score; `ConfigError` for a wrong or repeated row.

    One run a label, data set and seed: a repeated one would count twice in every interval.
    """
    absent = [name for name in COLUMNS if name not in scores.columns]
    if absent:
        raise ConfigError(
            f"Scores need the columns {', '.join(COLUMNS)}, but have no {', '.join(absent)}."
        )
    kept = scores[scores["score"].notna()]
    repeated = kept.duplicated(["label", "dataset", "seed"])
    if repeated.any():
        first = kept[repeated].iloc[0]
        raise ConfigError(
            f"{first['label']} has several scores on {first['dataset']} with seed {first['seed']}. "
            "Select one of them with --where."
        )
    return kept


def complete(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[IncompleteScores]]:
    """Rows of the methods that have a score on every data set, and the methods left out.

    Data sets are those on which any method has a score.
    """
    kept = check(scores)
    datasets = set(kept["dataset"])
    lacking = []
    for label, part in kept.groupby("label", sort=True):
        if lost := sorted(datasets - set(part["dataset"])):
            lacking.append(IncompleteScores(str(label), tuple(lost)))
    out = kept[~kept["label"].isin([one.label for one in lacking])]
    return out.reset_index(drop=True), lacking


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, labels (rows, sorted) x data sets (columns, sorted); NaN where none is."""
    wide = check(scores).pivot_table(
        index="label", columns="dataset", values="score", aggfunc="mean", sort=True
    )
    return wide.astype(float)


def samples(scores: pd.DataFrame, datasets: Sequence[str]) -> dict[str, list[Array]]:
    """By label, the scores on each of `datasets`, in the order of their seeds; (seeds,) each."""
    by_cell = {
        (str(label), str(dataset)): part.to_numpy(float)
        for (label, dataset), part in scores.sort_values("seed", kind="stable").groupby(
            ["label", "dataset"], sort=False
        )["score"]
    }
    none = np.zeros(0)
    return {
        label: [by_cell.get((label, dataset), none) for dataset in datasets]
        for label in sorted({label for label, _ in by_cell})
    }


def counts(scores: pd.DataFrame) -> pd.DataFrame:
    """Number of seeds, labels x data sets, in the order of `means`."""
    wide = check(scores).pivot_table(
        index="label", columns="dataset", values="score", aggfunc="count", sort=True
    )
    return wide.fillna(0).astype(int)
