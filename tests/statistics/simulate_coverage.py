"""How often the intervals hold the truth, over simulated suites: python THIS [simulations].

Scores of seeds are 0.5 + 0.02 e, with e normal, or exponential less its mean (skewness 2). Over
seeds and data sets, each data set adds 0.05 times another draw of the same kind. The truth is 0.5;
for the probability of improvement two equal methods are drawn, and the truth is a half.
"""

from __future__ import annotations

import sys

import numpy as np

from peftbench.statistics.intervals import DATASETS, SEEDS, improvement_interval, mean_interval

SHAPES = (
    ("mean", SEEDS, 1, 3),
    ("mean", SEEDS, 4, 3),
    ("mean", SEEDS, 4, 5),
    ("mean", DATASETS, 4, 3),
    ("improvement", SEEDS, 1, 3),
    ("improvement", SEEDS, 4, 3),
    ("improvement", DATASETS, 4, 3),
)


def errors(kind, generator, shape):
    """Draws of mean 0 and variance 1."""
    if kind == "normal":
        return generator.normal(size=shape)
    return generator.exponential(size=shape) - 1


def coverage(statistic, over, datasets, seeds, kind, simulations, seed=0):
    """Share of the simulations whose interval holds the truth."""
    generator = np.random.default_rng(seed)
    held = 0
    for _ in range(simulations):
        level = np.zeros((datasets, 1))
        if over == DATASETS and statistic == "mean":
            level = 0.05 * errors(kind, generator, (datasets, 1))
        runs = [
            list(0.5 + level + 0.02 * errors(kind, generator, (datasets, seeds))) for _ in range(2)
        ]
        if statistic == "mean":
            found = mean_interval(runs[0], over=over)
        else:
            found = improvement_interval(*runs, over=over, resamples=1000)
        held += found.low <= 0.5 <= found.high
    return held / simulations


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for statistic, over, datasets, seeds in SHAPES:
        shares = [coverage(statistic, over, datasets, seeds, k, number) for k in ("normal", "exp")]
        print(
            f"{statistic} over {over}, {datasets}x{seeds}:",
            " / ".join(f"{100 * x:.1f}" for x in shares),
            flush=True,
        )
