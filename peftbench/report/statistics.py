"""Statistics of a results folder as a text for readers and as one long table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from peftbench.report.comparison import Comparison, Images, compare, compare_own
from peftbench.report.frames import typed_frame
from peftbench.report.sections import sections
from peftbench.report.tables.text import inert
from peftbench.report.verdict import behind, on_images, what_it_would_take
from peftbench.report.view import View
from peftbench.report.words import counted
from peftbench.results.columns import Column
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import csv_text
from peftbench.statistics.best import Best
from peftbench.statistics.coverage import Coverage, describe
from peftbench.statistics.intervals import DATASETS, SEEDS, Interval

STATISTICS_COLUMNS = (
    Column("backbone", "string", "as in the table"),
    Column("suite", "string", "suite of the data sets"),
    Column("statistic", "string", "what the value is, such as: average rank, wilcoxon, win rate"),
    Column("label", "string", "method, with its variant; missing for a test of all"),
    Column("other", "string", "method that it is compared with"),
    Column("value", "Float64", "fractions for scores and shares"),
    Column("low", "Float64", "lower end of the 95 % interval"),
    Column("high", "Float64", "upper end of the 95 % interval"),
    Column("p", "Float64", "two-sided p-value"),
    Column("p_holm", "Float64", "after Holm's correction over all pairs"),
    Column("over", "string", "what was drawn anew: seeds, or seeds and data sets"),
    Column("datasets", "Int64", "behind the value"),
    Column("seeds", "Int64", "of the data set that has fewest"),
    Column("holds_normal", "Float64", "share of simulations of normal scores whose interval holds"),
    Column("holds_skewed", "Float64", "the same for exponential scores (skewness 2)"),
    Column("metric", "string", "that the scores are of"),
)

INTRODUCTION = """\
# Statistics

Scores are {metric} on test, in %. Intervals are 95 % intervals (Student's, corrected for
skewness; of the probability of improvement, generalised ones). Few runs do not show how skewed
their scores are, so that each table says in what share of simulations of as many data sets and
seeds (or of the nearest fewer) its intervals held the truth: with normal scores, and with skewed
(exponential) ones. With one seed there is no interval over seeds. "Over seeds" is a claim about
these data sets; "over seeds and data sets" is one about new data sets of the kind, which needs many
of them. P-values are two-sided and corrected by Holm's method over all pairs of methods. A method
is *not distinguishable from the best* where its test against the method of the highest mean has a
corrected p-value above 5 %; that is no proof that the two are equal.
"""


OWN_INTRODUCTION = """\
Scores on one's own images: intervals are those of the accuracy on new images. They hold the chance
of which images were tested, of splits where there are several, and of seeds. In simulations of 60
to 300 images they held in 93.0 to 97.6 %, 95.3 % on average. One split and one seed have Wilson's
interval. A method is not distinguishable from the best where a test of single images does not tell
the two apart.
"""


def comparisons(view: View, store: ResultsStore | None = None) -> list[Comparison]:
    """One for each backbone and suite, or one's own data set, on which two methods are complete."""
    compared = [
        compare_own(one, store, view.metric)
        if one.own
        else compare(one.runs, list(one.remarks), store, view.metric)
        for one in sections(view)
    ]
    found = [one for one in compared if one is not None]
    view.told.update({(one.heading, one.suite): one.best[0] for one in found if not one.own})
    return found


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a value, with every digit; see `STATISTICS_COLUMNS`."""
    return csv_text(to_frame(comparisons))


def to_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row a value with the columns and dtypes of `STATISTICS_COLUMNS`."""
    rows = [
        {"backbone": one.heading, "suite": one.suite, "metric": one.metric, **row}
        for one in comparisons
        for row in _rows(one)
    ]
    return typed_frame(STATISTICS_COLUMNS, rows)


