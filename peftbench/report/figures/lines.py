"""Lines of several methods over one setting: the means behind them, and how they are drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from peftbench.report.figures.style import darker, style_of

NAME = 7.5  # typographic points of the names at the ends of lines
GAP = 9.5  # between two of them
BEFORE = 6.0  # between them and the panel


@dataclass(frozen=True)
class Score:
    """One measured number that a line is made of."""

    name: str  # of the line
    method: str
    dataset: str
    seed: int
    x: float
    value: float


@dataclass(frozen=True)
class LinePoint:
    """One point of a line with the sample standard deviation over its `n` seeds."""

    x: float
    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Line:
    """A named line; its places rise in x."""

    name: str
    method: str
    places: tuple[LinePoint, ...]


def lines(scores: Iterable[Score]) -> list[Line]:
    """One line for each name, in the order of its last value, highest first.

    A place is the mean over data sets of the means over seeds. It exists only where every data set
    of the line has a score, so that no line is an average of different tasks; its spread is that
    of the means over data sets of the seeds that all of them have.
    """
    values: dict[str, dict[float, dict[str, dict[int, float]]]] = {}
    methods: dict[str, str] = {}
    for s in scores:
        methods[s.name] = s.method
        by_x = values.setdefault(s.name, {})
        by_x.setdefault(s.x, defaultdict(dict))[s.dataset][s.seed] = s.value
    result = []
    for name, by_x in values.items():
        datasets = {dataset for here in by_x.values() for dataset in here}
        places = tuple(
            _place(x, here) for x, here in sorted(by_x.items()) if here.keys() == datasets
        )
        if places:
            result.append(Line(name, methods[name], places))
    return sorted(result, key=lambda line: (-line.places[-1].mean, line.name))


def _place(x: float, by_dataset: dict[str, dict[int, float]]) -> LinePoint:
    mean = fmean(fmean(seeds.values()) for seeds in by_dataset.values())
    common = sorted(set.intersection(*(set(seeds) for seeds in by_dataset.values())))
    means = [fmean(seeds[seed] for seeds in by_dataset.values()) for seed in common]
    return LinePoint(x, mean, stdev(means) if len(means) > 1 else None, len(means))


def draw(axes: Axes, drawn: Sequence[Line]) -> None:
    """The lines with a mark at each place and a bar of one standard deviation to both sides."""
    bars, colours = [], []
    for line in drawn:
        colour, marker = style_of(line.method)
        axes.plot(
            [place.x for place in line.places],
            [place.mean for place in line.places],
            color=colour,
            marker=marker,
            markersize=8 if marker == "*" else 5.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linewidth=1.2,
            zorder=2.1,
        )
        ends = [(p.x, p.mean - p.sd, p.mean + p.sd) for p in line.places if p.sd is not None]
        bars += [((x, low), (x, high)) for x, low, high in ends]
        colours += [colour] * len(ends)
    if bars:  # all in one piece, which is drawn several times as fast
        axes.add_collection(LineCollection(bars, colors=colours, linewidths=0.8, zorder=2))
        x, y = zip(*(end for bar in bars for end in bar), strict=True)
        both = [colour for colour in colours for _ in range(2)]
        axes.scatter(x, y, s=9, marker="_", c=both, linewidths=0.5, zorder=2)


def name_ends(axes: Axes, drawn: Sequence[Line]) -> None:
    """Each name right of the end of its line, moved up or down so that none covers another."""
    if not drawn:
        return
    unit = axes.figure.dpi / 72
    window = axes.get_window_extent()
    ends = [axes.transData.transform((1, line.places[-1].mean))[1] / unit for line in drawn]
    for line, y in zip(drawn, spread(ends, GAP), strict=True):
        axes.text(
            1 + BEFORE * unit / window.width,
            (y * unit - window.y0) / window.height,
            line.name,
            transform=axes.transAxes,
            va="center",
            fontsize=NAME,
            color=darker(style_of(line.method)[0]),
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of `wanted` and as near to it as that allows.

    Crowded places share a block around their mean, and blocks that touch become one.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        blocks.append([i])
        centres.append(wanted[i])
        while (
            len(blocks) > 1
            and centres[-1] - centres[-2] < gap * (len(blocks[-1]) + len(blocks[-2])) / 2
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
            centres[-2:] = [fmean(wanted[k] for k in blocks[-1])]
    placed = [0.0] * len(wanted)
    for block, centre in zip(blocks, centres, strict=True):
        for k, i in enumerate(block):
            placed[i] = centre + gap * (k - (len(block) - 1) / 2)
    return placed
