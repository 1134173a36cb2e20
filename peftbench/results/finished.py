"""The one finished run that a beginning of an id means."""

from __future__ import annotations

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.results.record import RunRecord, Status, current
from peftbench.results.store import ResultsStore
from peftbench.spec import Phase


def find(store: ResultsStore, run_id: str) -> RunRecord:
    """The finished run whose id begins with `run_id`; `ConfigError` unless there is just one."""
    records = {record.run_id: record for record in current(store.scan().records)}
    matching = [record for key, record in records.items() if run_id and key.startswith(run_id)]
    if not matching:
        error = unknown_name("run", run_id, records)
        raise type(error)(f"{error} `peftbench list runs --results-dir {store.root}` shows more.")
    if len(matching) > 1:
        several = ", ".join(f"{r.run_id} ({r.spec['method']['name']})" for r in matching[:8])
        raise ConfigError(f"run {run_id!r} is the beginning of {len(matching)} ids: {several}.")
    (record,) = matching
    if record.status is not Status.OK:
        raise ConfigError(
            f"run {record.run_id} ended as {record.status} ({record.error}), so there is nothing "
            "to export or to predict with. Run it again."
        )
    if record.spec["phase"] == Phase.TUNE:
        raise ConfigError(
            f"run {record.run_id} is a trial of a search, which keeps no weights. Use a run of "
            "phase=final."
        )
    return record
