"""The order in which methods run until the time is over: cheap ones first, on all splits."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.canonical import digest
from peftbench.results.atomic import write_atomic
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.experiment import RunOptions
from peftbench.spec import RunSpec
from peftbench.sweep.compare import jobs, ladder
from peftbench.sweep.compare.ladder import MARGIN, Length, Pace
from peftbench.sweep.compare.standing import Leaderboard, Result, standing
from peftbench.tasks import PER_CLASS

HEAD_EPOCHS = 30
FIRST_GUESS = 10.0  # seconds of a run on kept features, before one was timed
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
    run_seconds: dict[str, float] = field(default_factory=dict)  # of the slowest, by method
    lengths: dict[str, Length] = field(default_factory=dict)

    def run(self) -> Leaderboard | None:
        """Where the methods stand once the time is over, or all is done.

        Raises:
            KeyboardInterrupt: a run was interrupted.
        """
        self.started = self.clock()
        self.lengths = self._kept()
        splits = range(len(self.agenda.place.splits))
        heads = [m for m in self.agenda.bases if ladder.is_head(m)]
        others = [m for m in self.agenda.bases if not ladder.is_head(m)]
        for split in splits:
            needed = sum(self._seconds_of_head(method) for method in heads)
            if split > 0 and needed > self.left:
                break  # a split that only some methods have compares nothing
            for method in heads:
                self._method(method, split)
        for i, method in enumerate(others):
            if self._has_length(method, len(others) - i):
                self._method(method, 0)
        for split in splits[1:]:
            for method in self._promising(others):
                if self._seconds_of(method) <= self.left:
                    self._method(method, split)
        return self.standing()

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

    def _method(self, method: str, split: int) -> None:
        """Choose a rate on val of this split, and test it."""
        base, place = self.agenda.bases[method], self.agenda.place
        began = self.clock()
        length = self.lengths.get(method, Length(HEAD_EPOCHS, len(ladder.rates_of(method))))
        epochs, rates = length.epochs, length.tried(method) or (None,)
        trials = [jobs.trial(base, place.splits[split], epochs, rate) for rate in rates]
        judged: list[tuple[float, RunRecord, RunSpec]] = []
        for i, spec in enumerate(trials):
            beside = tuple(trials[i + 1 :]) if ladder.is_head(method) else ()
            record = self._record(spec, beside)
            if record is None:
                return
            value = record.metrics.get(f"val/{self.agenda.metric}")
            if record.status is Status.OK and value is not None:
                judged.append((value, record, spec))
        if not judged:
            self.tell(f"{method}: left out, no trial ended well")
            return
        # of equally good rates the smaller: it changes less
        val, trial, chosen = max(judged, key=lambda one: (one[0], -one[2].recipe.lr))
        tuning: dict[str, Any] = {"tuner": "grid", "trials": len(trials), "epochs": epochs}
        tuning["searched"] = ["recipe.lr"]
        tuning[f"val_{self.agenda.metric}"] = val
        record = self._record(jobs.final(chosen), (), tuning if rates[0] is not None else None)
        if record is None or record.status is not Status.OK:
            return
        result = self._result(method, split, record, trial)
        self.results.append(result)
        self.run_seconds[method] = max(self.run_seconds.get(method, 0), self.clock() - began)
        rate = "" if rates[0] is None else f", rate {chosen.recipe.lr:g}"
        shown = f"{self.agenda.metric} {100 * result.metrics[self.agenda.metric]:.1f} on test"
        where = f"split {split + 1} of {len(place.splits)}"
        self.tell(f"{method}, {where}: {100 * val:.1f} on val, {shown}{rate}")

    def _record(
        self, spec: RunSpec, beside: tuple[RunSpec, ...], tuning: dict[str, Any] | None = None
    ) -> RunRecord | None:
        """The record of a run, new or known; `None`, and a reason told, where it is refused."""
        options = dataclasses.replace(self.options, beside=beside)
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

    def _seconds_of_head(self, method: str) -> float:
        known = self.run_seconds
        return MARGIN * known.get(method, max(known.values(), default=FIRST_GUESS))

    def _seconds_of(self, method: str) -> float:
        return MARGIN * self.run_seconds.get(method, float("inf"))

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
        )
