"""Which methods to take under a budget, answered from the records, with the evidence behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peftbench.report.scores import IN_FIGURE_NAMES, SCORE, SCORES, SHORT, check_metric
from peftbench.report.sections import Section, sections
from peftbench.report.spreads import leaders_on
from peftbench.report.verdict import behind, on_images, what_it_would_take
from peftbench.report.view import Views
from peftbench.report.words import counted, scaled
from peftbench.results.frame import select
from peftbench.results.store import ResultsStore
from peftbench.statistics import ranks, scores
from peftbench.statistics.best import Best
from peftbench.statistics.coverage import describe
from peftbench.statistics.intervals import SEEDS, Interval, mean_interval

FEW_SEEDS = 3  # with fewer, one lucky seed decides


@dataclass(frozen=True)
class Budget:
    """Upper limits; `None` is no limit."""

    params: float | None = None  # that train, the classifier not among them
    latency_ms: float | None = None  # of one image, after merging where that is possible
    memory_bytes: float | None = None  # peak while training

    def limits(self) -> dict[str, float]:
        """The limits that there are, by the name of the cost."""
        named = {"params": self.params, "latency": self.latency_ms, "memory": self.memory_bytes}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Candidate:
    """One method with what it reaches and costs; a cost that was not measured is `None`."""

    label: str
    interval: Interval
    costs: dict[str, float | None]  # params, latency (ms, median of runs), memory (bytes, largest)
    merged: bool  # whether the latency is that of the merged model
    runs: int


@dataclass(frozen=True)
class Advice:
    """The answer for one backbone and suite, or for one's own data set."""

    title: str
    metric: str  # that the methods are judged by
    datasets: tuple[str, ...]
    device: str
    chosen: tuple[Candidate, ...]  # on the frontier and not distinguishable from the best
    dearer: tuple[Candidate, ...]  # not distinguishable either, but not on the frontier
    worse: tuple[Candidate, ...]  # distinguishable from the best
    refused: tuple[str, ...]  # methods outside the budget or without evidence, with the reason
    doubts: tuple[str, ...]  # why the evidence is thin
    over: str = SEEDS  # what intervals are over
    measured: str = "over the data sets"  # what the accuracy is a mean of


def advise(
    table: pd.DataFrame,
    budget: Budget,
    *,
    datasets: Sequence[str] = (),
    backbones: Sequence[str] = (),
    metric: str | None = None,
    store: ResultsStore | None = None,
) -> list[Advice]:
    """One answer for each backbone and suite with runs of these data sets, and each metric.

    Runs are judged by the metric that they declare, or all by one that is given.

    The data sets of a suite are averaged; each of one's own has an answer of its own, from single
    test images where there is a `store` with the predictions of the runs.

    A method is advised where no other within the budget has a mean at least as high at costs at
    most as high (and one of them better), and where the runs do not tell it from the best within
    the budget (`statistics.best`, over seeds). The costs of that frontier are the limited ones, or
    the parameters where nothing is limited. Times and memory are of the device that most of the
    runs used, never mixed. `UnknownName` for a data set or backbone without runs.
    """
    conditions = [
        f"{column}={','.join(names)}"
        for column, names in (("dataset", datasets), ("backbone", backbones))
        if names
    ]
    check_metric(metric)
    return [
        _advice(one, budget, name)
        for name, views in Views(select(table, conditions), store=store).by_metric(metric)
        for one in sections(views.view(name))
    ]


def unbeaten(candidates: Sequence[Candidate], costs: Sequence[str]) -> list[Candidate]:
    """Those that no other beats: a mean at least as high, costs at most as high, not all equal."""

    def point(one: Candidate) -> tuple[float, ...]:
        known = [one.costs[name] for name in costs]
        return (-one.interval.estimate, *(float("inf") if c is None else c for c in known))

    points = {one.label: point(one) for one in candidates}

    def beaten(one: Candidate) -> bool:
        mine = points[one.label]
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in points.values()
        )

    return [one for one in candidates if not beaten(one)]


