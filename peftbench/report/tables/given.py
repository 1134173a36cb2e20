"""What rows of a table are told by: the settings that were given, not those that a search chose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

Settings = Mapping[str, str]
SEARCHED = "searched"  # stands for every value that a search chose
METHOD = "method"  # the group of its hyper-parameters
BUDGET = "search"  # the setting by which rows of several searches are told


class DeclaredRun(Protocol):
    """What is asked of a run of a table."""

    @property
    def heading(self) -> str: ...
    @property
    def suite(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def draw(self) -> Any: ...
    @property
    def unit(self) -> Any: ...
    @property
    def budget(self) -> str: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def searched(self) -> Mapping[str, str]: ...
    @property
    def without_head(self) -> int | None: ...


def searched_settings(keys: str, settings: Collection[str]) -> dict[str, str]:
    """Of `recipe.lr,method.scale`, which a search chose, the group of each name in `settings`.

    A setting of the recipe that the method has as well has the name of its group before its own.
    """
    parted = [(key, *key.rpartition(".")[::2]) for key in keys.split(",") if key]
    return {key if key in settings else name: group for key, group, name in parted}


def given_settings(runs: Sequence[DeclaredRun]) -> list[Settings]:
    """Of each run of one method, the settings by which its row is told.

    What a search chose has the value `SEARCHED`, so that rates which differ between splits, seeds
    and data sets leave one row. Where runs of several searches would then be the same seed of one
    cell, the budgets of the searches tell them, or else the values that were chosen. A setting of
    the method always tells rows where its sizes differ.
    """
    free = _chosen_differently(runs)
    if _sizes_differ(runs):
        free -= {name for run in runs for name, group in run.searched.items() if group == METHOD}
    if not free:
        return [run.settings for run in runs]
    made: dict[Any, Settings] = {}  # runs that share settings share these too
    for run in runs:
        chosen = dict.fromkeys(free & run.searched.keys(), SEARCHED)
        made.setdefault(id(run.settings), {**run.settings, **chosen})
    kept = [made[id(run.settings)] for run in runs]
    if not _repeats(runs, kept):
        return kept
    for run in runs:
        told = {**made[id(run.settings)], BUDGET: run.budget or "none"}
        made.setdefault((id(run.settings), run.budget), told)
    by_budget = [made[id(run.settings), run.budget] for run in runs]
    return [run.settings for run in runs] if _repeats(runs, by_budget) else by_budget


def chosen_in_cell(runs: Sequence[DeclaredRun]) -> list[str]:
    """A remark on each setting that searches chose differently for the runs of one cell."""
    over = "split" if len({run.draw for run in runs}) > 1 else "seed"
    remarks = []
    for name in dict.fromkeys(name for run in runs for name in run.searched):
        values = {run.settings[name] for run in runs if name in run.settings}
        if len(values) > 1:
            remarks.append(f"{name} searched for each {over}: {_span(values)}")
    return remarks


def _span(values: Collection[str]) -> str:
    """Numbers as `0.001 to 0.01`, other values one after the other."""
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return ", ".join(sorted(values))
    return f"{ordered[0]} to {ordered[-1]}"


def _chosen_differently(runs: Sequence[DeclaredRun]) -> set[str]:
    """Settings that searches chose, and not the same value for all."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name in run.searched:
            if name in run.settings:
                values[name].add(run.settings[name])
    return {name for name, found in values.items() if len(found) > 1}


def _sizes_differ(runs: Sequence[DeclaredRun]) -> bool:
    sizes: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        if run.without_head is not None:
            sizes[run.heading].add(run.without_head)
    return any(len(found) > 1 for found in sizes.values())


def _repeats(runs: Sequence[DeclaredRun], told: Sequence[Settings]) -> bool:
    """Whether two searches chose differently for one seed of what would be one cell."""
    chosen: dict[Any, set[Any]] = defaultdict(set)
    for run, settings in zip(runs, told, strict=True):
        if run.searched:
            cell = run.heading, run.suite, run.dataset, frozenset(settings.items())
            chosen[cell, run.unit].add(frozenset(run.settings.items()))
    return any(len(found) > 1 for found in chosen.values())
