"""`logger=csv`: the epochs of each run in a file beside its record."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.loggers.base import LOGGERS, Logger
from peftbench.results.record import EpochRow, RunRecord
from peftbench.results.store import ResultsStore

COLUMNS = tuple(field.name for field in dataclasses.fields(EpochRow))


@LOGGERS.register("csv")
class CsvLogger(Logger):
    """Writes `runs/<method>/<run_id>/epochs.csv`, with every digit.

    While a run trains the file is `epochs.partial.csv`, which grows with every epoch.
    """

    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        self._folder = ResultsStore(self.root).artefacts((spec["method"]["name"], run_id))
        self._begun = False

    def epoch(self, row: EpochRow) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._partial, "a" if self._begun else "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._begun:
                writer.writerow(COLUMNS)
            writer.writerow([getattr(row, name) for name in COLUMNS])
        self._begun = True

    def finish(self, record: RunRecord) -> None:
        if not self._begun:
            return
        kept = ResultsStore(self.root).get(record.run_id, self._folder.parent.name)
        # a failed rerun leaves an earlier success in the store, and so its epochs too
        if kept is None or (kept.status, kept.finished) == (record.status, record.finished):
            self._partial.replace(self._folder / "epochs.csv")
        else:
            self._partial.unlink()

    @property
    def _partial(self) -> Path:
        return self._folder / "epochs.partial.csv"
