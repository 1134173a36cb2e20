"""Texts of `peftbench list`: what there is to choose from, and what has run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftbench.errors import ConfigError, DataError
from peftbench.results.record import Status
from peftbench.results.rows import NAMES, stored_rows
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec
from peftbench.untrusted import printable

SHOWN = ("run_id", "status", "method", "backbone", "dataset", "seed")  # of a run, by column


def text(what: str, results_dir: str, status: str | None, data_dir: str | None = None) -> str:
    """Aligned columns about methods, backbones, datasets, protocols, experiments, tables, runs."""
    if what == "runs":
        return _runs(results_dir, status)
    if status is not None:
        raise ConfigError(f"--status belongs to `peftbench list runs`, not to `list {what}`.")
    if what == "datasets":
        return _datasets(data_dir or os.environ.get("PEFTBENCH_DATA") or "data")
    return {
        "methods": _methods,
        "backbones": _backbones,
        "protocols": _protocols,
        "experiments": _experiments,
        "tables": _tables,
    }[what]()


def long_text(what: str, long: bool, style: str) -> str:
    """Each method with its formula, cost and source: style "text" or "markdown"."""
    if what != "methods" or not long:
        raise ConfigError(
            "--long and --format belong to `peftbench list methods --long [--format markdown]`, "
            f"not to `list {what}`."
        )
    from peftbench.cli import method_pages

    if style == "markdown":
        return method_pages.to_markdown(method_pages.pages())
    return method_pages.to_text(method_pages.pages(), shutil.get_terminal_size((100, 24)).columns)


def columns(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as text, each column as wide as its widest cell, the last one ragged."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if cells else []
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "".join(f"{line}\n" for line in lines)


def _methods() -> str:
    from peftbench.methods import METHODS, discover

    discover()
    rows: list[tuple[object, ...]] = [("METHOD", "TITLE", "PAPER", "HYPER-PARAMETERS")]
    for name in METHODS:
        method = METHODS[name]
        fields = (
            f"{f.name}={_plain(f.default)}" for f in dataclasses.fields(method) if not f.kw_only
        )
        rows.append((name, method.card.title, method.card.paper, " ".join(fields) or "none"))
    return columns(rows)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _backbones() -> str:
    from peftbench.backbones.shipped import SHIPPED
    from peftbench.config.choices import aliases_of, catalogue, choices

    known, aliases = catalogue("backbone"), aliases_of("backbone")
    rows: list[tuple[object, ...]] = [("BACKBONE", "WEIGHTS")]
    for name in sorted(choices("backbone")):
        entry = known.get(name)
        if entry is None:
            rows.append((name, f"= {aliases[name]}"))
        elif "factory" in entry:
            rows.append((name, f"built by {entry['factory']}"))
        elif "name" not in entry:
            rows.append((name, f"as {entry['defaults'][0]}"))
        elif entry["name"] in SHIPPED:
            rows.append((name, SHIPPED[entry["name"]].about))
        else:
            rows.append((name, entry["name"]))
    return (
        columns(rows) + "".join(_architectures()) + "any timm tag: backbone.name=ARCHITECTURE.TAG\n"
    )


def _architectures() -> Iterator[str]:
    """What timm lacks and is here without weights, a paragraph for each paper."""
    from peftbench.backbones.models.architectures import ARCHITECTURES, PAPERS

    yield "\nwithout weights, which backbone.checkpoint=FILE gives: backbone.name=ARCHITECTURE\n"
    for module, paper in PAPERS.items():
        names = [name for name, size in ARCHITECTURES.items() if size.module == module]
        lines = textwrap.wrap(f"{paper}: {', '.join(names)}", 98, subsequent_indent="  ")
        yield textwrap.indent("\n".join(lines), "  ") + "\n"
    yield "\n"


def _datasets(data_dir: str | None) -> str:
    from peftbench.config.build import dataset_specs

    rows: list[tuple[object, ...]] = [
        ("DATASET", "SUITE", "GROUP", "CLASSES", "TRAIN", "VAL", "TEST", "HERE", "WHERE TO GET IT")
    ]
    rows += [(name, *_dataset(spec)) for name, spec in dataset_specs(data_dir).items()]
    return columns(rows) + _where(data_dir)


def _dataset(spec: DatasetSpec) -> tuple[object, ...]:
    """What the columns behind its name say of a data set."""
    from peftbench import data
    from peftbench.data import public, shifts

    facts = spec.facts
    train: object = "1-16 a class" if spec.shots else facts.train
    cells: tuple[object, ...]
    if spec.reader in ("public", "shift"):
        here = (public if spec.reader == "public" else shifts).whereabouts(spec)
        counts = (facts.classes, train, facts.val, facts.test)
        cells = (spec.suite, spec.group, *counts, here, facts.source)
    elif spec.reader == "folder" and spec.root is None:
        asked = f"your own images: dataset={spec.name} dataset.root=PATH"
        cells = ("", "", "", "", "", "", "", asked)
    elif spec.reader == "hf":  # never read here: that could download it
        asked = f"any image set of the Hugging Face hub: dataset={spec.name} dataset.hub=ORG/NAME"
        cells = ("", "", "", "", "", "", "", spec.hub or asked)
    else:
        try:
            listing = data.READERS[spec.reader](spec)
        except DataError:
            return ("-", "-", "-", "-", "-", "-", "no", spec.root or "-")
        sizes = (len(part) for _, part in listing.splits())
        where = ("shipped", "-") if spec.root is None else ("yes", spec.root)
        cells = (listing.suite, listing.group, len(listing.class_names), *sizes, *where)
    return tuple("-" if cell in (None, "") else cell for cell in cells)


def _where(data_dir: str | None) -> str:
    return (
        f"looked in {data_dir or 'no folder'}: data_dir=DIR or PEFTBENCH_DATA names the folder for "
        "all public data sets, and dataset.root=DIR that of one\n"
    )


def _protocols() -> str:
    from peftbench.config.choices import catalogue
    from peftbench.protocols import rules_of

    rows: list[tuple[object, ...]] = [
        ("PROTOCOL", "RECIPE", "PIXELS", "EPOCH REPORTED", "SEEDS", "AVERAGE", "PARAMETERS")
    ]
    for name, entry in sorted(catalogue("protocol").items()):
        rules = rules_of(name, entry)
        pixels, declared = rules.preprocessing, rules.reporting
        rows.append(
            (
                name,
                rules.recipe,
                f"{pixels.normalisation}, {pixels.resize}, {pixels.interpolation}",
                rules.selection.rule,
                ",".join(map(str, declared.seeds)),
                declared.average,
                declared.parameters,
            )
        )
    return columns(rows)


def _experiments() -> str:
    from peftbench.config.choices import is_local
    from peftbench.sweep import experiments
    from peftbench.sweep.hours import Known, hours, rounded

    rows: list[tuple[object, ...]] = [("EXPERIMENT", "RUNS", "GPU HOURS", "QUESTION", "TABLE")]
    known = Known.now()
    for path, sweep in experiments.every().items():
        card, trials = sweep.card, sweep.trials
        counted = f"{len(sweep)} + {trials} trials" if trials else len(sweep)
        spent = card.gpu_hours
        if not spent and not is_local(path.parent):  # of others' backbones nothing is known
            spent = rounded(hours(sweep, known)[0])
        rows.append((card.name, counted, spent or "-", card.question or "-", card.table or "-"))
    return columns(rows)


def _tables() -> str:
    from peftbench.report.papers import catalogue

    rows: list[tuple[object, ...]] = [("TABLE", "EXPERIMENT", "PROTOCOL", "TITLE")]
    for name in catalogue.names():
        table = catalogue.find(name)
        rows.append((name, table.experiment, table.protocol, table.title))
    return columns(rows)


def _runs(results_dir: str, status: str | None) -> str:
    store = ResultsStore(results_dir)
    wanted = _wanted(status)
    rows: list[tuple[object, ...]] = [
        ("RUN", "STATUS", "METHOD", "BACKBONE", "DATASET", "SEED", "")
    ]
    runs, broken = stored_rows(store)
    for run in (dict(zip(NAMES, values, strict=True)) for values in runs):
        if run["status"] not in wanted:
            continue
        if run["fold"] is not None:
            run["dataset"] = f"{run['dataset']}, fold {run['fold']} of {run['folds']}"
        rows.append((*(run[name] for name in SHOWN), _outcome(store, run)))
    for error in broken:
        rows.append(("?", "BROKEN", "", "", "", "", error))
    if len(rows) == 1:
        return f"no runs of that kind in {results_dir}\n"
    return columns(rows)


def _wanted(status: str | None) -> set[Status]:
    if status is None:
        return set(Status)
    if status.lower() == "failed":
        return {s for s in Status if s.failed}
    try:
        return {Status(status.upper())}
    except ValueError as e:
        names = ", ".join(["failed", *(str(s) for s in Status)])
        raise ConfigError(f"Unknown status {status!r}. Use one of: {names}.") from e


def _outcome(store: ResultsStore, run: Mapping[str, Any]) -> str:
    """The score of a run, or why it has none and where its log is."""
    if run["error"]:
        where = store.artefacts((run["method"], run["run_id"])) / "log.txt"
        there = where.is_file() and str(where) not in run["error"]
        return f"{run['error']} ({where})" if there else run["error"]
    if run["score"] is None:
        return ""
    return f"{100 * run['score']:.1f} % {run['split']} {run['judged_by']}"
