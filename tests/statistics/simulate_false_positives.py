"""How often equal methods are told apart: python THIS [simulations].

All methods have the same mean on every data set; their seeds are normal or exponential (skewness
2), with the same standard deviation or with ones that differ by up to a factor of 5.
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pandas as pd
from simulate_coverage import KINDS, errors

from peftbench.statistics.best import exchange_p, unequal_p
from peftbench.statistics.ranks import ALPHA, holm

SHAPES = ((4, 3), (4, 5), (1, 3), (1, 5))  # data sets, seeds
SPREADS = {
    "equal": (0.02, 0.02, 0.02, 0.02),
    "one wide": (0.05, 0.01, 0.01, 0.01),
}


def false_positives(shape, kind, spread, simulations, *, permutations=1999, seed=0):
    """Share of the simulated suites in which some two methods are told apart at 5 %."""
    datasets, seeds = shape
    methods = len(SPREADS[spread])
    generator = np.random.default_rng(seed)
    pairs = list(combinations(range(methods), 2))
    deviation = np.array(SPREADS[spread])[:, None, None]
    values = 0.5 + generator.normal(0, 0.1, (simulations, 1, datasets, 1))
    values = values + deviation * errors(kind, generator, (simulations, methods, datasets, seeds))
    wrong = 0
    for start in range(0, simulations, 50):  # a call for so many suites, whose methods never meet
        part = values[start : start + 50]
        names = [[f"{t:03}-{m}" for m in range(methods)] for t in range(len(part))]
        index = pd.MultiIndex.from_product(
            [
                [name for row in names for name in row],
                [f"d{d}" for d in range(datasets)],
                range(seeds),
            ],
            names=["label", "dataset", "seed"],
        )
        table = pd.DataFrame({"score": part.ravel()}, index=index).reset_index()
        asked = [(row[a], row[b]) for row in names for a, b in pairs]
        p = exchange_p(table, asked, permutations=permutations, seed=start)
        p = np.maximum(p, unequal_p(table, asked))
        wrong += sum(holm(row).min() <= ALPHA for row in p.reshape(len(part), -1))
    return wrong / simulations


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for shape in SHAPES:
        for kind in KINDS:
            for spread in SPREADS:
                share = false_positives(shape, kind, spread, number)
                print(*shape, kind, spread, f"{100 * share:.1f} %", flush=True)
