"""Which runs a table is made of, and which of them are variants of one method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd

from peftbench.report.scores import SCORE
from peftbench.report.tables.given import given_settings, searched_settings
from peftbench.report.words import counted, some_of, text_of
from peftbench.results.arithmetic import arithmetic
from peftbench.results.record import Status
from peftbench.results.settings import settings_of, settings_text
from peftbench.spec import Recipe

ALWAYS = ("recipe", "limit", "selection", "metric")  # settings in which rows always differ
# settings of a recipe that records leave out where they have these values
LEFT_OUT = settings_of(
    settings_text({f.name: f.default for f in fields(Recipe) if f.metadata.get("later")})
)
# columns of which settings are made
DECLARED = (
    *("hyperparameters", "recipe", "limit", "recipe_settings", "method_version", "preprocessing"),
    *("data_settings", "image_size", "drop_path", "precision", "selection", "selection_metric"),
    "searched",
)
# by `id` of a run: the text that tells its row, and the settings named in it
Variants = dict[int, tuple[str, frozenset[str]]]
Draw = tuple[int | None, int | None]  # seed of a drawn split, and which fold is test


@dataclass(frozen=True)
class Run:
    """What a table needs to know of one run."""

    row: int  # place in the table of runs
    heading: str
    suite: str  # or one's own data set, which stands for itself
    group: str
    dataset: str
    method: str
    settings: Mapping[str, str]  # everything declared but method, backbone, data set and seed
    seed: int | None
    status: str
    error: str
    score: float | None
    without_head: int | None  # parameters that the method adds or unfreezes
    with_head: int | None
    weights: str
    suite_version: str
    manifest: str
    arithmetic: str  # as "float32 on a CPU"
    input_size: int | None  # side of the square input in pixels
    budget: str  # of the search that chose its hyper-parameters; empty where there was none
    content: str = ""  # of one's own data set: what it is, whatever the splits
    own: bool = False  # whether it is on such a set, outside of any suite
    draw: Draw = (None, None)
    val: float | None = None  # the score on val of the same settings, where it is known
    searched: Mapping[str, str] = field(default_factory=dict)  # group of what a search chose
    given: Mapping[str, str] = field(default_factory=dict)  # settings that tell its row

    @property
    def unit(self) -> tuple[Draw, int | None]:
        """What runs of one cell differ by: the split that was drawn, and the seed."""
        return self.draw, self.seed

    def told(self, setting: str) -> str:
        """Its value for a reader, also where the record has none."""
        return _told(self.settings, setting)


def _told(settings: Mapping[str, str], name: str) -> str:
    return settings.get(name) or LEFT_OUT.get(name, "unset")


def eligible_runs(
    table: pd.DataFrame, *, metric: str, limited: bool, best_on_test: bool
) -> tuple[list[Run], list[str]]:
    """Runs that belong into a table, of any status, and a line for each kind left out of it."""
    rows = [{"row": i, **row} for i, row in enumerate(_rows(table))]
    out: list[str] = []

    def drop(what: str, reason: Callable[[Mapping[str, Any]], bool]) -> None:
        nonlocal rows
        gone = [row for row in rows if reason(row)]
        rows = [row for row in rows if not reason(row)]
        if gone:
            out.append(what.format(counted(len(gone), "run")))

    drop("{} in the tuning phase, which reports val", lambda row: row["phase"] != "final")
    if not limited:
        drop("{} limited to a part of the images", lambda row: row["limit"] is not None)
    if not best_on_test:
        drop("{} selected on test", lambda row: "test" in text_of(row["selection"]))
    drop(
        f"{{}} finished without test/{metric}",
        lambda row: row["status"] == Status.OK and row[metric] is None,
    )
    runs = _runs(rows, metric)
    good = (Status.OK, Status.UNSUPPORTED, Status.INTERRUPTED)
    failed = [run for run in runs if run.status not in good]
    interrupted = [run for run in runs if run.status == Status.INTERRUPTED]
    unsupported = [run for run in runs if run.status == Status.UNSUPPORTED]
    out += _listed("{} failed", failed, by_dataset=True)
    out += _listed("{} interrupted", interrupted, by_dataset=True)
    out += _listed("{} of an unsupported pair", unsupported, by_dataset=False)
    return runs, out


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame; a missing value is None."""
    values = (table[name].astype(object).where(table[name].notna(), None) for name in table)
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _listed(what: str, runs: Sequence[Run], *, by_dataset: bool, most: int = 5) -> list[str]:
    """One text of several lines: the number of runs, then each kind of failure with its seeds."""
    if not runs:
        return []
    seeds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        pair = f"{run.method} x {run.heading}" + (f" x {run.dataset}" if by_dataset else "")
        reason = " ".join(run.error.split()) or "no reason given"
        reason = reason if len(reason) <= 160 else f"{reason[:159]}…"
        seeds[pair, f"{run.status}: {reason}" if by_dataset else reason].append(str(run.seed))
    lines = [
        f"{pair}, {'seed' if len(numbers) == 1 else 'seeds'} {some_of(numbers)}: {reason}"
        if by_dataset
        else f"{pair}: {reason}"
        for (pair, reason), numbers in seeds.items()
    ]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    body = [f"  - {line}" for line in lines[:most] + more]
    return ["\n".join([f"{what.format(counted(len(runs), 'run'))}:", *body])]


