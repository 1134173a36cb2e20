"""Average ranks with what cannot be told apart, and how often each method beats each other."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbench.report.figures.style import GREY, STYLE, darker, empty, entitle, style_of
from peftbench.report.view import View, view_of
from peftbench.statistics import ranks, scores

LINE = 0.21  # inches for one name
BAR = 0.07  # inches between two bars
REMARK = 0.155  # inches for one more line below a title
DARK = 0.6  # a cell whose shade is beyond this gets white text


@dataclass(frozen=True)
class Ranking:
    """Methods of one backbone and suite by average rank over its data sets, the best first."""

    title: str
    labels: tuple[str, ...]
    methods: tuple[str, ...]
    places: tuple[float, ...]
    bars: tuple[tuple[str, ...], ...]  # labels that no test tells apart
    wins: pd.DataFrame
    datasets: int
    p: float | None  # of Friedman's test that all are equal; `None` where it is not defined
    conclusive: bool  # whether so many data sets could tell any two apart
    left_out: tuple[str, ...]


def critical_difference(runs: View | pd.DataFrame) -> Figure:
    """Average ranks over data sets, with a bar over methods that no test tells apart.

    `runs` are a view, or a table of runs by top-1 accuracy; a panel is a backbone and suite with
    two methods or more that have all its data sets. Ranks are those of means over seeds. A bar
    joins neighbours of which no pair differs at 5 % in Wilcoxon's signed-rank test after Holm's
    correction over all pairs (Demsar, 2006, with Benavoli et al., 2016, who take Wilcoxon's test
    for Nemenyi's). Where so few data sets could tell nothing apart, no bar is drawn and the figure
    says so.
    """
    panels = rankings(view_of(runs))
    if not panels:
        return empty("no two methods have all data sets")
    with mpl.rc_context(STYLE):
        heights = [0.95 + LINE * ((len(r.labels) + 1) // 2) + BAR * len(r.bars) for r in panels]
        whole = [
            height + REMARK * (len(_remarks(ranking)) - 1)
            for height, ranking in zip(heights, panels, strict=True)
        ]
        figure = Figure(figsize=(7.5, sum(whole)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=whole)[:, 0]
        for axes, ranking, height in zip(grid, panels, heights, strict=True):
            _diagram(axes, ranking, height)
    return figure


def win_rates(runs: View | pd.DataFrame) -> Figure:
    """Share of the data sets on which the row beats the column, ties as half.

    `runs` are a view, or a table of runs by top-1 accuracy; the order is that of the average
    ranks. It stands beside the critical-difference diagram, whose bars cannot show every pair.
    """
    panels = rankings(view_of(runs))
    if not panels:
        return empty("no two methods have all data sets")
    with mpl.rc_context(STYLE):
        sides = [1.3 + 0.34 * len(ranking.labels) for ranking in panels]
        figure = Figure(figsize=(max(sides) + 0.6, sum(sides) + 0.5), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=sides)[:, 0]
        for axes, ranking in zip(grid, panels, strict=True):
            _matrix(axes, ranking)
    return figure


def rankings(view: View) -> list[Ranking]:
    """One ranking for each backbone and suite with two complete methods or more."""
    result = []
    for (heading, suite), part in view.scored.groupby(["heading", "suite"], sort=True):
        kept, lacking = scores.complete(part)
        means = scores.means(kept)
        if len(means) < 2:
            continue
        places = ranks.average_ranks(means)
        # the clearest result of so many data sets, after Holm's correction over all pairs
        pairs = len(means) * (len(means) - 1) // 2
        conclusive = ranks.smallest_signed_rank_p(means.shape[1]) * pairs <= ranks.ALPHA
        methods = dict(zip(kept["label"], kept["method"], strict=True))
        labels = tuple(map(str, places.index))
        result.append(
            Ranking(
                title=f"{heading} · {suite}" if suite else str(heading),
                labels=labels,
                methods=tuple(str(methods[label]) for label in labels),
                places=tuple(map(float, places)),
                bars=tuple(ranks.groups(means, ranks.pairwise(means))) if conclusive else (),
                wins=ranks.win_rates(means),
                datasets=means.shape[1],
                p=ranks.friedman(means).p,
                conclusive=conclusive,
                left_out=tuple(x.label for x in lacking),
            )
        )
    return result


def _diagram(axes: Axes, ranking: Ranking, height: float) -> None:
    number = len(ranking.labels)
    half = (number + 1) // 2
    axes.set_axis_off()
    axes.set_ylim(-height + 0.62, 0.33)  # inches, so that names stand at one distance
    axes.set_xlim(1 - 0.38 * (number - 1), number + 0.38 * (number - 1))
    axes.plot([1, number], [0, 0], color="#333333", linewidth=1, clip_on=False)
    step = max(1, round(number / 10))
    for rank in range(1, number + 1, step):
        axes.plot([rank, rank], [0, 0.05], color="#333333", linewidth=1)
        axes.text(rank, 0.09, str(rank), ha="center", va="bottom", fontsize=8)
    for i, bar in enumerate(ranking.bars):
        ends = [ranking.places[ranking.labels.index(label)] for label in (bar[0], bar[-1])]
        y = -0.09 - BAR * i
        axes.plot(ends, [y, y], color="#333333", linewidth=2.6, solid_capstyle="butt")
    top = 0.16 + BAR * len(ranking.bars)
    for i, (label, method, place) in enumerate(
        zip(ranking.labels, ranking.methods, ranking.places, strict=True)
    ):
        left = i < half
        y = -top - LINE * (i if left else number - 1 - i)
        colour, marker = style_of(method)
        end = 1 - 0.06 * (number - 1) if left else number + 0.06 * (number - 1)
        axes.plot([place, place, end], [0, y, y], color=colour, linewidth=0.8, zorder=1)
        axes.plot(place, 0, marker=marker, color=colour, markersize=5, markeredgecolor="white")
        text = f"{label}  {place:.2f}" if left else f"{place:.2f}  {label}"
        gap = -0.01 * (number - 1) if left else 0.01 * (number - 1)
        axes.text(
            end + gap,
            y,
            text,
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=darker(colour),
        )
    entitle(axes, ranking.title, _remarks(ranking))


def _remarks(ranking: Ranking) -> list[str]:
    parts = [f"average rank over {ranking.datasets} data sets, 1 is best"]
    if ranking.p is not None:
        parts.append(f"Friedman p = {ranking.p:.2g}")
    if ranking.conclusive:
        parts.append("a bar: no pair differs at 5 % (Wilcoxon, Holm)")
    else:
        parts.append("too few data sets to tell any two apart")
    if ranking.left_out:
        parts.append(f"incomplete: {', '.join(ranking.left_out)}")
    return textwrap.wrap("; ".join(parts), 110)


def _matrix(axes: Axes, ranking: Ranking) -> None:
    labels = list(ranking.labels)
    values = ranking.wins.loc[labels, labels].to_numpy(float)
    shades = mpl.colormaps["Blues"].with_extremes(bad="#f2f2f2")
    axes.imshow(0.05 + 0.75 * values, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    centred: Any = {"ha": "center", "va": "center", "fontsize": 7, "in_layout": False}
    for y, row in enumerate(values):
        for x, share in enumerate(row):
            if x != y:
                dark = 0.05 + 0.75 * share > DARK
                axes.text(
                    x, y, f"{100 * share:.0f}", color="white" if dark else "#222222", **centred
                )
    axes.grid(False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="left", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{ranking.title}\n", loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(
        f"% of {ranking.datasets} data sets on which the row beats the column",
        fontsize=8,
        color=GREY,
    )