def _advice(section: Section, budget: Budget, metric: str) -> Advice:
    runs = section.runs
    kept, lacking = scores.complete(runs)
    refused = [f"{one.label}: no runs on {', '.join(one.lacks)}" for one in lacking]
    datasets = tuple(sorted(set(runs["dataset"])))
    devices = runs["device"].fillna("unknown device")
    device = str(min(devices.unique(), key=lambda name: (-int((devices == name).sum()), name)))
    within = []
    for label, part in kept.groupby("label", sort=True):
        one = _candidate(str(label), part, section, device)
        reason = _over(one, budget, device)
        if reason:
            refused.append(f"{one.label}: {reason}")
        else:
            within.append(one)
    within.sort(key=lambda one: (-one.interval.estimate, one.label))
    rows = kept[kept["label"].isin([one.label for one in within])]
    leading = leaders_on(section.view, rows)
    members = set(leading.members) if leading else set()
    front = {one.label for one in unbeaten(within, list(budget.limits()) or ["params"])}
    return Advice(
        title=section.title,
        metric=metric,
        datasets=datasets,
        device=device,
        chosen=tuple(x for x in within if x.label in members & front),
        dearer=tuple(x for x in within if x.label in members - front),
        worse=tuple(x for x in within if x.label not in members),
        refused=tuple(refused),
        doubts=tuple([*section.remarks, *_doubts(leading, len(within))]),
        over=leading.over if section.own and leading else SEEDS,
        measured=f"of {behind(leading)}" if section.own and leading else Advice.measured,
    )


def _candidate(label: str, part: pd.DataFrame, section: Section, device: str) -> Candidate:
    there = part[part["device"].fillna("unknown device") == device]
    merged = there["merged_latency_ms_batch1"]
    latency = merged.fillna(there["latency_ms_batch1"])
    if section.own:
        place = section.heading, section.suite, label, section.suite
        interval = section.view.intervals[place]
    else:
        interval = mean_interval(scores.samples(part, sorted(set(part["dataset"])))[label])
    return Candidate(
        label=label,
        interval=interval,
        costs={
            "params": _number(part["params_tuned"].max()),
            "latency": _number(latency.median()),
            "memory": _number(there["peak_bytes"].max()),
        },
        merged=bool(len(merged)) and bool(merged.notna().all()),
        runs=len(part),
    )


def _over(one: Candidate, budget: Budget, device: str) -> str:
    """Why a method is outside the budget; empty where it is within."""
    for name, limit in budget.limits().items():
        cost = one.costs[name]
        if cost is None:
            return f"{name} was not measured on {device}"
        if cost > limit:
            return f"{WORDS[name]} {SHOW[name](cost)}, more than {SHOW[name](limit)}"
    return ""


def _doubts(leading: Best | None, within: int) -> list[str]:
    if leading is None:
        return []
    doubts = []
    if within == 1:
        doubts.append(
            "one method only is within the budget and has runs: nothing to compare it with"
        )
        return doubts
    if on_images(leading):
        return [*doubts, *_doubts_on_images(leading)]
    if leading.seeds < FEW_SEEDS:
        doubts.append(f"some method has {counted(leading.seeds, 'seed')} only on a data set")
    if not leading.conclusive:
        doubts.append(
            "so few runs cannot tell any two methods apart; the order may be luck. "
            + what_it_would_take(leading)
        )
    elif len(leading.members) > 1:
        doubts.append(
            f"{leading.best} and {counted(len(leading.members) - 1, 'other')} cannot be told "
            "apart. " + what_it_would_take(leading)
        )
    pairs = within * (within - 1) // 2
    if ranks.smallest_signed_rank_p(leading.datasets) * pairs > leading.alpha:
        sets = counted(leading.datasets, "data set")
        doubts.append(f"{sets} cannot tell how {within} methods compare on others")
    return doubts


