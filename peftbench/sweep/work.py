"""What a sweep has to do: independent jobs, or searches and the final jobs that wait for them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from tqdm import tqdm

from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore
from peftbench.sweep.jobs import Ending, Job, record_of
from peftbench.sweep.plan import refusal
from peftbench.sweep.tuning.cells import TunedCell, advance, make_cells
from peftbench.untrusted import printable


class Work(ABC):
    """Which jobs a sweep starts, and which follow when one has ended."""

    to_run: int = 0  # jobs that are not done yet, as far as is known
    at_most: int = 0  # jobs that could run at a time
    left: AbstractSet[int] = frozenset()  # what cannot go on, as a part of it is held or stopped

    @abstractmethod
    def begin(self) -> list[Job]:
        """Jobs that can start at once."""

    @abstractmethod
    def title(self) -> str:
        """What there is to do, in one line."""

    def after(self, ending: Ending) -> list[Job]:
        """Jobs that may start now that one has ended."""
        return []


class Plain(Work):
    """Jobs that do not depend on one another."""

    def __init__(self, jobs: list[Job], done: frozenset[str]) -> None:
        self.jobs = jobs
        self.todo = [job for job in jobs if job.spec.run_id not in done]
        self.to_run = self.at_most = len(self.todo)

    def begin(self) -> list[Job]:
        return self.todo

    def title(self) -> str:
        already = len(self.jobs) - len(self.todo)
        return f"{len(self.jobs)} jobs: {already} already done, {len(self.todo)} to run"


class TunedWork(Work):
    """Cells that are tuned on val first; their final jobs run with what won."""

    def __init__(
        self,
        jobs: list[Job],
        store: ResultsStore,
        done: frozenset[str],
        tuner: TunerConfig,
        compose: Callable[[tuple[str, ...]], Job],
    ) -> None:
        self.store = store
        self.done = done
        self.compose = compose
        # they need no tuning to become rows with their reason
        self.refused = [
            replace(job, overrides=(*job.overrides, "tuner.name=none"))
            for job in jobs
            if refusal(job.spec)
        ]
        tuned = [(job.overrides, job.spec) for job in jobs if not refusal(job.spec)]
        journals = (store.root / "tuning").resolve()
        journals.mkdir(parents=True, exist_ok=True)
        self.cells = make_cells(tuned, tuner, str(journals))
        self.at_a_time = 1 if tuner.name == "optuna" else None
        self.trials = sum(cell.search.trials for cell in self.cells)
        self.finals = len(tuned)
        self.found = 0  # of trials and final runs that are recorded
        self.left: set[int] = set()  # ids of cells with a trial that is held or was interrupted
        self.unfinished: list[str] = []  # cells in which no trial ended well

    def begin(self) -> list[Job]:
        ready = [job for job in self.refused if job.spec.run_id not in self.done]
        for cell in tqdm(self.cells, "trials", unit=" cells", leave=False, delay=2, disable=None):
            ready += self._go_on(cell)
        total = len(self.refused) + self.finals + self.trials
        already = len(self.refused) - sum(j in self.refused for j in ready)
        self.to_run = total - self.found - already
        self.at_most = max(len(ready), len(self.cells))
        return ready

    def title(self) -> str:
        budgets = "/".join(map(str, sorted({cell.search.trials for cell in self.cells})))
        epochs = "/".join(map(str, sorted({cell.epochs for cell in self.cells})))
        rules = {cell.pruner.rule for cell in self.cells} - {"none"}
        pruned = "".join(f" (pruner {rule})" for rule in rules)
        return (
            f"{len(self.cells)} cells of {budgets or 0} trials x {epochs} epochs{pruned}, "
            f"{self.finals} final runs: {self.found} already done, {self.to_run} to run"
        )

    def after(self, ending: Ending) -> list[Job]:
        run_id = ending.job.spec.run_id
        ready: list[Job] = []
        for cell in self.cells:
            trial = cell.waiting.pop(run_id, None)
            if trial is None:
                continue
            if ending.open:  # what it reaches is not known, so none of them can be chosen
                self.to_run -= 0 if id(cell) in self.left else len(cell.finals)
                self.left.add(id(cell))
            else:
                cell.tell(trial, ending.record)
            if id(cell) not in self.left:
                ready += self._go_on(cell)
        return ready

    def _go_on(self, cell: TunedCell) -> list[Job]:
        """Trials that can start, or the final jobs of a search that is over."""
        ready: list[Job] = []

        def start(overrides: tuple[str, ...]) -> tuple[str, RunRecord | None]:
            job = self.compose(overrides)
            record = record_of(job, self.store) if job.spec.run_id in self.done else None
            if record is None:
                ready.append(job)
            else:
                self.found += 1
            return job.spec.run_id, record

        advance(cell, start, self.at_a_time)
        if cell.search.over:
            ready += self._finals(cell)
        return ready

    def _finals(self, cell: TunedCell) -> list[Job]:
        try:
            jobs = [self.compose(overrides) for overrides in cell.final_overrides()]
        except ConfigError as e:
            self.to_run -= len(cell.finals)
            print(printable(f"  {' '.join(cell.overrides)}: {e}"), file=sys.stderr, flush=True)
            return []
        todo = [job for job in jobs if job.spec.run_id not in self.done]
        self.found += len(jobs) - len(todo)
        return todo
