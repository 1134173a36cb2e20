"""`logger=tensorboard`: event files, with hyper-parameters beside the metrics they led to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftbench.loggers.base import LOGGERS, Logger, flat, history_row
from peftbench.results.record import EpochRow, RunRecord
from peftbench.results.store import ResultsStore


@LOGGERS.register("tensorboard")
class TensorBoardLogger(Logger):
    """Writes `tensorboard/<method>/<run_id>` in the results folder."""

    packages = ("tensorboard",)

    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # the store knows which names are fit to be folders
        of = ResultsStore(self.root).artefacts((spec["method"]["name"], run_id))
        folder = self.root / "tensorboard" / of.parent.name / of.name
        for old in folder.glob("events.out.tfevents.*"):  # of an earlier try: curves would overlap
            old.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def epoch(self, row: EpochRow) -> None:
        for name, value in history_row(row).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row.epoch)

    def finish(self, record: RunRecord) -> None:
        results = {name: v for name, v in record.metrics.items() if v is not None}
        if record.parameters is not None:
            results["parameters/tuned"] = record.parameters.method + record.parameters.unfrozen
        # run_name: into the same folder, so that curves and hyper-parameters are one run
        self._writer.add_hparams(
            _hyperparameters(record), results, run_name=".", global_step=len(record.history)
        )
        self._writer.add_text("status", f"{record.status} {record.error or ''}".rstrip())
        self._writer.close()


def _hyperparameters(record: RunRecord) -> dict[str, bool | int | float | str]:
    """The declared run as values that a table of hyper-parameters can hold."""
    plain = {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(record.spec).items()
    }
    return {**plain, "status": str(record.status)}