def _doubts_on_images(leading: Best) -> list[str]:
    doubts = []
    if leading.splits == 1:
        doubts.append(
            f"one split of {leading.images or 'few'} test images: another one would give other "
            "numbers. dataset.folds=5 tests every image once"
        )
    if not leading.conclusive:
        doubts.append(
            "so few test images cannot tell any two methods apart. " + what_it_would_take(leading)
        )
    elif len(leading.members) > 1:
        doubts.append(
            f"{leading.best} and {counted(len(leading.members) - 1, 'other')} cannot be told "
            "apart. " + what_it_would_take(leading)
        )
    return doubts


def to_text(advice: Sequence[Advice], budget: Budget) -> str:
    """The answers for a reader."""
    if not advice:
        return "No finished final run answers this yet. Run: peftbench run -m method='glob(*)'\n"
    return "\n".join(_section(one, budget) for one in advice)


def _section(one: Advice, budget: Budget) -> str:
    limits = [f"{WORDS[n]} at most {SHOW[n](v)}" for n, v in budget.limits().items()]
    title = one.title if one.metric == SCORE else f"{one.title} · by {SCORES[one.metric]}"
    score = IN_FIGURE_NAMES[one.metric].replace("_", " ")
    lines = [
        f"{title} · {', '.join(limits) or 'no limit'}",
        f"{counted(len(one.datasets), 'data set')}: {', '.join(one.datasets)}",
        "",
    ]
    if one.chosen:
        lines.append(
            "Take one of these; the runs do not tell them from the best within the budget:"
        )
        lines += _grid(one.chosen, score)
    else:
        lines.append("No method with runs on all of these data sets is within the budget.")
    if one.dearer:
        lines += [
            "",
            "Not told from the best either, but another has a higher mean at no more cost:",
        ]
        lines += _grid(one.dearer, score)
    if one.worse:
        names = ", ".join(f"{x.label} {100 * x.interval.estimate:.1f}" for x in one.worse)
        lines += ["", f"Behind the best: {names}"]
    if one.refused:
        lines += ["", "Left out:", *(f"  {reason}" for reason in one.refused)]
    if one.doubts:
        lines += ["", "The evidence is thin:", *(f"  {doubt}" for doubt in one.doubts)]
    lines += [
        "",
        f"{score}: {SHORT[one.metric]} on test in %, mean {one.measured}, with its 95 % "
        f"interval over {one.over}{_held([*one.chosen, *one.dearer])}. "
        "tuned: parameters without the classifier.",
        f"latency of one image and peak memory of training are those of {one.device}; yours will "
        "differ. latency is after merging where marked m.",
    ]
    return "\n".join([*lines, ""])


def _grid(candidates: Sequence[Candidate], score: str) -> list[str]:
    rows = [["method", score, "95 % interval", "tuned", "latency", "memory", "runs"]]
    for one in candidates:
        interval = one.interval
        bounds = "–"
        if interval.low is not None and interval.high is not None:
            bounds = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        costs = {name: "–" if v is None else SHOW[name](v) for name, v in one.costs.items()}
        mark = " m" if one.merged else ""
        rows.append(
            [
                one.label,
                f"{100 * interval.estimate:.1f}",
                bounds,
                costs["params"],
                costs["latency"] + mark,
                costs["memory"],
                str(one.runs),
            ]
        )
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(sizes[0]), *map(str.rjust, row[1:], sizes[1:])])
        for row in rows
    ]


def _held(candidates: Sequence[Candidate]) -> str:
    """How often the intervals shown hold, in parentheses."""
    text = describe(one.interval.holds for one in candidates)
    return f" ({text})" if text else ""


def _params(value: float) -> str:
    short, unit = scaled(value)
    return f"{short:.3g}{unit}" if unit else f"{value:.0f}"


def _latency(value: float) -> str:
    return f"{value:.3g} ms"


def _memory(value: float) -> str:
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


SHOW = {"params": _params, "latency": _latency, "memory": _memory}
WORDS = {"params": "tuned parameters", "latency": "latency", "memory": "peak memory"}


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
