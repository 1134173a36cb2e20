"""The order in which methods run until the time is over: cheap ones first, on all splits."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.canonical import digest
from peftbench.results.atomic import write_atomic
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.experiment import RunOptions
from peftbench.spec import RunSpec
from peftbench.sweep.compare import jobs, ladder
from peftbench.sweep.compare.jobs import Division
from peftbench.sweep.compare.ladder import MARGIN, Length, Pace
from peftbench.sweep.compare.standing import Leaderboard, Result, of_methods, standing
from peftbench.tasks import PER_CLASS

HEAD_EPOCHS = 30
FIRST_GUESS = 10.0  # seconds of a run on kept features, before one was timed
TIMES = 4  # that pictures are divided again: five times five folds are usual
LEFT_OVER = 0.05  # of the time, for the last lines, the page and the export


@dataclass(frozen=True)
class Agenda:
    """What is compared, on what, and for how long."""

    place: jobs.OwnPictures
    bases: Mapping[str, RunSpec]  # by method, from cheap to dear
    metric: str
    seconds: float


@dataclass
class Contest:
    """Runs methods on splits while there is time, and knows where they stand.

    Every run is an ordinary record, so that the same comparison goes on from what is there. How
    long methods train is decided once, by what a step costs here, and kept beside the records:
    otherwise a machine that is busier the second time would start other runs.
    """

    agenda: Agenda
    store: ResultsStore
    options: RunOptions
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    results: list[Result] = field(default_factory=list)
    too_long: dict[str, str] = field(default_factory=dict)  # by method, how long it would take
    started: float = 0.0
    paces: dict[str, Pace] = field(default_factory=dict)
    # by method, of all rates on each division
    run_seconds: dict[str, list[float]] = field(default_factory=dict)
    lengths: dict[str, Length] = field(default_factory=dict)
    divisions: list[Division] = field(default_factory=list)  # those that were begun
    runs: int = 0  # that were not recorded before

    def run(self) -> Leaderboard | None:
        """Where the methods stand once the time is over, or all is done.

        Raises:
            KeyboardInterrupt: a run was interrupted.
        """
        self.started = self.clock()
        self.lengths = self._kept()
        self.divisions = [*self._drawn(0)]
        splits = range(len(self.divisions))
        heads = [m for m in self.agenda.bases if ladder.is_head(m)]
        others = [m for m in self.agenda.bases if not ladder.is_head(m)]
        for split in splits:
            if split > 0 and len(self._affordable(heads, split)) < len(heads):
                break  # a split that only some methods have compares nothing
            for method in heads:
                self._method(method, split)
        for i, method in enumerate(others):
            if self._has_length(method, len(others) - i):
                self._method(method, 0)
        for split in splits[1:]:
            for method in self._promising(others):
                if self._affordable([method], split):
                    self._method(method, split)
        for times in range(1, 1 + TIMES):
            if not self._again(times):
                break
        return self.standing()

    @property
    def further(self) -> int:
        """Divisions on which methods ran in the time that was left after all splits."""
        return len(self.divisions) - len(self.agenda.place.splits)

    def _again(self, times: int) -> bool:
        """Divide the pictures once more; false where the time is over, or nothing is left to tell.

        On each division all heads run, and of the other methods that are not told apart as many
        cheap ones as the time is enough for.
        """
        now, splits = self.standing(), range(len(self.agenda.place.splits))
        if now is None:
            return False
        ran = of_methods(self.results)
        level = {m for m in now.level if {*splits} <= {one.split for one in ran[m]}}
        running = [m for m in self.agenda.bases if m in level or (m in ran and ladder.is_head(m))]
        if not self._tells(running, level):
            return False
        # nothing has to be drawn where nothing could run on it, but all that was run before counts
        if self.runs and not self._tells(self._affordable(running), level):
            return False
        for division in self._drawn(times):
            split = len(self.divisions)
            self.divisions.append(division)
            running = self._affordable(running, split)
            if not self._tells(running, level):
                del self.divisions[split]
                return False
            for method in running:
                self._method(method, split)
        return True

    def _tells(self, running: Sequence[str], level: Set[str]) -> bool:
        """Whether runs of these methods on further divisions can tell two that are level apart."""
        found = level & {*running}
        changing = found if self.agenda.place.in_folds else found - {*ladder.SOLVED}
        return len(found) > 1 and bool(changing)

    def _drawn(self, times: int) -> tuple[Division, ...]:
        """The divisions of the pictures, after they were divided so many times."""
        seed = next(iter(self.agenda.bases.values())).seed
        return jobs.divisions(self.agenda.place, times, seed)

    def _affordable(self, methods: Sequence[str], split: int | None = None) -> list[str]:
        """The first of `methods`, which rise in cost, that the time is enough for.

        On a division what is recorded needs no time.
        """
        left, found = self.left, list[str]()
        for method in methods:
            if split is None or not self._is_recorded(method, split):
                left -= self._seconds_of(method)
                if left < 0:
                    break
            found.append(method)
        return found

    def _is_recorded(self, method: str, split: int) -> bool:
        """Whether all trials of a method on a division were run before."""
        return all(
            experiment.finished_record(spec, self.store) is not None
            for spec in self._trials(method, split)
        )

    @property
    def left(self) -> float:
        """Seconds."""
        return self.agenda.seconds * (1 - LEFT_OVER) - (self.clock() - self.started)

    def standing(self) -> Leaderboard | None:
        """As of now."""
        return standing(self.results, self.agenda.metric, list(self.agenda.bases))

    def _promising(self, methods: Sequence[str]) -> list[str]:
        """Of the methods that ran on the first split, those that are not told from the first."""
        now = self.standing()
        if now is None:
            return []
        return [row.method for row in now.rows if row.method in methods and row.method in now.level]

    def _trials(self, method: str, split: int) -> list[RunSpec]:
        """The runs that are judged on val of a division: one for each rate."""
        base = self.agenda.bases[method]
        length = self.lengths.get(method, Length(HEAD_EPOCHS, len(ladder.rates_of(method))))
        rates = length.tried(method) or (None,)
        return [jobs.trial(base, self.divisions[split], length.epochs, rate) for rate in rates]

    def _method(self, method: str, split: int) -> None:
        """Choose a rate on val of this division, and test it."""
        place, known = self.agenda.place, len(self.agenda.place.splits)
        if split >= known and not place.in_folds and method in ladder.SOLVED:
            first = of_methods(self.results)[method][0]  # no seed changes it
            self.results.append(dataclasses.replace(first, split=split))
            return
        began, spent = self.clock(), 0.0
        trials, searched = self._trials(method, split), bool(ladder.rates_of(method))
        judged: list[tuple[float, RunRecord, RunSpec]] = []
        for i, spec in enumerate(trials):
            beside = tuple(trials[i + 1 :]) if ladder.is_head(method) else ()
            record = self._record(spec, beside)
            if record is None:
                return
            spent += _seconds(record)
            value = record.metrics.get(f"val/{self.agenda.metric}")
            if record.status is Status.OK and value is not None:
                judged.append((value, record, spec))
        if not judged:
            self.tell(f"{method}: left out, no trial ended well")
            return
        # of equally good rates the smaller: it changes less
        val, trial, chosen = max(judged, key=lambda one: (one[0], -one[2].recipe.lr))
        tuning: dict[str, Any] = {"tuner": "grid", "trials": len(trials)}
        tuning["epochs"] = chosen.recipe.epochs
        tuning["searched"] = ["recipe.lr"]
        tuning[f"val_{self.agenda.metric}"] = val
        record = self._record(jobs.final(chosen), (), tuning if searched else None)
        if record is None or record.status is not Status.OK:
            return
        result = self._result(method, split, record, trial)
        self.results.append(result)
        # as it was recorded, where it was run before
        spent = max(spent + _seconds(record), self.clock() - began)
        self.run_seconds.setdefault(method, []).append(spent)
        rate = f", rate {chosen.recipe.lr:g}" if searched else ""
        shown = f"{self.agenda.metric} {100 * result.metrics[self.agenda.metric]:.1f} on test"
        where = f"split {split + 1} of {known}" if split < known else f"further split {split + 1}"
        self.tell(f"{method}, {where}: {100 * val:.1f} on val, {shown}{rate}")

    def _record(
        self, spec: RunSpec, beside: tuple[RunSpec, ...], tuning: dict[str, Any] | None = None
    ) -> RunRecord | None:
        """The record of a run, new or known; `None`, and a reason told, where it is refused."""
        options = dataclasses.replace(self.options, beside=beside)
        self.runs += experiment.finished_record(spec, self.store) is None
        record = experiment.run(spec, self.store, options, tuning=tuning)
        if record.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        self._note_pace(spec, record)
        if record.status in (Status.UNSUPPORTED, Status.ERROR, Status.OUT_OF_MEMORY):
            self.tell(f"{spec.method.name}: left out, {record.error}")
            return None
        return record

    def _note_pace(self, spec: RunSpec, record: RunRecord) -> None:
        """What a picture cost: in steps of this method, or in passes through what is frozen."""
        cost, method = record.cost, spec.method.name
        if cost is None:
            return
        if not ladder.is_head(method):
            if cost.train_images_per_second:
                self.paces[method] = Pace(1 / cost.train_images_per_second, timed=True)
            return
        if cost.activations_computed and cost.seconds_train:
            self.paces[""] = Pace(cost.seconds_train / cost.activations_computed)
        elif cost.activations_found and cost.seconds_saved and "" not in self.paces:
            passes = max(1, len(record.history))
            self.paces[""] = Pace(cost.seconds_saved / cost.activations_found / passes)

    def _seconds_of(self, method: str) -> float:
        """Of a method on one division, by the slowest so far; of heads also by other heads.

        On the first division features are computed, which are kept for the others.
        """
        known = {name: max(seconds[1:] or seconds) for name, seconds in self.run_seconds.items()}
        if ladder.is_head(method):
            heads = [seconds for name, seconds in known.items() if ladder.is_head(name)]
            return MARGIN * known.get(method, max(heads, default=FIRST_GUESS))
        return MARGIN * known.get(method, float("inf"))

    def _has_length(self, method: str, sharing: int) -> bool:
        """Decide how long a method trains, where `sharing` methods share the time that is left."""
        if method in self.lengths:
            return True
        pace = self.paces.get(method) or self.paces.get("")
        if pace is None:
            return False
        images = self.agenda.place.trained
        length = ladder.length_that_fits(method, pace, images, self.left / sharing)
        if length is None:  # it may have what others would leave
            length = ladder.length_that_fits(method, pace, images, self.left)
        if length is None:
            needed = MARGIN * 2 * ladder.seconds_of(method, pace, ladder.EPOCHS[-1], images)
            self.too_long[method] = f"would take {max(1, round(needed / 60))} minutes or more"
            self.tell(f"{method}: left out, {self.too_long[method]}")
            return False
        self.lengths[method] = length
        self._keep()
        return True

    @property
    def _file(self) -> Path:
        """Where the lengths of trainings are kept."""
        first = next(iter(self.agenda.bases.values()))
        of = {"manifest": self.agenda.place.splits[0].manifest, "backbone": first.backbone.name}
        of["size"] = str(first.backbone.image_size)
        return self.store.root / "compare" / f"{digest(of)}.json"

    def _kept(self) -> dict[str, Length]:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            lengths = {str(name): Length(*map(int, values)) for name, values in kept.items()}
            return {name: one for name, one in lengths.items() if one.epochs in ladder.EPOCHS}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: [one.epochs, one.rates] for name, one in self.lengths.items()}
        text = json.dumps(kept, indent=1).encode()
        write_atomic(self._file, lambda file: file.write(text))

    def _result(self, method: str, split: int, record: RunRecord, trial: RunRecord) -> Result:
        predictions = self.store.load_predictions(method, record.run_id)
        assert predictions is not None, record.run_id  # a finished run has them
        parameters, cost = record.parameters, record.cost
        numbers: np.ndarray | None = predictions.numbers
        if numbers is None and not self.agenda.place.in_folds:  # every division tests the same
            numbers = np.arange(len(predictions.labels))
        return Result(
            method=method,
            split=split,
            run_id=record.run_id,
            val=trial.metrics[f"val/{self.agenda.metric}"] or 0.0,
            val_images=int(trial.metrics["val/num_images"] or 1),
            val_per_class=trial.metrics[f"val/{PER_CLASS}"] or 0.0,
            metrics={
                name.removeprefix("test/"): value
                for name, value in record.metrics.items()
                if name.startswith("test/") and value is not None
            },
            labels=predictions.labels,
            classes=predictions.classes,
            params=0 if parameters is None else parameters.method + parameters.unfrozen,
            seconds=(cost and cost.seconds_train) or 0.0,
            numbers=numbers,
        )


def _seconds(record: RunRecord) -> float:
    """That a run took as it was recorded."""
    return (record.cost and record.cost.seconds_total) or 0.0