def _rows(one: Comparison) -> Iterator[dict[str, Any]]:
    behind = {"datasets": len(one.datasets), "seeds": one.seeds[0]}
    for label, name, interval in one.intervals:
        yield {"statistic": name, "label": label, **_interval(interval)}
    for other, _, interval in one.improvement:
        pair = {"label": one.labels[0], "other": other}
        yield {"statistic": "probability of improvement", **pair, **_interval(interval)}
    for ranked, rank in one.average_ranks.items():
        yield {"statistic": "average rank", "label": ranked, "value": rank, **behind}
    if not one.own:
        test = one.friedman
        yield {"statistic": "friedman", "value": test.statistic, "p": test.p, **behind}
    for row in one.pairs.to_dict("records"):
        pair = {"label": row["first"], "other": row["second"], "value": row["difference"]}
        p = {"p": row["p"], "p_holm": row["p_holm"]}
        yield {"statistic": "wilcoxon", **pair, **p, "over": DATASETS, **behind}
    for number, bar in enumerate(one.bars, start=1):
        for label in bar:
            yield {"statistic": "critical-difference group", "label": label, "value": number}
    yield from _matrix("win rate", one.win_rates, behind)
    for leaders in one.best:
        yield from _best(leaders)
    if one.images is not None:
        yield from _of_images(one.images)


def _of_images(images: Images) -> Iterator[dict[str, Any]]:
    for row in images.tests.to_dict("records"):
        pair = {"label": row["first"], "other": row["second"]}
        lead = (row["first_only"] - row["second_only"]) / row["images"]
        yield {
            "statistic": "mcnemar",
            **pair,
            "value": lead,
            "p": row["p"],
            "p_holm": row["p_holm"],
        }
    yield from _matrix("agreement", images.agreement, {})
    for label, error in images.ece.items():
        yield {"statistic": "expected calibration error", "label": label, "value": error}
    for kind, value in images.ensembles.drop(columns="run").mean().items():
        yield {"statistic": f"ensemble: {kind}", "value": float(value), "seeds": images.runs}


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "value": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "over": interval.over,
        "datasets": interval.datasets,
        "seeds": interval.seeds,
        "holds_normal": None if interval.holds is None else interval.holds.normal,
        "holds_skewed": None if interval.holds is None else interval.holds.skewed,
    }


def _best(leaders: Best) -> Iterator[dict[str, Any]]:
    """1 for each method in the set, 0 for each other; nothing where nothing can be told."""
    behind = {"over": leaders.over, "datasets": leaders.datasets, "seeds": leaders.seeds}
    for label in (leaders.best, *sorted(leaders.p_holm)):
        yield {
            "statistic": "not distinguishable from the best",
            "label": label,
            "other": leaders.best,
            "value": float(label in leaders.members) if leaders.conclusive else None,
            "p_holm": leaders.p_holm.get(label),
            **behind,
        }


