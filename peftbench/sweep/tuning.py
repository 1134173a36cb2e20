"""Cells of a tuned sweep: trials on val first, then final runs with the winner.

A cell is a method on a backbone and a data set. Its jobs differ in their seed alone and are run
once its search is over, with what won.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.results.record import RunRecord, Status
from peftbench.spec import RunSpec, digest
from peftbench.sweep.search import (
    GridSearch,
    OptunaSearch,
    Search,
    Trial,
    check_budgets,
    space_of,
)

TUNERS = ("none", "grid", "optuna")


@dataclass
class TunerConfig:
    """Schema of `tuner`; none of it is part of a run's identity, what it chooses is."""

    name: str = "none"  # or "grid", "optuna"
    space: dict[str, Any] = field(default_factory=dict)  # key -> values, or low, high, log, integer
    trials: int | None = None  # of each cell; needed by optuna, all points of a grid by default
    seed: int = 0  # of the trials' runs and of what is drawn


@dataclass
class Cell:
    """Final jobs that wait for one search."""

    overrides: tuple[str, ...]  # shared by its jobs: all but their seed
    finals: list[tuple[str, ...]]  # overrides of each final job
    search: Search
    tuner: TunerConfig
    epochs: int  # of one trial
    waiting: dict[str, Trial] = field(default_factory=dict)  # run id -> trial under way

    def trial_overrides(self, trial: Trial) -> tuple[str, ...]:
        """The run that judges a trial: trained on train, reported on val."""
        return (
            *self.overrides,
            *trial.overrides,
            f"seed={self.tuner.seed}",
            "phase=tune",
            "tuner.name=none",
        )

    def final_overrides(self) -> list[tuple[str, ...]]:
        """The final jobs with what won; raises `ConfigError` where nothing did."""
        winner = self.search.winner()
        told = {
            "tuner": self.tuner.name,
            "trials": self.search.trials,
            "epochs": self.epochs,
            "val_top1": self.search.scores[winner.number],
        }
        note = f"tuning='{json.dumps(told)}'"
        return [(*final, *winner.overrides, "tuner.name=none", note) for final in self.finals]


def make_cells(
    jobs: Sequence[tuple[tuple[str, ...], RunSpec]], tuner: TunerConfig, journals: str
) -> list[Cell]:
    """Cells of the final jobs of a sweep, each with a search of its own.

    Args:
        jobs: overrides and composed run of each final job.
        tuner: what searches, and where.
        journals: folder for the journals of Optuna.

    Raises:
        ConfigError: an unknown tuner, a space that makes no sense, budgets that differ.
    """
    if tuner.name not in TUNERS:
        raise unknown_name("tuner", tuner.name, TUNERS)
    groups: dict[str, list[tuple[tuple[str, ...], RunSpec]]] = {}
    for overrides, spec in jobs:
        groups.setdefault(_without_seed(spec), []).append((overrides, spec))
    cells = []
    for key, members in groups.items():
        overrides, spec = members[0]
        shared = tuple(o for o in overrides if not o.startswith("seed="))
        search = _search(tuner, journals, key)
        finals = [final for final, _ in members]
        cells.append(Cell(shared, finals, search, tuner, spec.recipe.epochs))
    check_budgets({f"{c.overrides}": c.search for c in cells})
    return cells


def score_of(record: RunRecord | None) -> float | None:
    """Val accuracy of a trial's record, `None` where it has none."""
    if record is None or record.status is not Status.OK:
        return None
    return record.metrics.get("val/top1")


def advance(
    cell: Cell,
    start: Callable[[tuple[str, ...]], tuple[str, RunRecord | None]],
    at_a_time: int | None,
) -> None:
    """Start the trials of a cell that may run now; recorded ones are told at once.

    `start` takes the overrides of a trial, queues it unless it is recorded, and gives its run id
    and record. Optuna draws each trial from all before it, so that its trials run one by one.
    """
    while at_a_time is None or len(cell.waiting) < at_a_time:
        trial = cell.search.ask()
        if trial is None:
            return
        run_id, record = start(cell.trial_overrides(trial))
        if record is not None and record.status.settled:
            cell.search.tell(trial, score_of(record))
        else:
            cell.waiting[run_id] = trial


def _search(tuner: TunerConfig, journals: str, key: str) -> Search:
    space = space_of(tuner.space)
    if tuner.name == "grid":
        return GridSearch(space, tuner.trials, tuner.seed)
    if tuner.trials is None or tuner.trials < 1:
        raise ConfigError("tuner=optuna needs a budget: tuner.trials=N, at least 1.")
    name = digest({"cell": key, "space": {k: str(v) for k, v in space.items()}, "seed": tuner.seed})
    return OptunaSearch(space, tuner.trials, f"{journals}/{name}.log", name, tuner.seed)


def _without_seed(spec: RunSpec) -> str:
    identity = {k: v for k, v in spec.identity().items() if k != "seed"}
    return digest(identity)
