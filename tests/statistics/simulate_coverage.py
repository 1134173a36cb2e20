"""How often the intervals hold the truth, over simulated suites: python THIS writes coverage.csv.

Scores of seeds are 0.5 + 0.02 e, with e normal, or exponential less its mean (skewness 2). Over
seeds and data sets, each data set adds 0.05 times another draw of the same kind. The truth is 0.5
(for the interquartile mean that of e); for the probability of improvement two equal methods are
drawn, and the truth is a half.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

import peftbench.statistics.coverage as known
from peftbench.statistics.intervals import (
    DATASETS,
    SEEDS,
    improvement_interval,
    interquartile_mean_interval,
    mean_bounds,
)

KINDS = ("normal", "skewed")
ONE_BY_ONE = 2000  # simulations of what is not computed for many suites at once
AT_ONCE = 20_000
SEED = 11

SHAPES = (
    *(("mean", SEEDS, d, s) for d, s in [(1, 2), (1, 3), (1, 4), (1, 5), (1, 10), (2, 2), (2, 3)]),
    *(
        ("mean", SEEDS, d, s)
        for d, s in [(2, 5), (4, 2), (4, 3), (4, 5), (19, 3), (24, 3), (24, 5)]
    ),
    *(("mean", DATASETS, d, s) for d in (2, 3, 4, 8, 19, 24) for s in (1, 3, 5)),
    *(("interquartile mean", SEEDS, d, s) for d, s in [(1, 2), (1, 3), (1, 5), (4, 3), (4, 5)]),
    *(("interquartile mean", SEEDS, d, s) for d, s in [(19, 3), (24, 3), (24, 5)]),
    *(("improvement", SEEDS, d, s) for d, s in [(1, 2), (1, 3), (1, 5), (2, 3), (4, 3), (4, 5)]),
    *(("improvement", SEEDS, d, s) for d, s in [(19, 3), (24, 3)]),
    *(("improvement", DATASETS, d, s) for d, s in [(2, 3), (4, 1), (4, 3), (4, 5), (19, 3)]),
    ("improvement", DATASETS, 24, 3),
)


def errors(kind, generator, shape):
    """Draws of mean 0 and variance 1."""
    if kind == "normal":
        return generator.normal(size=shape)
    if kind == "skewed":
        return generator.exponential(size=shape) - 1
    # lognormal, of skewness 3.3 with a sigma of 0.75
    sigma = 0.75
    draws = np.exp(sigma * generator.normal(size=shape) - sigma**2 / 2) - 1
    return draws / math.sqrt(math.exp(sigma**2) - 1)


def middle(kind):
    """Interquartile mean of `errors`: of an exponential, with quarters at ln(4/3) and ln(4)."""
    if kind == "normal":
        return 0.0
    first, third = math.log(4 / 3), math.log(4)
    return (0.75 * (first + 1) - 0.25 * (third + 1)) / 0.5 - 1


def coverage(shape, kind, simulations=0, seed=SEED):
    """Share of the simulations whose interval holds the truth; for shapes see `SHAPES`."""
    statistic, over, datasets, seeds = shape
    generator = np.random.default_rng(seed)
    if statistic == "mean":
        simulations = simulations or AT_ONCE
        runs = 0.02 * errors(kind, generator, (datasets, simulations, seeds)) + 0.5
        if over == DATASETS:
            runs += 0.05 * errors(kind, generator, (datasets, simulations, 1))
        share = np.full(datasets, 1 / datasets)
        groups = [np.arange(datasets)] if over == DATASETS else None
        low, high = mean_bounds(list(runs), share, groups)
        return float(np.mean((low <= 0.5) & (high >= 0.5)))
    held = 0
    simulations = simulations or ONE_BY_ONE
    for _ in range(simulations):
        first, second = 0.5 + 0.02 * errors(kind, generator, (2, datasets, seeds))
        if statistic == "improvement":
            truth = 0.5
            found = improvement_interval(list(first), list(second), over=over, resamples=1000)
        else:
            truth = 0.5 + 0.02 * middle(kind)
            found = interquartile_mean_interval(list(first))
        held += found.low <= truth <= found.high
    return held / simulations


def table():
    """Rows of `coverage.csv`."""
    for shape in SHAPES:
        number = AT_ONCE if shape[0] == "mean" else ONE_BY_ONE
        shares = [f"{coverage(shape, kind):.4f}" for kind in KINDS]
        yield [*shape, *shares, number]


if __name__ == "__main__":
    path = Path(known.__file__).with_name(known.FILE)
    rows = []
    for row in table():
        print(*row, sep=",", flush=True)
        rows.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["statistic", "over", "datasets", "seeds", *KINDS, "simulations"])
        writer.writerows(rows)