def _matrix(name: str, values: pd.DataFrame, behind: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for label, row in zip(values.index, values.to_numpy(float), strict=True):
        for other, value in zip(values.columns, row.tolist(), strict=True):
            if not np.isnan(value):  # the diagonal may be empty
                yield {"statistic": name, "label": label, "other": other, "value": value, **behind}


def to_markdown(comparisons: Sequence[Comparison], *, metric: str = "top-1 accuracy") -> str:
    """The text for readers; one section for each backbone and suite."""
    parts = [INTRODUCTION.format(metric=metric)]
    if not comparisons:
        parts.append("No backbone has two methods with all data sets of a suite yet.\n")
    if any(one.own for one in comparisons):
        parts.append(OWN_INTRODUCTION)
    for one in comparisons:
        parts.append(_head(one))
        if one.own:
            parts += [_on_new_images(one), _sets(one)]
        else:
            parts += [_averages(one), _sets(one), _tests(one)]
        parts.append(_pictures(one))
    return inert("\n".join(part for part in parts if part))


def _head(one: Comparison) -> str:
    title = " · ".join(filter(None, (one.heading, one.suite)))
    if one.own:
        rests = behind(one.best[0]) if one.best else ""
        lines = [f"## {title}\n", f"{len(one.labels)} methods: {rests}."]
        return "\n".join([*lines, *(f"- {remark}" for remark in one.remarks), ""])
    seeds = "–".join(str(n) for n in dict.fromkeys(one.seeds))
    lines = [
        f"## {title}\n",
        f"{len(one.labels)} methods on {counted(len(one.datasets), 'data set')}, {seeds} "
        f"{'seed' if one.seeds == (1, 1) else 'seeds'} each: {', '.join(one.datasets)}.",
        *(f"- {remark}" for remark in one.remarks),
    ]
    return "\n".join([*lines, ""])


def _averages(one: Comparison) -> str:
    names = list(dict.fromkeys(name for _, name, _ in one.intervals))
    head = ["method"]
    for name in names:
        head.append(name)
        if name != "interquartile mean":
            head += ["over seeds", "over seeds and data sets"]
    head += ["average rank"]
    rows = []
    for label in one.labels:
        row = [label]
        for name in names:
            mine = [i for x, n, i in one.intervals if (x, n) == (label, name)]
            row.append(f"{100 * mine[0].estimate:.1f}")
            if name == "interquartile mean":
                row[-1] += f" ({_bounds(mine[0])})"
            else:
                row += [
                    _bounds(i) if i.over == w else "–"
                    for i, w in zip(mine, (SEEDS, DATASETS), strict=True)
                ]
        rows.append([*row, f"{one.average_ranks[label]:.2f}"])
    return "\n".join([_grid(head, rows), *_held(one.intervals)])


def _on_new_images(one: Comparison) -> str:
    """Each method with its interval, the best first."""
    rows = []
    for label, _, interval in one.intervals:
        over = interval.over if interval.low is not None else "–"
        rows.append([label, f"{100 * interval.estimate:.1f}", _bounds(interval), over])
    return _grid(["method", one.suite, "95 % interval", "over"], rows)


def _held(named: Sequence[tuple[str, str, Interval]]) -> list[str]:
    """One line for each kind of interval on how often it holds, and an empty one after them."""
    kinds: dict[tuple[str, str], list[Coverage | None]] = {}
    for _, name, interval in named:
        if interval.low is not None:
            kinds.setdefault((name, interval.over), []).append(interval.holds)
    lines = [
        f"- {name} over {over}: 95 % interval ({text})"
        for (name, over), known in kinds.items()
        if (text := describe(known))
    ]
    return [*lines, ""] if lines else []


def _sets(one: Comparison) -> str:
    lines = ["### Not distinguishable from the best\n"]
    for leaders in one.best:
        claim = "On these data sets" if leaders.over == SEEDS else "On new data sets of the kind"
        rests = f"{counted(leaders.datasets, 'data set')}, {counted(leaders.seeds, 'seed')}"
        if on_images(leaders):
            claim, rests = "On new images", behind(leaders)
        lines.append(f"- {claim}: {_told(leaders, rests)}")
    return "\n".join([*lines, ""])


def _told(leaders: Best, rests: str) -> str:
    if not leaders.conclusive:
        return (
            f"nothing can be told. With {rests} and {len(leaders.p_holm) + 1} methods even the "
            f"clearest result has a corrected p-value of {_p(leaders.smallest)}.{_more(leaders)}"
        )
    test = "Wilcoxon's signed-rank test"
    if leaders.over == SEEDS:
        test = "exchange of runs and Welch's t-test"
    if on_images(leaders):
        test = "test of single images"
    return f"{', '.join(leaders.members)} ({test}, {rests}).{_more(leaders)}"


def _more(leaders: Best) -> str:
    """How many seeds it would take; more seeds say nothing of new data sets."""
    if not (on_images(leaders) or leaders.over == SEEDS) or len(leaders.members) < 2:
        return ""
    return f" {what_it_would_take(leaders)}"


def _tests(one: Comparison) -> str:
    test = one.friedman
    lines = ["### Ranks\n"]
    if test.p is not None:
        lines.append(
            f"Friedman's test of all methods being alike: chi-square {test.statistic:.2f}, "
            f"p {_p(test.p)} ({test.methods} methods, {counted(test.datasets, 'data set')}).\n"
        )
    for bar in one.bars:
        lines.append(f"- cannot be told apart by rank: {', '.join(bar)}")
    lines += ["", f"{one.labels[0]}, which has the highest mean, against each other method:", ""]
    p = {frozenset((r["first"], r["second"])): r for r in one.pairs.to_dict("records")}
    chance = {other: i for other, over, i in one.improvement if over == SEEDS}
    rows = []
    for other in one.labels[1:]:
        row = p[frozenset((one.labels[0], other))]
        wins, losses = (
            (row["wins"], row["losses"])
            if row["first"] == one.labels[0]
            else (row["losses"], row["wins"])
        )
        over_seeds = next(b for b in one.best if b.over == SEEDS).p_holm[other]
        rows.append(
            [
                other,
                f"{wins} / {row['ties']} / {losses}",
                f"{chance[other].estimate:.2f} ({_bounds(chance[other], 1, 2)})",
                _p(over_seeds),
                _p(row["p_holm"]),
            ]
        )
    head = [
        "method",
        "wins / ties / losses",
        "probability of improvement",
        "p over seeds",
        "p over data sets",
    ]
    improvement = [(other, head[2], i) for other, over, i in one.improvement if over == SEEDS]
    return "\n".join([*lines, _grid(head, rows), *_held(improvement)])


def _pictures(one: Comparison) -> str:
    if one.images is None:
        return ""
    images = one.images
    first = images.labels[0]
    claim = (
        "McNemar's exact test counts an image once, for the method that is right on it in more of "
        "its seeds; its claim is about these trained models and new images."
    )
    if one.own:
        claim = (
            "An image counts once, for the method that is right on it in more of its runs. p is "
            "that of McNemar's exact test, or of a t-test that holds splits and seeds as well, "
            "whichever is larger."
        )
    number = images.tests["images"].iloc[0] if len(images.tests) else 0
    lines = [
        "### Single images\n",
        f"{number} test images, {counted(images.runs, 'seed')}, "
        f"{len(images.labels)} methods of highest mean. {claim}\n",
    ]
    rows = []
    for row in images.tests[images.tests["first"] == first].to_dict("records"):
        other = row["second"]
        rows.append(
            [
                str(other),
                f"{row['first_only']} / {row['second_only']}",
                _p(row["p_holm"]),
                f"{100 * images.agreement.loc[first, other]:.1f}",
                f"{100 * images.ece[str(other)]:.1f}",
            ]
        )
    lines.append(
        _grid(
            ["method", f"{first} only / it only", "p", "agreement %", "calibration error %"], rows
        )
    )
    own = float(images.agreement.loc[[first], [first]].to_numpy()[0, 0])
    if not np.isnan(own):
        lines.append(f"Two seeds of {first} agree on {100 * own:.1f} % of the images.\n")
    mean = images.ensembles.drop(columns="run").mean()
    lines.append(
        f"Ensembles of these {len(images.labels)} methods, mean over "
        f"{counted(images.runs, 'run')}: "
        f"majority vote {100 * mean['majority_vote']:.1f}, weighted by confidence "
        f"{100 * mean['confidence_weighted']:.1f}; the best member alone (chosen on test) "
        f"{100 * mean['best_single']:.1f}, the mean member {100 * mean['mean_single']:.1f}, some "
        f"member right {100 * mean['oracle']:.1f}.\n"
    )
    return "\n".join(lines)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [[text.replace("|", r"\|") for text in row] for row in (head, *rows)]
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (body[0], rule, *body[1:])]
    return "\n".join([*lines, ""])


def _bounds(interval: Interval, scale: float = 100, digits: int = 1) -> str:
    if interval.low is None or interval.high is None:
        return "–"
    return f"{scale * interval.low:.{digits}f}–{scale * interval.high:.{digits}f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
