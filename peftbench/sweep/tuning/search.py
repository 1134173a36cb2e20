"""Which hyper-parameters a cell (method x backbone x data set) tries, and which of them win.

A search names trials as overrides of the run, is told how each did on val, and knows when it is
over. It runs nothing: the launcher does, and every trial is an ordinary record with `phase=tune`,
so that a search that was killed goes on with what is missing.
"""

from __future__ import annotations

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import ConfigError, StoreError
from peftbench.results.disk import writing

if TYPE_CHECKING:
    from optuna.storages.journal import JournalFileOpenLock

STALE_SECONDS = 5  # a journal is locked for milliseconds at a time

Point = tuple[tuple[str, Any], ...]  # (key, value) of each hyper-parameter, in the space's order


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    number: int
    point: Point

    @property
    def overrides(self) -> tuple[str, ...]:
        """As `peftbench run` takes them."""
        return tuple(f"{key}={written(value)}" for key, value in self.point)


@dataclass(frozen=True)
class Range:
    """Values between two bounds, for searches that draw their own."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


Space = Mapping[str, tuple[Any, ...] | Range]  # key -> values, or bounds


class Search(ABC):
    """The trials of one cell."""

    def __init__(self, trials: int) -> None:
        self.trials = trials  # the budget, the same for every method
        self.scores: dict[int, float] = {}  # of the trials that ended well
        self.asked: dict[int, Trial] = {}
        self.finished: set[int] = set()

    @abstractmethod
    def propose(self) -> Trial:
        """The next trial; called at most `trials` times."""

    def ask(self) -> Trial | None:
        """The next trial to run, or `None` where the budget is spent."""
        if len(self.asked) >= self.trials:
            return None
        trial = self.propose()
        self.asked[trial.number] = trial
        return trial

    def tell(
        self,
        trial: Trial,
        score: float | None,
        val_checks: Mapping[int, float] | None = None,
        stopped: bool = False,
    ) -> None:
        """Score on val of a trial; `None` where it failed, diverged or was stopped.

        `val_checks` are its scores on the way, by epoch.
        """
        self.finished.add(trial.number)
        if score is not None and math.isfinite(score):
            self.scores[trial.number] = score

    @property
    def over(self) -> bool:
        """Whether every trial of the budget has ended."""
        return len(self.finished) >= self.trials

    def winner(self) -> Trial:
        """The best trial; among equals the one with the smaller values, in the space's order.

        VPT breaks ties in the same way, for the smaller learning rate.

        Raises:
            ConfigError: no trial ended well.
        """
        if not self.scores:
            raise ConfigError(
                f"none of {len(self.finished)} trials ended well, so none can be chosen"
            )
        best = max(self.scores.values())
        tied = [self.asked[n] for n, score in self.scores.items() if score == best]
        return min(tied, key=lambda trial: tuple(_order(v) for _, v in trial.point))


class PointSearch(Search):
    """All of some points, or a seeded choice among them where the budget is smaller."""

    def __init__(self, points: list[Point], trials: int | None = None, seed: int = 0) -> None:
        if trials is not None and trials < len(points):
            chosen = sorted(random.Random(seed).sample(range(len(points)), trials))
            points = [points[i] for i in chosen]
        super().__init__(len(points))
        self.points = points

    def propose(self) -> Trial:
        number = len(self.asked)
        return Trial(number, self.points[number])


class GridSearch(PointSearch):
    """The product of the values of each key."""

    def __init__(self, space: Space, trials: int | None = None, seed: int = 0) -> None:
        super().__init__(grid_points(space), trials, seed)


class OptunaSearch(Search):
    """Points that Optuna's sampler draws from what it was told so far.

    The study lies in a journal file, which holds trials that have ended; a search that goes on asks
    for their points first, in their order, so that their records are found and not run again.
    """

    def __init__(self, space: Space, trials: int, journal: str, name: str, seed: int = 0) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        super().__init__(trials)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.seed = seed
        # a process that was killed while it wrote leaves its lock behind
        lock = JournalFileOpenLock(journal, grace_period=STALE_SECONDS)
        with writing(Path(journal)):
            _cut_off_half_a_line(Path(journal), lock)
            try:
                self.study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(journal, lock)),
                    study_name=name,
                    direction="maximize",
                    load_if_exists=True,
                )
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise StoreError(
                    f"{journal} is no journal of a search: {e}. Move it away; the search finds its "
                    "recorded trials without it."
                ) from e
        self._distributions: dict[int, dict[str, Any]] = {}  # of the trials that are under way

    def propose(self) -> Trial:
        import optuna

        number = len(self.asked)
        known = self.study.get_trials(deepcopy=False)
        if number < len(known):
            return Trial(number, tuple((key, known[number].params[key]) for key in self.space))
        # a sampler of its own for each trial: what it draws depends on seed, number and the
        # trials told, and not on what this process drew before
        sampler = optuna.samplers.TPESampler(seed=self.seed * 100_003 + number)
        # drawn in memory: a search that is killed here leaves no half-drawn trial in the journal
        in_memory = optuna.create_study(direction="maximize", sampler=sampler)
        in_memory.add_trials(known)
        drawn = in_memory.ask()
        point = tuple((key, _suggest(drawn, key, v)) for key, v in self.space.items())
        self._distributions[number] = drawn.distributions
        return Trial(number, point)

    def tell(
        self,
        trial: Trial,
        score: float | None,
        val_checks: Mapping[int, float] | None = None,
        stopped: bool = False,
    ) -> None:
        import optuna

        super().tell(trial, score)
        distributions = self._distributions.pop(trial.number, None)
        if distributions is None:  # the journal has it
            return
        states = optuna.trial.TrialState
        state = states.FAIL if score is None else states.COMPLETE
        self.study.add_trial(
            optuna.trial.create_trial(
                state=states.PRUNED if stopped else state,
                value=score,
                intermediate_values=dict(val_checks or {}),
                params=dict(trial.point),
                distributions=distributions,
            )
        )


def _cut_off_half_a_line(journal: Path, lock: JournalFileOpenLock) -> None:
    """Drop what a full disk or a power cut left of the last entry; Optuna would refuse them all."""
    if not journal.is_file() or journal.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock.acquire()  # nobody is in the middle of a line then
    try:
        with open(journal, "r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()


def grid_points(space: Space) -> list[Point]:
    """The product of the values of each key, the last key varying fastest."""
    columns = []
    for key, values in space.items():
        if isinstance(values, Range):
            raise ConfigError(
                f"tuner.space.{key} is a range; a grid needs a list of values. Use tuner=optuna."
            )
        if not values:
            raise ConfigError(f"tuner.space.{key} is empty. List the values to try.")
        columns.append([(key, value) for value in values])
    return list(itertools.product(*columns))


def check_budgets(searches: Mapping[str, Search]) -> None:
    """Raise `ConfigError` unless every method has as many trials as the others."""
    counts: dict[int, list[str]] = {}
    for method, search in searches.items():
        counts.setdefault(search.trials, []).append(method)
    if len(counts) > 1:
        budgets = "; ".join(f"{n} for {', '.join(m)}" for n, m in sorted(counts.items()))
        raise ConfigError(
            f"methods would be tuned with different numbers of trials ({budgets}). Give their "
            f"spaces the same size, or set tuner.trials={min(counts)} for all."
        )


def space_of(declared: Mapping[str, Any]) -> Space:
    """A space from nested configuration, whose leaves are lists, or low, high, log and integer.

    Raises:
        ConfigError: an entry is neither.
    """
    space: dict[str, tuple[Any, ...] | Range] = {}
    for key, entry in _leaves(declared, ""):
        if isinstance(entry, Mapping):
            unknown = set(entry) - {"low", "high", "log", "integer"}
            if unknown or not {"low", "high"} <= set(entry) or entry["low"] >= entry["high"]:
                raise ConfigError(
                    f"tuner.space.{key}={dict(entry)} is no range: give low and a larger high, "
                    "and log=true or integer=true where they apply."
                )
            space[key] = Range(**entry)
        elif isinstance(entry, Sequence) and not isinstance(entry, str):
            space[key] = tuple(entry)
        else:
            raise ConfigError(
                f"tuner.space.{key}={entry!r} is neither a list of values nor a range with low and "
                "high."
            )
    if not space:
        raise ConfigError("tuner.space is empty. Name at least one key, such as recipe.lr.")
    return space


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, entry) of everything that is no group of keys."""
    for name, entry in node.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        group = isinstance(entry, Mapping) and all(
            isinstance(value, Mapping | list | tuple) for value in entry.values()
        )
        if group and entry:
            yield from _leaves(entry, key)
        else:
            yield key, entry


def written(value: Any) -> str:
    """A value as Hydra reads it in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(written(item) for item in value) + "]"
    return repr(value) if isinstance(value, float) else str(value)


def _suggest(trial: Any, key: str, values: tuple[Any, ...] | Range) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, list(values))
    if values.integer:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def _order(value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size and in front of words."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)
