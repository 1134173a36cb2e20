"""What the page tells besides numbers: methods with their cards, failures, where runs come from."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peftbench.report import atlas
from peftbench.report.costs import measured
from peftbench.report.tables.cells import OK, overall
from peftbench.report.view import View
from peftbench.report.words import counted
from peftbench.results.record import Status, parsed
from peftbench.results.store import ResultsStore
from peftbench.results.validation import check_plain
from peftbench.untrusted import MOST_RECORD, printable_lines, read_bounded

INTERRUPTED = str(Status.INTERRUPTED)


@dataclass(frozen=True)
class Link:
    """A text, and where it leads if anywhere."""

    text: str
    target: str = ""


@dataclass(frozen=True)
class Standing:
    """How one row of the tables did on one backbone and suite; texts are ready to print."""

    where: str
    label: str
    accuracy: str
    parameters: str
    memory: str
    train_time: str
    latency: str


@dataclass(frozen=True)
class Fact:
    """A heading and what belongs to it: of the provenance, or of a method."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class MethodPart:
    """The part of the page about one method; the card is empty where no run finished."""

    name: str
    title: str
    summary: str
    facts: tuple[str, ...]
    source: tuple[Link, ...]
    deviations: tuple[str, ...]
    standings: tuple[Standing, ...]
    refusals: tuple[tuple[str, str], ...]  # backbone, and why the method is not defined there
    atlas: tuple[Fact, ...] = ()  # what is known of it before any run


@dataclass(frozen=True)
class Failure:
    """Runs that ended the same way for the same reason."""

    status: str
    cause: str
    detail: str  # the whole text where `cause` is only its first line
    runs: tuple[str, ...]


def method_parts(view: View, store: ResultsStore) -> list[MethodPart]:
    """One part for each method that has a run, by name.

    Cards are those that finished runs keep beside their record, so that a method of another
    package has its card here as well. The atlas is of this version of peftbench.
    """
    table, standings, known = view.table, _standings(view), atlas.read()
    refused: dict[str, dict[str, str]] = defaultdict(dict)
    for run in table[table["status"] == str(Status.UNSUPPORTED)].to_dict("records"):
        reason = " ".join(str(run["error"] or "").split())
        refused[str(run["method"])].setdefault(str(run["backbone"]), reason)
    done = table[table["status"] == str(Status.OK)].sort_values("finished", kind="stable")
    latest = {
        str(method): [str(run_id) for run_id in rows["run_id"]][::-1]
        for method, rows in done.groupby("method")
    }
    parts = []
    for name in sorted(set(map(str, table["method"].dropna()))):
        card = _card(store, name, latest.get(name, []))
        parts.append(
            MethodPart(
                name,
                _text(card.get("title")) or name,
                _text(card.get("summary")),
                _promises(card),
                _source(card),
                tuple(map(_text, _listed(card.get("deviations")))),
                tuple(standings.get(name, ())),
                tuple(sorted(refused[name].items())),
                tuple(Fact(*fact) for fact in atlas.facts_of(known, name)),
            )
        )
    return parts


def failures(table: pd.DataFrame) -> list[Failure]:
    """Runs that failed, the most frequent cause first; refused pairs are not among them."""
    bad = table[table["status"].isin([str(status) for status in Status if status.failed])]
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in bad.to_dict("records"):
        cause = "no reason given" if pd.isna(run["error"]) else str(run["error"]).strip()
        groups[str(run["status"]), cause].append(_name(run))
    result = []
    for (status, cause), runs in groups.items():
        first, _, rest = cause.partition("\n")
        result.append(Failure(status, first, cause if rest else "", tuple(runs)))
    return sorted(result, key=lambda f: (-len(f.runs), f.status, f.cause))


def interrupted(table: pd.DataFrame) -> list[str]:
    """Names of the runs that were stopped, with which the same command goes on."""
    return [_name(run) for run in table[table["status"] == INTERRUPTED].to_dict("records")]


def _name(run: Mapping[Any, Any]) -> str:
    seed = "" if pd.isna(run["seed"]) else f", seed {run['seed']}"
    return f"{run['method']} on {run['backbone']}, {run['dataset']}{seed}"


