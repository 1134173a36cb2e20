"""Intervals of the averages in a table, and which methods the best cannot be told from."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from peftbench.report.view import View
from peftbench.statistics import intervals, new_images, paired, scores
from peftbench.statistics.averages import weightings
from peftbench.statistics.best import Best
from peftbench.statistics.intervals import Interval
from peftbench.statistics.leaders import leaders as leaders_of
from peftbench.statistics.paired import Evidence
from peftbench.tasks import TOP1

RowKey = tuple[str, str, str]  # backbone and suite as tables name them, and the label of the row


@functools.lru_cache(maxsize=1)  # the figures of a view ask one after the other
def spreads(view: View) -> Mapping[RowKey, Mapping[str, Interval]]:
    """By row and name of the average, its 95 % interval over seeds.

    A row on a single data set has an interval under the name of that data set, over its images
    where there is one seed. Rows that lack a data set, or ran on other weights or files than most,
    have none. Of one's own data sets each has its interval over new images.
    """
    by_row: dict[RowKey, dict[str, Interval]] = {}
    for (heading, suite), kept in _parts(view):
        if kept["own"].all():
            by_row |= _own(view, heading, suite)
            continue
        named = kept.assign(group=kept["group"].fillna(""))
        group_of = {str(d): str(g) for d, g in named.groupby("dataset")["group"].first().items()}
        datasets = sorted(group_of)
        averages = weightings(group_of)
        if len(datasets) == 1:
            averages = {datasets[0]: {datasets[0]: 1.0}}
        for label, samples in scores.samples(kept, datasets).items():
            found = {
                name: intervals.mean_interval(samples, weights=[weights[d] for d in datasets])
                for name, weights in averages.items()
            }
            if len(datasets) == 1 and found[datasets[0]].over == intervals.NOTHING:
                rows = kept[kept["label"] == label]
                found[datasets[0]] = _of_one_run(rows, view.metric) or found[datasets[0]]
            by_row[heading, suite, str(label)] = found
    return by_row


def _of_one_run(rows: pd.DataFrame, metric: str) -> Interval | None:
    """Wilson's interval of a single run; `None` of scores that are no mean over images."""
    number = rows["num_images"].iloc[0]
    if metric != TOP1 or pd.isna(number):
        return None
    images = int(number)
    score = [float(rows["score"].iloc[0])]
    return new_images.interval(new_images.of_counts({0: score}, images, images, once=True))


def _own(view: View, heading: str, suite: str) -> dict[RowKey, dict[str, Interval]]:
    """By row, the interval on new images of each of one's own data sets."""
    by_row: dict[RowKey, dict[str, Interval]] = defaultdict(dict)
    for (backbone, of_suite, label, dataset), interval in view.intervals.items():
        if (backbone, of_suite) == (heading, suite):
            by_row[heading, suite, label][dataset] = interval
    return by_row


def equals_of_the_best(view: View) -> dict[tuple[str, str], tuple[str, ...]]:
    """By backbone and suite, the rows not distinguishable from the best over seeds, the best first.

    Over the mean of all data sets. Nothing where so few runs could tell no two methods apart.
    """
    by_section = leaders(view)
    return {key: one.members for key, one in by_section.items() if one.conclusive}


def leaders(view: View) -> dict[tuple[str, str], Best]:
    """By backbone and suite, the best over seeds by the mean of all data sets, and its equals.

    Without p-values, most of which decide nothing here. Of one's own data sets, the best on new
    images.
    """
    by_section = {
        key: replace(view.told[key], p_holm={}) if key in view.told else leaders_on(view, kept)
        for key, kept in _parts(view)
    }
    return {key: one for key, one in by_section.items() if one is not None}


def leaders_on(view: View, kept: pd.DataFrame) -> Best | None:
    """The best of complete runs of one backbone and suite, some of `View.scored`."""
    if not len(kept) or not kept["own"].all():
        return leaders_of(kept)
    rivals: dict[str, dict[str, Evidence]] = defaultdict(dict)
    keys = kept[["heading", "suite", "label", "dataset"]].drop_duplicates().sort_values("dataset")
    for key in keys.itertuples(index=False, name=None):
        rivals[str(key[2])][str(key[3])] = view.evidence[key]
    return paired.leaders(rivals, exact=view.metric == TOP1)


def _parts(view: View) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Complete runs of each backbone and suite."""
    parts = []
    for (heading, suite), part in view.scored.groupby(["heading", "suite"], sort=True):
        kept, _ = scores.complete(part)
        if len(kept):
            parts.append(((str(heading), str(suite)), kept))
    return parts
