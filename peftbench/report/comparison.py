"""Comparison of the methods of one backbone and suite: averages, ranks, tests, single images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from peftbench.errors import StoreError
from peftbench.report.evidence import image_scores
from peftbench.report.scores import SCORE
from peftbench.report.sections import Section
from peftbench.report.spreads import leaders_on
from peftbench.report.view import View
from peftbench.report.words import first_of
from peftbench.results.predictions import ROWS, Predictions
from peftbench.results.store import ResultsStore
from peftbench.statistics import best, images, intervals, paired, ranks, scores
from peftbench.statistics.averages import weightings
from peftbench.statistics.best import Best
from peftbench.statistics.intervals import DATASETS, SEEDS, Interval
from peftbench.statistics.paired import Cells, PairTest
from peftbench.statistics.ranks import Friedman
from peftbench.tasks import TOP1

MOST_WITH_IMAGES = (
    12  # methods whose predictions are read: 12 x 24 data sets x 5 seeds take seconds
)


@dataclass(frozen=True)
class Images:
    """What the predictions of the final runs say, over the images of all data sets."""

    labels: tuple[str, ...]
    tests: pd.DataFrame  # first, second, first_only, second_only, images, p, p_holm
    agreement: pd.DataFrame  # labels x labels
    ensembles: pd.DataFrame  # one row a run; see `images.ensembles`
    ece: dict[str, float]
    runs: int  # of each method: those with the seeds that all have


@dataclass(frozen=True)
class Comparison:
    """Everything that is compared within one backbone and suite."""

    heading: str
    suite: str  # or one's own data set
    metric: str  # that the scores are of
    labels: tuple[str, ...]  # compared methods, the highest mean first
    datasets: tuple[str, ...]
    seeds: tuple[int, int]  # fewest and most of a method on a data set
    remarks: tuple[str, ...]
    intervals: tuple[tuple[str, str, Interval], ...]  # label, name of the average, interval
    improvement: tuple[tuple[str, str, Interval], ...]  # of the best over each other method
    average_ranks: pd.Series[float]
    friedman: Friedman
    pairs: pd.DataFrame
    bars: tuple[tuple[str, ...], ...]
    win_rates: pd.DataFrame
    best: tuple[Best, ...]  # over seeds, and over data sets; of one's own data, on new images
    images: Images | None
    own: bool = False  # about one's own data set


def compare(
    runs: pd.DataFrame, remarks: list[str], store: ResultsStore | None = None, metric: str = SCORE
) -> Comparison | None:
    """The comparison of the runs of one backbone and suite; `None` for fewer than 2 methods.

    `runs` are some of `View.scored`, by `metric`. Predictions are read from `store`, where there is
    one.
    """
    kept, lacking = scores.complete(runs)
    means = scores.means(kept)
    if len(means) < 2:
        return None
    notes = [*remarks, *(f"{x.label} is left out: no {first_of(x.lacks, 3)}" for x in lacking)]
    labels = _ordered(means)
    datasets = tuple(map(str, means.columns))
    leaders = [best.not_distinguishable(kept, over=over) for over in (SEEDS, DATASETS)]
    samples = scores.samples(kept, datasets)
    tests = ranks.pairwise(means)
    number = scores.counts(kept).to_numpy()
    pictures = None if store is None else _images(kept, labels[:MOST_WITH_IMAGES], store, notes)
    return Comparison(
        heading=str(kept["heading"].iloc[0]),
        suite=str(kept["suite"].iloc[0]),
        metric=metric,
        labels=labels,
        datasets=datasets,
        seeds=(int(number.min()), int(number.max())),
        remarks=tuple(notes),
        intervals=tuple(_intervals(kept, labels, datasets)),
        improvement=tuple(
            (
                other,
                over,
                intervals.improvement_interval(samples[labels[0]], samples[other], over=over),
            )
            for other in labels[1:]
            for over in (SEEDS, DATASETS)
        ),
        average_ranks=ranks.average_ranks(means),
        friedman=ranks.friedman(means),
        pairs=tests,
        bars=tuple(ranks.groups(means, tests)),
        win_rates=ranks.win_rates(means),
        best=tuple(one for one in leaders if one is not None),
        images=pictures,
    )


def compare_own(
    section: Section, store: ResultsStore | None = None, metric: str = SCORE
) -> Comparison | None:
    """The comparison on one of one's own data sets, on new images; `None` for fewer than 2 methods.

    Ranks over data sets and their tests say nothing here. Predictions are read from `store`.
    """
    kept, _ = scores.complete(section.runs)
    means = scores.means(kept)
    if len(means) < 2:
        return None
    labels = _ordered(means)
    place = section.heading, section.suite
    leaders = leaders_on(section.view, kept)
    notes = list(section.remarks)
    number = scores.counts(kept).to_numpy()
    pictures = None
    if store is not None:
        pictures = _images(kept, labels[:MOST_WITH_IMAGES], store, notes)
        if pictures is not None:
            pictures = replace(pictures, tests=_tests_of_own(kept, pictures.labels, store))
    return Comparison(
        heading=section.heading,
        suite=section.suite,
        metric=metric,
        labels=labels,
        datasets=(section.suite,),
        seeds=(int(number.min()), int(number.max())),
        remarks=tuple(notes),
        intervals=tuple(
            (label, section.suite, section.view.intervals[*place, label, section.suite])
            for label in labels
        ),
        improvement=(),
        average_ranks=pd.Series(dtype=float),
        friedman=ranks.friedman(means),
        pairs=pd.DataFrame(),
        bars=(),
        win_rates=pd.DataFrame(),
        best=() if leaders is None else (leaders,),
        images=pictures,
        own=True,
    )


def _tests_of_own(kept: pd.DataFrame, labels: tuple[str, ...], store: ResultsStore) -> pd.DataFrame:
    """Tests of single images of all pairs, which count an image once over all splits."""
    found = {x: image_scores(kept[kept["label"] == x], TOP1, store) for x in labels}
    cells = {x: Cells.from_scores(one) for x, one in found.items() if one is not None}
    rows = []
    for a, b in combinations([x for x in labels if x in cells], 2):
        test = paired.compare(cells[a], cells[b], exact=True)
        if test is not None:
            rows.append({"first": a, "second": b, **vars(test)})
    tests = pd.DataFrame(rows, columns=["first", "second", *PairTest.__dataclass_fields__])
    return tests.assign(p_holm=ranks.holm(tests["p"].to_numpy(float)))


def reliability(view: View, store: ResultsStore) -> pd.DataFrame:
    """Bins of confidence (`images.calibration_bins`) of the methods whose images can be compared.

    Over the test images of all data sets and the seeds that all methods share. Columns: `backbone`,
    `suite`, `label`, `method`, those of the bins, and `runs`, the seeds. Empty where no predictions
    are kept.
    """
    rows = []
    for _, part in view.scored.groupby(["heading", "suite"], sort=True):
        kept, _ = scores.complete(part)
        if kept.empty:
            continue
        read = _read(kept, _leading(kept), store, [])
        if read is None:
            continue
        first = kept.iloc[0]
        methods = dict(zip(kept["label"], kept["method"], strict=True))
        for label in read.labels:
            bins = images.calibration_bins(read.sure[label].ravel(), read.hits(label).ravel())
            place = {"backbone": first["backbone"], "suite": first["suite"], "label": label}
            rows.append(bins.assign(**place, method=methods[label], runs=read.runs))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _leading(kept: pd.DataFrame) -> tuple[str, ...]:
    """The methods whose predictions are read."""
    return _ordered(scores.means(kept))[:MOST_WITH_IMAGES]


def _ordered(means: pd.DataFrame) -> tuple[str, ...]:
    """Labels of `scores.means`, the highest mean first."""
    overall = means.mean(axis=1)
    return tuple(sorted(map(str, means.index), key=lambda name: (-overall[name], name)))


def _intervals(
    kept: pd.DataFrame, labels: tuple[str, ...], datasets: tuple[str, ...]
) -> list[tuple[str, str, Interval]]:
    """Each average of each method over seeds, and over data sets as well."""
    named = kept.assign(group=kept["group"].fillna(""))
    group_of = {str(d): str(g) for d, g in named.groupby("dataset")["group"].first().items()}
    samples = scores.samples(kept, datasets)
    out = []
    for label in labels:
        for name, weights in weightings(group_of).items():
            strata = [group_of[d] for d in datasets] if name.endswith("groups") else None
            for over in (SEEDS, DATASETS):
                interval = intervals.mean_interval(
                    samples[label], over=over, weights=[weights[d] for d in datasets], strata=strata
                )
                out.append((label, name, interval))
        interval = intervals.interquartile_mean_interval(samples[label])
        out.append((label, "interquartile mean", interval))
    return out


@dataclass(frozen=True)
class _Read:
    """Predictions of some methods on the same images with the same seeds."""

    labels: tuple[str, ...]
    classes: dict[str, Any]  # (seeds, images)
    sure: dict[str, Any]  # confidence, of the same shape
    truth: Any  # (images,)
    runs: int

    def hits(self, label: str) -> Any:
        """Which predictions are right."""
        return self.classes[label] == self.truth


def _images(
    kept: pd.DataFrame, labels: tuple[str, ...], store: ResultsStore, notes: list[str]
) -> Images | None:
    """`None`, and a remark, where the predictions that are there cannot be compared."""
    read = _read(kept, labels, store, notes)
    if read is None:
        return None
    hits = {x: read.hits(x) for x in labels}
    rows = [
        {"first": a, "second": b, **vars(images.mcnemar(hits[a], hits[b]))}
        for a, b in combinations(labels, 2)
    ]
    tests = pd.DataFrame(rows)
    bins = {x: images.calibration_bins(read.sure[x].ravel(), hits[x].ravel()) for x in labels}
    return Images(
        labels=labels,
        tests=tests.assign(p_holm=ranks.holm(tests["p"].to_numpy(float))),
        agreement=images.agreement(read.classes),
        ensembles=images.ensembles(read.classes, read.sure, read.truth),
        ece={x: images.calibration_error(bins[x]) for x in labels},
        runs=read.runs,
    )


def _read(
    kept: pd.DataFrame, labels: tuple[str, ...], store: ResultsStore, notes: list[str]
) -> _Read | None:
    """`None`, and a remark, where the predictions that are there cannot be compared."""
    runs = kept[kept["label"].isin(labels)]
    seeds: dict[Any, set[Any]] = defaultdict(set)
    columns = ("label", "dataset", "draw", "run_seed")
    for *place, seed in zip(*(runs[x].tolist() for x in columns), strict=True):
        seeds[tuple(place)].add(seed)
    shared = set.intersection(*seeds.values())
    if not shared:
        notes.append("single images are not compared: no seed is shared by all methods")
        return None
    loaded: dict[str, list[Predictions]] = {}
    truth: list[Any] = []
    order = runs[runs["run_seed"].isin(shared)]
    order = order.sort_values(["label", "run_seed", "dataset", "draw"])
    for (label, _), part in order.groupby(["label", "run_seed"], sort=True):
        parts = []
        for method, run_id in zip(part["method"].tolist(), part["run_id"].tolist(), strict=True):
            try:
                predictions = store.load_predictions(str(method), str(run_id))
            except StoreError as error:
                notes.append(f"single images are not compared: {error}")
                return None
            if predictions is None:
                notes.append(f"single images are not compared: run {run_id} saved none")
                return None
            parts.append(predictions)
        rows = [np.concatenate([getattr(one, name) for one in parts]) for name in ROWS]
        whole = Predictions(rows[0], rows[1], rows[2], rows[3])
        truth.append(whole.labels)
        loaded.setdefault(str(label), []).append(whole)
    if any(not np.array_equal(truth[0], other) for other in truth[1:]):  # or in their splits
        notes.append("single images are not compared: runs differ in the true classes of images")
        return None
    classes = {x: np.stack([one.classes for one in loaded[x]]) for x in labels}
    sure = {x: np.stack([one.confidence for one in loaded[x]]).astype(float) for x in labels}
    return _Read(labels, classes, sure, truth[0], len(shared))
