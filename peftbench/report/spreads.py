"""Intervals of the averages in a table, and which methods the best cannot be told from."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pandas as pd

from peftbench.report.view import View
from peftbench.statistics import intervals, scores
from peftbench.statistics.averages import weightings
from peftbench.statistics.best import Best
from peftbench.statistics.intervals import Interval
from peftbench.statistics.leaders import leaders as leaders_of

RowKey = tuple[str, str, str]  # backbone and suite as tables name them, and the label of the row


@functools.lru_cache(maxsize=1)  # the figures of a view ask one after the other
def spreads(view: View) -> Mapping[RowKey, Mapping[str, Interval]]:
    """By row and name of the average, its 95 % interval over seeds.

    A row on a single data set has an interval under the name of that data set. Rows that lack a
    data set, or ran on other weights or files than most, have none.
    """
    by_row: dict[RowKey, dict[str, Interval]] = {}
    for (heading, suite), kept in _parts(view):
        named = kept.assign(group=kept["group"].fillna(""))
        group_of = {str(d): str(g) for d, g in named.groupby("dataset")["group"].first().items()}
        datasets = sorted(group_of)
        averages = weightings(group_of)
        if len(datasets) == 1:
            averages = {datasets[0]: {datasets[0]: 1.0}}
        for label, samples in scores.samples(kept, datasets).items():
            by_row[heading, suite, str(label)] = {
                name: intervals.mean_interval(samples, weights=[weights[d] for d in datasets])
                for name, weights in averages.items()
            }
    return by_row


def equals_of_the_best(view: View) -> dict[tuple[str, str], tuple[str, ...]]:
    """By backbone and suite, the rows not distinguishable from the best over seeds, the best first.

    Over the mean of all data sets. Nothing where so few runs could tell no two methods apart.
    """
    by_section = leaders(view)
    return {key: one.members for key, one in by_section.items() if one.conclusive}


def leaders(view: View) -> dict[tuple[str, str], Best]:
    """By backbone and suite, the best over seeds by the mean of all data sets, and its equals.

    Without p-values, most of which decide nothing here.
    """
    by_section = {key: leaders_of(kept) for key, kept in _parts(view)}
    return {key: one for key, one in by_section.items() if one is not None}


def _parts(view: View) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Complete runs of each backbone and suite."""
    parts = []
    for (heading, suite), part in view.scored.groupby(["heading", "suite"], sort=True):
        kept, _ = scores.complete(part)
        if len(kept):
            parts.append(((str(heading), str(suite)), kept))
    return parts
