"""Averages over the data sets of a suite, each with its name: papers print two and say `mean`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


def weightings(group_of: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Weight of each data set in each average of a suite, by the name of the average.

    `group_of` maps data sets to groups; an empty text is no group. "mean of N tasks" weights every
    data set alike, "mean of N groups" every group (both are in use for VTAB-1k: over 19 tasks, and
    over Natural, Specialized and Structured). The second is there where each data set has a group
    and there are several. The weights of an average add up to one.
    """
    if not group_of:
        return {}
    named = {_count(len(group_of), "task"): over_tasks(group_of)}
    groups = set(group_of.values())
    if len(groups) > 1 and "" not in groups:
        named[_count(len(groups), "group")] = over_groups(group_of)
    return named


def over_tasks(datasets: Iterable[str]) -> dict[str, float]:
    """The same weight for every data set."""
    names = list(datasets)
    return {name: 1 / len(names) for name in names}


def over_groups(group_of: Mapping[str, str]) -> dict[str, float]:
    """The same weight for every group, shared by its data sets alike."""
    sizes = Counter(group_of.values())
    return {dataset: 1 / len(sizes) / sizes[group] for dataset, group in group_of.items()}


def average(scores: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The weighted mean; `None` where a data set that has a weight has no score."""
    if not weights or any(dataset not in scores for dataset in weights):
        return None
    return weighted(scores, weights)


def weighted(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of scores of which none is missing."""
    return sum(weight * scores[dataset] for dataset, weight in weights.items())


def _count(number: int, noun: str) -> str:
    return f"mean of {number} {noun}{'' if number == 1 else 's'}"
