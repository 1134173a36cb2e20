"""`peftbench push`: finished runs and their report to Weights & Biases, each once."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.canonical import digest
from peftbench.errors import ConfigError, PeftbenchError, StoreError
from peftbench.loggers import ledger, require
from peftbench.loggers.base import LoggerError, LoggerSettings, history_row
from peftbench.loggers.wandb import (
    Child,
    finish_message,
    has_key,
    place,
    sent,
    server_url,
    start_message,
)
from peftbench.results.record import RunRecord, current
from peftbench.results.store import ResultsStore

FIGURES = ("{score}_vs_parameters",)  # the page that goes along draws the others
MAX_FAILURES = 3  # in a row; then the server is taken to be away


@dataclass(frozen=True)
class Pushed:
    """How many runs went where."""

    sent: int = 0
    skipped: int = 0  # there already
    failed: int = 0
    left: int = 0  # not tried: the server seems to be away
    reports: int = 0
    broken: tuple[StoreError, ...] = ()  # files that are not readable records

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for has arrived, now or earlier."""
        return not (self.failed or self.left or self.broken)


def push(
    root: Path | str,
    where: Sequence[str] = (),
    *,
    settings: LoggerSettings,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Pushed:
    """Upload the records below `root` that meet `where`, and the report of each sweep of theirs.

    A record that has arrived is skipped unless `force`; one sent again updates its run, since both
    have one id. `settings.timeout` bounds each run. A record belongs to the sweep that logged it,
    else to `settings.group`, else to the name of the folder.

    Raises:
        ConfigError: no wandb, no key in mode online, or a condition that no column has.
    """
    root = Path(root)
    _check(settings)
    scan = ResultsStore(root).scan()
    for error in scan.broken:
        say(f"Unreadable: {error}")
    records = _chosen(scan.records, where)
    todo = [record for record in records if force or not arrived(root, record, settings)]
    done = Pushed(skipped=len(records) - len(todo), broken=scan.broken)
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_group(root, record, settings), []).append(record)
    uploader = _Uploader(root, settings)
    try:
        in_a_row = 0
        for number, record in enumerate(todo, start=1):
            reason = uploader.send(record)
            in_a_row = in_a_row + 1 if reason else 0
            say(f"[{number}/{len(todo)}] {_title(record)}: {reason or 'pushed'}")
            key = "failed" if reason else "sent"
            done = dataclasses.replace(done, **{key: getattr(done, key) + 1})
            if in_a_row == MAX_FAILURES and number < len(todo):
                say(f"{MAX_FAILURES} failures in a row: stopped. The same command continues.")
                return dataclasses.replace(done, left=len(todo) - number)
        if done.failed:
            return done
        for group, members in groups.items():
            outcome = uploader.report(group, members, force)
            if outcome:
                say(f"report of {group}: {outcome}")
            if outcome == "pushed":
                done = dataclasses.replace(done, reports=done.reports + 1)
            elif outcome:
                done = dataclasses.replace(done, failed=done.failed + 1)
    finally:
        uploader.close()
    return done


def _check(settings: LoggerSettings) -> None:
    require("wandb", "peftbench push")
    if settings.mode == "online" and not has_key():
        raise ConfigError(
            f"peftbench push found no key for {server_url()}. Run `wandb login`, set "
            "WANDB_API_KEY, or use --mode offline and `wandb sync` later."
        )


def _chosen(records: Sequence[RunRecord], where: Sequence[str]) -> list[RunRecord]:
    """Records of the rows that meet every condition, oldest first."""
    from peftbench.results.frame import frame, select

    kept = set(select(frame(records), where)["run_id"]) if records else set()
    return sorted((r for r in current(records) if r.run_id in kept), key=lambda r: r.finished)


def _group(root: Path, record: RunRecord, settings: LoggerSettings) -> str:
    """The sweep of a record."""
    entry = ledger.read(root, record.run_id)
    logged = entry.group if entry is not None else None
    return settings.group or logged or root.resolve().name


def arrived(root: Path, record: RunRecord, settings: LoggerSettings) -> bool:
    """Whether this very record was sent to where `settings` say."""
    entry = ledger.read(root, record.run_id)
    if entry is None or settings.group not in (None, entry.group):
        return False
    return (entry.place, entry.version) == (place(settings, settings.mode), record.finished)


def _title(record: RunRecord) -> str:
    spec = record.spec
    backbone = spec["backbone"].get("title") or spec["backbone"]["name"]
    names = f"{spec['method']['name']} x {backbone} x {spec['dataset']['name']}"
    return f"{names}, seed {spec['seed']} ({record.run_id}, {record.status})"


class _Uploader:
    """Sends records through one child process, which is started anew after it had to be ended."""

    def __init__(self, root: Path, settings: LoggerSettings) -> None:
        self.root = root
        self.settings = settings
        self.child: Child | None = None

    def send(self, record: RunRecord) -> str:
        """Upload one run; why it did not arrive, or an empty text."""
        group = _group(self.root, record, self.settings)
        settings = dataclasses.replace(self.settings, group=group)
        start = start_message(record.run_id, record.spec, settings, settings.mode, patience=False)

        def talk(child: Child) -> None:
            child.tell("start", **start)
            for row in record.history:
                child.tell("log", row=history_row(row), step=row.epoch)
            child.ask("finish", **finish_message(record, settings))

        return self._try(talk, record.run_id, sent(record, settings, settings.mode))

    def report(self, group: str, records: Sequence[RunRecord], force: bool) -> str:
        """Upload table and figures of one sweep: "pushed", empty when unchanged, or a reason."""
        name = f"report-{digest(group)}"
        version = digest(sorted((r.run_id, r.finished) for r in records))
        entry = ledger.LedgerEntry(group, place(self.settings, self.settings.mode), version)
        if not force and ledger.read(self.root, name) == entry:
            return ""
        init = {
            "id": name,
            "resume": "allow",
            "name": f"report of {group}",
            "project": self.settings.project,
            "entity": self.settings.entity,
            "group": group,
            "job_type": "report",
        }
        with tempfile.TemporaryDirectory() as scratch:
            files = _report_files(Path(scratch), records)

            def talk(child: Child) -> None:
                child.ask(
                    "report",
                    name=name,
                    files=files,
                    init=init,
                    mode=self.settings.mode,
                    timeout=self.settings.timeout,
                    fall_back=False,
                )

            return self._try(talk, name, entry) or "pushed"

    def close(self) -> None:
        """End the child process, which has nothing left to do."""
        if self.child is not None:
            with self.child.deadline(self.settings.timeout):
                self.child.end()
            self.child = None

    def _try(self, talk: Callable[[Child], Any], name: str, entry: ledger.LedgerEntry) -> str:
        try:
            self.child = self.child or Child(self.root)
            with self.child.deadline(self.settings.timeout):
                talk(self.child)
            ledger.write(self.root, name, entry)
        except LoggerError as e:
            if self.child is not None and self.child.gone:
                self.child = None
            return str(e)
        except (PeftbenchError, OSError, KeyError, TypeError) as e:
            return f"{type(e).__name__}: {e}"
        return ""


def _report_files(folder: Path, records: Sequence[RunRecord]) -> dict[str, str]:
    """Table, figure and page of these records alone: path inside the artifact, and on disk."""
    from peftbench import report

    store = ResultsStore(folder / "store")
    for record in records:
        store.add(record)
    out = folder / "report"
    built = report.build(store.root, out=out, style="markdown", kinds=FIGURES)
    (out / "table.md").write_text(built.text + "\n", encoding="utf-8")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): str(path) for path in files}
