"""Cells of a sweep that searches: trials on val first, then final runs with the winner.

A cell is a method on a backbone and a data set. Its jobs differ in their seed alone and are run
once its search is over, with what won.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from peftbench.canonical import digest
from peftbench.config import grids
from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.results.record import RunRecord, Status
from peftbench.spec import RunSpec
from peftbench.sweep.tuning.pruning import Curve, Pruner
from peftbench.sweep.tuning.search import (
    GridSearch,
    OptunaSearch,
    PointSearch,
    Search,
    Trial,
    check_budgets,
    space_of,
    written,
)
from peftbench.tasks import Metric

TUNERS = ("none", "grid", "optuna")


@dataclass
class TunedCell:
    """Final jobs that wait for one search."""

    overrides: tuple[str, ...]  # shared by its jobs: all but their seed
    finals: list[tuple[str, ...]]  # overrides of each final job
    search: Search
    tuner: TunerConfig
    epochs: int  # of one trial
    metric: Metric  # that trials are judged by, on val
    pruner: Pruner = field(default_factory=Pruner)
    waiting: dict[str, Trial] = field(default_factory=dict)  # run id -> trial under way
    curves: list[Curve] = field(default_factory=list)  # of the trials that have ended
    epochs_spent: int = 0

    def trial_overrides(self, trial: Trial) -> tuple[str, ...]:
        """The run that judges a trial: trained on train, reported on val."""
        checks = self.pruner.val_checks(self.curves, self.epochs)
        stops = ",".join(f"{epoch}:{written(bound)}" for epoch, bound in checks)
        return (
            *self.overrides,
            *trial.overrides,
            f"seed={self.tuner.seed}",
            "phase=tune",
            "tuner.name=none",
            *([f"+looks={{{stops}}}"] if checks else []),
        )

    def tell(self, trial: Trial, record: RunRecord | None) -> None:
        """A trial has ended. One that was stopped counts in the budget and cannot win."""
        values: dict[int, float] = {}
        stopped = False
        if record is not None and record.status is Status.OK:
            values = {int(epoch): value for epoch, value in record.looks.items()}
            stopped = record.stopped_epoch is not None
            self.curves.append(Curve(values, whole=not stopped))
        self.epochs_spent += 0 if record is None else len(record.history)
        self.search.tell(trial, score_of(record), values, stopped)

    def final_overrides(self) -> list[tuple[str, ...]]:
        """The final jobs with what won; raises `ConfigError` where nothing did."""
        winner = self.search.winner()
        outcome = {
            "tuner": self.tuner.name,
            "trials": self.search.trials,
            "epochs": self.epochs,
            "searched": [key for key, _ in winner.point],
            f"val_{self.metric.name}": self.search.scores[winner.number],
        }
        if self.pruner.rule != "none":
            stopped = sum(not curve.whole for curve in self.curves)
            outcome |= {"stopped": stopped, "epochs_spent": self.epochs_spent}
        note = f"tuning='{json.dumps(outcome)}'"
        return [(*final, *winner.overrides, "tuner.name=none", note) for final in self.finals]


def make_cells(
    jobs: Sequence[tuple[tuple[str, ...], RunSpec]], tuner: TunerConfig, journals: str
) -> list[TunedCell]:
    """Cells of the final jobs of a sweep, each with a search of its own.

    Args:
        jobs: overrides and composed run of each final job.
        tuner: what searches, and where.
        journals: folder for the journals of Optuna.

    Raises:
        ConfigError: an unknown tuner or pruner, a space that makes no sense, budgets that differ.
    """
    if tuner.name not in TUNERS:
        raise unknown_name("tuner", tuner.name, TUNERS)
    pruner = Pruner(tuner.pruner, tuple(tuner.look_at), tuner.startup, tuner.reduction)
    if pruner.rule != "none" and tuner.name != "optuna":
        raise ConfigError(
            f"tuner.pruner={pruner.rule} compares a trial with those before it, and the trials of "
            f"tuner={tuner.name} run side by side. Use tuner=optuna."
        )
    groups: dict[str, list[tuple[tuple[str, ...], RunSpec]]] = {}
    for overrides, spec in jobs:
        groups.setdefault(_without_seed(spec), []).append((overrides, spec))
    cells = []
    for key, members in groups.items():
        overrides, spec = members[0]
        shared = tuple(o for o in overrides if not o.startswith("seed=") and not _is_of_tuner(o))
        search = _paper_search(tuner, shared, spec) if tuner.grid else _search(tuner, journals, key)
        finals = [tuple(o for o in final if not _is_of_tuner(o)) for final, _ in members]
        epochs, metric = spec.recipe.total_epochs, spec.judged_by
        cells.append(TunedCell(shared, finals, search, tuner, epochs, metric, pruner))
    if not tuner.grid:  # papers searched their methods with budgets of their own
        check_budgets({f"{c.overrides}": c.search for c in cells})
    return cells


def score_of(record: RunRecord | None) -> float | None:
    """The val score of a trial's record, `None` where it has none or was stopped early."""
    if record is None or record.status is not Status.OK or record.stopped_epoch is not None:
        return None
    return record.metrics.get(f"val/{record.judged_by.name}")


def advance(
    cell: TunedCell,
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
            cell.tell(trial, record)
        else:
            cell.waiting[run_id] = trial


def _search(tuner: TunerConfig, journals: str, key: str) -> Search:
    space = space_of(tuner.space)
    if tuner.name == "grid":
        return GridSearch(space, tuner.trials, tuner.seed)
    if tuner.trials is None or tuner.trials < 1:
        raise ConfigError("tuner=optuna needs a budget: tuner.trials=N, at least 1.")
    asked = {"cell": key, "space": {k: str(v) for k, v in space.items()}, "seed": tuner.seed}
    if tuner.pruner != "none":  # other trials are stopped, so others are drawn
        asked["pruner"] = f"{tuner.pruner} {tuner.look_at} {tuner.startup} {tuner.reduction}"
    name = digest(asked)
    return OptunaSearch(space, tuner.trials, f"{journals}/{name}.log", name, tuner.seed)


def _paper_search(tuner: TunerConfig, overrides: Sequence[str], spec: RunSpec) -> Search:
    """The grid that a paper searched for a method, without what its row fixes."""
    from peftbench.config.choices import pinned

    if tuner.name != "grid":
        raise ConfigError(f"tuner.grid={tuner.grid} needs tuner=grid, not tuner={tuner.name}.")
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("method=")]
    grid = paper_grid(str(tuner.grid), spec.method.name).without(
        pinned(chosen[-1] if chosen else spec.method.name)
    )
    return PointSearch(grid.points(), tuner.trials, tuner.seed)


def paper_grid(name: str, method: str) -> grids.Grid:
    """The grid of `method` in `conf/grid/NAME.yaml`."""
    return grids.find(grids.named(name), method)


def _is_of_tuner(override: str) -> bool:
    """Whether an override says how to search, which means nothing to a single run.

    Such as `~tuner.space.recipe.lr` would have each of many thousand trials composed from files.
    """
    return override.lstrip("+~").partition("=")[0].partition(".")[0] == "tuner"


def _without_seed(spec: RunSpec) -> str:
    identity = {k: v for k, v in spec.identity().items() if k != "seed"}
    # which list of a few-shot set trains follows the seed
    identity["dataset"] = {k: v for k, v in identity["dataset"].items() if k != "shot_seed"}
    return digest(identity)