def provenance(table: pd.DataFrame) -> list[Fact]:
    """What the runs were made with, from the columns of the table."""
    facts = [
        Fact(heading, _counted(table[column]))
        for heading, column in (
            ("protocol", "protocol"),
            ("recipe", "recipe"),
            ("phase", "phase"),
            ("selection", "selection"),
            ("preprocessing", "preprocessing"),
            ("device", "device"),
            ("arithmetic", "dtype"),
            ("host", "host"),
            ("peftbench", "peftbench"),
            ("torch", "torch"),
            ("timm", "timm"),
        )
    ]
    commits = [
        f"{str(commit)[:10]}{' with changes' if dirty is True else ''}"
        for commit, dirty in zip(table["git_commit"], table["git_dirty"], strict=True)
        if not pd.isna(commit)
    ]
    facts.append(Fact("commit", _counted(commits)))
    for heading, name, digest in (
        ("backbone weights", "backbone_tag", "backbone_sha256"),
        ("data", "dataset", "manifest"),
    ):
        pairs = table.dropna(subset=[name, digest])
        texts = [f"{n}: {str(d)[:16]}" for n, d in zip(pairs[name], pairs[digest], strict=True)]
        facts.append(Fact(heading, _counted(sorted(texts))))
    times = sorted(str(t) for t in table["finished"].dropna())
    if times:
        facts.append(Fact("finished", (f"{times[0][:16]} to {times[-1][:16]} UTC",)))
    return [fact for fact in facts if fact.values]


def _standings(view: View) -> dict[str, list[Standing]]:
    """By method, in the order of the tables."""
    prices: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for p in measured(view.labelled).dropna(subset="value").to_dict("records"):
        key = (p["backbone"], _text(p["suite"]), p["label"])
        prices[key][str(p["cost"])] = float(p["value"])
    standings: dict[str, list[Standing]] = defaultdict(list)
    for row in overall(view.cells).to_dict("records"):
        suite = _text(row["suite"])
        price = prices[row["backbone"], suite, row["label"]]
        if row["state"] != OK and not price:
            continue
        accuracy = "–"
        if row["state"] == OK:
            spread = "" if pd.isna(row["sd"]) else f" ± {100 * row['sd']:.1f}"
            accuracy = f"{100 * row['mean']:.1f}{spread} ({row['n']})"
        standings[str(row["method"])].append(
            Standing(
                f"{row['backbone']} · {suite}" if suite else str(row["backbone"]),
                str(row["label"]),
                accuracy,
                f"{price['parameters']:,.0f}" if "parameters" in price else "–",
                _with_unit(price.get("memory"), "MiB"),
                _with_unit(price.get("train_time"), "s"),
                _with_unit(price.get("latency"), "ms"),
            )
        )
    return standings


def _card(store: ResultsStore, method: str, run_ids: Sequence[str]) -> Mapping[str, Any]:
    """The card in the artefacts of the first of these runs that has one, empty without any."""
    for run_id in run_ids:
        path = store.artefacts((method, run_id)) / "card.json"
        with contextlib.suppress(OSError, ValueError):  # removed, or not a card
            card = parsed(read_bounded(path, MOST_RECORD))
            card = card.get("method_card") if isinstance(card, dict) else None
            if isinstance(card, dict):
                check_plain(card)
                return card
    return {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _promises(card: Mapping[str, Any]) -> tuple[str, ...]:
    if not card:
        return ()
    starts = "starts" if card.get("identity_at_init") else "does not start"
    facts = [f"{starts} as the pretrained function"]
    if card.get("head_only"):
        facts.append("leaves the backbone as it is")
    elif card.get("mergeable"):
        facts.append("folds into the backbone, no cost at inference")
    else:
        facts.append("stays beside the backbone at inference")
    if card.get("frozen_mode") == "eval":
        facts.append("frozen layers in eval mode")
    return tuple(facts)


def _source(card: Mapping[str, Any]) -> tuple[Link, ...]:
    links = []
    paper = _text(card.get("paper"))
    if paper:
        match = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", paper)
        links.append(Link(paper, f"https://arxiv.org/abs/{match[1]}" if match else ""))
    if card.get("section"):
        links.append(Link(f"section {_text(card['section'])}"))
    if card.get("reference"):
        links.append(Link(f"code: {_text(card['reference'])}"))
    return tuple(links)


def _counted(values: Iterable[Any]) -> tuple[str, ...]:
    """Each value with the number of its runs where there are several, the most frequent first."""
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        if not pd.isna(value):
            counts[str(value)] += 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) == 1:
        return (ranked[0][0],)
    return tuple(f"{text} ({counted(count, 'run')})" for text, count in ranked)


def _with_unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}"


def _text(value: Any) -> str:
    """A text of a table or a card, whose lines stay lines."""
    return "" if value is None or value is pd.NA else printable_lines(str(value))
