"""What is known of methods on one's own data sets: what their runs said of single test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from peftbench.errors import StoreError
from peftbench.results.predictions import Predictions
from peftbench.results.store import ResultsStore
from peftbench.statistics import new_images
from peftbench.statistics.intervals import NOTHING, Interval
from peftbench.statistics.new_images import ImageScores
from peftbench.statistics.paired import Cells, Evidence
from peftbench.tasks import PER_CLASS, TOP1

CellKey = tuple[str, str, str, str]  # backbone and suite as tables name them, row, data set


def evidence(
    runs: pd.DataFrame, metric: str, store: ResultsStore | None
) -> dict[CellKey, Evidence]:
    """By cell of the tables, what the runs on one's own data sets tell of new images.

    Args:
        runs: some of `View.scored`, on one's own data sets.
        metric: that is judged by.
        store: where the predictions of single images are; without it there are only whole scores.
    """
    return {
        (str(heading), str(suite), str(label), str(dataset)): _of_cell(part, metric, store)
        for (heading, suite, label, dataset), part in runs.groupby(
            ["heading", "suite", "label", "dataset"], sort=True
        )
    }


def interval_of(known: Evidence) -> Interval:
    """The interval of the mean score on new images; none where nothing shows what is chance."""
    if known.spread is not None:
        return new_images.interval(known.spread)
    if len(known.of_splits) > 1:
        return new_images.resampled(list(known.of_splits.values()), known.ratio)
    return Interval(known.mean, None, None, NOTHING, 1, known.seeds)


def _of_cell(runs: pd.DataFrame, metric: str, store: ResultsStore | None) -> Evidence:
    scores: dict[int, list[float]] = {}
    for draw, score in zip(runs["draw"].tolist(), runs["score"].tolist(), strict=True):
        scores.setdefault(int(draw), []).append(float(score))
    mean = float(np.mean([score for several in scores.values() for score in several]))
    of_splits = {draw: float(np.mean(several)) for draw, several in scores.items()}
    tested, trained = (_mean(runs[name]) for name in ("num_images", "train_images"))
    known = Evidence(
        mean,
        of_splits,
        tested / trained if tested and trained else 0.0,
        seeds=min(map(len, scores.values())),
    )
    if metric not in (TOP1, PER_CLASS):
        return known
    of_images = image_scores(runs, metric, store) if store is not None else None
    if of_images is not None:
        spread = new_images.spread(of_images)
        cells = Cells.from_scores(of_images)
        return Evidence(mean, of_splits, known.ratio, spread, cells, known.seeds)
    if metric == TOP1 and tested:
        once = bool(runs["fold"].notna().all()) and runs["split_seed"].nunique() == 1
        total = round(tested + (trained or 0))
        spread = new_images.of_counts(scores, round(tested), total, once=once)
        return Evidence(mean, of_splits, known.ratio, spread, None, known.seeds)
    return known


def image_scores(runs: pd.DataFrame, metric: str, store: ResultsStore) -> ImageScores | None:
    """What the runs of one cell scored on single images.

    `None` where a run kept no predictions, or splits cannot be put together image by image.

    Args:
        runs: of one method and data set, with the columns of `View.scored`.
        metric: `TOP1` or `PER_CLASS`.
        store: where the predictions are.
    """
    ordered = runs.sort_values(["draw", "seed"], kind="stable")
    columns = ("method", "run_id", "draw", "seed", "fold")
    rows = list(zip(*(ordered[name].tolist() for name in columns), strict=True))
    said = []
    for method, run_id, *_ in rows:
        try:
            predictions = store.load_predictions(str(method), str(run_id))
        except StoreError:
            return None
        if predictions is None or not len(predictions.labels):
            return None
        said.append(predictions)
    numbers = _numbers(said, [(row[2], row[4]) for row in rows], ordered)
    if numbers is None:
        return None
    parts = [
        _columns(predictions, number, int(draw), int(seed), metric)
        for predictions, number, (_, _, draw, seed, _) in zip(said, numbers, rows, strict=True)
    ]
    split, run, image, value, weight, stratum = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    sizes = ordered["train_images"].fillna(0) + [len(one.labels) for one in said]
    total = round(float(sizes.mean()))
    return ImageScores(split, run, image, value, weight, stratum, total)


def _columns(said: Predictions, number: Any, draw: int, seed: int, metric: str) -> tuple[Any, ...]:
    """Split, run, image, value, weight and stratum of each image of a run; (N,) each."""
    count = len(said.labels)
    hit = (said.classes == said.labels).astype(float)
    stratum = np.zeros(count, np.int64)
    if metric == PER_CLASS:
        stratum = said.labels.astype(np.int64)
    sizes = np.bincount(stratum)
    weight = 1 / sizes[stratum] / np.count_nonzero(sizes)
    return np.full(count, draw), np.full(count, seed), number, hit, weight, stratum


def _numbers(
    said: Sequence[Predictions], drawn: Sequence[tuple[Any, Any]], runs: pd.DataFrame
) -> list[Any] | None:
    """The number of each image of each run, (N,): the same image has the same one everywhere.

    Runs from before images were numbered have their places: in one split, or in folds, which no
    image is in two of.
    """
    if all(one.numbers is not None for one in said):
        return [np.asarray(one.numbers, np.int64) for one in said]
    if all(one.names is not None for one in said):
        every = sorted({name for one in said for name in one.names or ()})
        place = {name: number for number, name in enumerate(every)}
        return [np.array([place[name] for name in one.names or ()]) for one in said]
    draws = dict.fromkeys(draw for draw, _ in drawn)
    in_folds = all(not pd.isna(fold) for _, fold in drawn) and runs["split_seed"].nunique() == 1
    if len(draws) > 1 and not in_folds:
        return None
    sizes: dict[Any, int] = {}
    for one, (draw, _) in zip(said, drawn, strict=True):
        if sizes.setdefault(draw, len(one.labels)) != len(one.labels):
            return None
    starts: Mapping[Any, int] = dict(
        zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True)
    )
    return [np.arange(sizes[draw]) + starts[draw] for draw, _ in drawn]


def _mean(values: pd.Series) -> float | None:
    return None if values.isna().any() else float(values.mean())