def _runs(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Run]:
    tags: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        tags[text_of(row["backbone"])].add(text_of(row["backbone_tag"]))
    runs = []
    known: dict[tuple[Any, ...], tuple[dict[str, str], dict[str, str]]] = {}  # many are the same
    for row in rows:
        backbone, tag = text_of(row["backbone"]), text_of(row["backbone_tag"])
        without_head, head = row["params_tuned"], row["params_head"]
        own = row["content"] is not None and not text_of(row["suite"])
        declared = tuple(row.get(name) for name in DECLARED)
        if declared not in known:
            spelled = _settings(row)
            known[declared] = spelled, searched_settings(text_of(row.get("searched")), spelled)
        settings, searched = known[declared]
        runs.append(
            Run(
                row=row["row"],
                heading=backbone if len(tags[backbone]) == 1 else f"{backbone} [{tag}]",
                suite=text_of(row["dataset"] if own else row["suite"]),
                group=text_of(row["group"]),
                dataset=text_of(row["dataset"]),
                method=text_of(row["method"]),
                settings=settings,
                seed=None if row["seed"] is None else int(row["seed"]),
                status=text_of(row["status"]),
                error=text_of(row["error"]),
                score=None if row[metric] is None else float(row[metric]),
                without_head=None if without_head is None else int(without_head),
                with_head=None
                if without_head is None or head is None
                else int(without_head + head),
                weights=text_of(row["backbone_sha256"]),
                suite_version=text_of(row["suite_version"]),
                manifest=text_of(row["manifest"]),
                arithmetic=arithmetic(text_of(row["dtype"]), text_of(row["device"])),
                input_size=None if row.get("input_size") is None else int(row["input_size"]),
                budget=_budget(row),
                content=text_of(row["content"]),
                own=own,
                draw=(row["split_seed"], row["fold"]),
                val=_number(row.get(f"val_{metric}")) if row["content"] else None,
                searched=searched,
                given=settings,
            )
        )
    return _with_given(runs)


def _with_given(runs: Sequence[Run]) -> list[Run]:
    """The runs with the settings that tell their rows."""
    by_method: dict[str, list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        by_method[run.method].append(place)
    result = list(runs)
    for places in by_method.values():
        members = [runs[place] for place in places]
        if any(run.searched for run in members):
            for place, given in zip(places, given_settings(members), strict=True):
                result[place] = replace(runs[place], given=given)
    return result


def inputs_of(runs: Sequence[Run]) -> str:
    """Sides of the square inputs of some runs, as "64, 224 px"; empty where none is known."""
    sizes = sorted({run.input_size for run in runs if run.input_size is not None})
    return f"{', '.join(map(str, sizes))} px" if sizes else ""


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _budget(row: Mapping[str, Any]) -> str:
    """As "grid: 12 trials x 50 epochs"; a method that was searched longer has an advantage."""
    if row["tuner"] is None:
        return ""
    trials, epochs = (
        "unknown" if row[name] is None else f"{row[name]}" for name in ("trials", "trial_epochs")
    )
    return f"{row['tuner']}: {trials} trials x {epochs} epochs"


def _settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Every declared setting by name; one of the recipe gives way to one of the method."""
    settings = settings_of(text_of(row["hyperparameters"]))
    others = {
        "recipe": text_of(row["recipe"]),
        "limit": text_of(row["limit"]) or "null",
        **settings_of(text_of(row["recipe_settings"])),
        "version": text_of(row["method_version"]),
        **settings_of(text_of(row["preprocessing"])),
        **settings_of(text_of(row["data_settings"])),
        **{name: text_of(row[name]) for name in ("image_size", "drop_path", "precision")},
        "selection": text_of(row["selection"]),
        "metric": text_of(row["selection_metric"]) or SCORE,
    }
    for name, value in others.items():
        settings[f"recipe.{name}" if name in settings else name] = value
    return settings


def variants_of(runs: Sequence[Run]) -> Variants:
    """For each run, by `id`: the text that tells its row, and the settings named in it.

    Recipes, limits, rules of selection and metrics always make rows. Of the other settings, as few
    as needed do so that a row has one setting on each data set and one number of tuned parameters:
    a learning rate chosen for each data set leaves a method in one row, and so does one that a
    search chose for each split.
    """
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_method[run.method].append(run)
    variants: Variants = {}
    for members in by_method.values():
        different = _different(members)
        names = list(dict.fromkeys(name for given in different for name in given))
        varying = [n for n in names if len({given.get(n) for given in different}) > 1]
        chosen = [name for name in varying if name in ALWAYS]
        while any(conflicts := _conflicts(members, chosen)):
            ranked = [
                (_conflicts(members, [*chosen, name]), _groups(members, [*chosen, name]), i, name)
                for i, name in enumerate(varying)
                if name not in chosen
            ]
            if not ranked or min(ranked)[0] >= conflicts:
                break
            chosen.append(min(ranked)[-1])
        for run in members:
            text = ", ".join(f"{name}={_told(run.given, name)}" for name in chosen)
            variants[id(run)] = (text, frozenset(chosen))
    return variants


def _different(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """The settings that tell rows, once where runs share them."""
    return list({id(run.given): run.given for run in runs}.values())


def _conflicts(runs: Sequence[Run], names: Sequence[str]) -> tuple[int, int]:
    """Settings that would share a cell and sizes that would share a row, if `names` told rows."""
    settings: dict[Any, set[Any]] = defaultdict(set)
    sizes: dict[Any, set[int]] = defaultdict(set)
    whole = {id(given): frozenset(given.items()) for given in _different(runs)}
    for run in runs:
        row = (run.heading, *(run.given.get(name) for name in names))
        settings[row, run.suite, run.dataset].add(whole[id(run.given)])
        if run.without_head is not None:
            sizes[row].add(run.without_head)
    return (
        sum(len(values) - 1 for values in settings.values()),
        sum(len(values) - 1 for values in sizes.values()),
    )


def _groups(runs: Sequence[Run], names: Sequence[str]) -> int:
    return len({tuple(run.given.get(name) for name in names) for run in runs})
