"""Averages over the data sets of a suite, each with its name: papers print two and say `mean`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def weightings(group_of: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Weight of each data set in each average of a suite, by the name of the average.

    `group_of` maps data sets to groups; an empty text is no group. "mean of N tasks" weights every
    data set alike, "mean of N groups" every group (both are in use for VTAB-1k: over 19 tasks, and
    over Natural, Specialized and Structured). The second is there where each data set has a group
    and there are several. The weights of an average add up to one.
    """
    if not group_of:
        return {}
    named = {_count(len(group_of), "task"): dict.fromkeys(group_of, 1 / len(group_of))}
    sizes = Counter(group_of.values())
    if len(sizes) > 1 and "" not in sizes:
        named[_count(len(sizes), "group")] = {
            dataset: 1 / len(sizes) / sizes[group] for dataset, group in group_of.items()
        }
    return named


def average(scores: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The weighted mean; `None` where a data set that has a weight has no score."""
    if not weights or any(dataset not in scores for dataset in weights):
        return None
    return sum(weight * scores[dataset] for dataset, weight in weights.items())


def _count(number: int, noun: str) -> str:
    return f"mean of {number} {noun}{'' if number == 1 else 's'}"
