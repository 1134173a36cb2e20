"""Promises of the number of seeds it would take, and of the sentences that say who is ahead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from peftbench.report.verdict import verdict
from peftbench.statistics.best import not_distinguishable
from peftbench.statistics.power import MOST_SEEDS, least_seeds, seeds_to_tell

NOISE = np.array([-0.01, 0.0, 0.01])


def table(**scores):
    """One data set or several: label=[[seeds], ...]."""
    rows = [
        (label, f"d{d}", seed, float(score))
        for label, parts in scores.items()
        for d, part in enumerate(parts)
        for seed, score in enumerate(part)
    ]
    return pd.DataFrame(rows, columns=["label", "dataset", "seed", "score"])


def test_the_number_of_seeds_is_that_of_tables_of_the_t_test():
    # a difference of one standard deviation, 5 % two-sided, power 80 %: 17 in each group (Cohen)
    assert seeds_to_tell(1.0, 2.0, 1, 0.05) == 17
    assert seeds_to_tell(-0.5, 2.0, 1, 0.05) in (63, 64)  # 64 in the same tables
    assert seeds_to_tell(0.0, 2.0, 1, 0.05) is None
    assert seeds_to_tell(1e-6, 2.0, 1, 0.05) == MOST_SEEDS + 1
    # 2 / C(8, 4) = 0.029 is the first below 5 %; on four data sets three seeds are enough
    assert seeds_to_tell(100.0, 1.0, 1, 0.05) == least_seeds(1, 0.05) == 4
    assert least_seeds(4, 0.05) == 3


@pytest.mark.parametrize("datasets", [1, 4])
def test_one_seed_leads_nowhere_and_says_how_many_it_takes(datasets):
    text = verdict(not_distinguishable(table(a=[[0.9]] * datasets, b=[[0.1]] * datasets)))
    assert "ahead" not in text and "cannot be told" in text
    assert f"run at least {4 if datasets == 1 else 3} seeds of each method" in text


def test_inside_the_noise_nobody_is_ahead():
    close = verdict(not_distinguishable(table(a=[0.500 + NOISE] * 4, b=[0.503 + NOISE] * 4)))
    assert close.startswith("Which of these is best cannot be told: b, a.")
    assert "ahead" not in close and "inside the noise" in close
    # variance 1e-4 each: of the difference of means over 4 data sets 2e-4 / 4; n = 7.85 V / d^2
    assert "about 44 seeds" in close or "about 45 seeds" in close
    equal = verdict(not_distinguishable(table(a=[0.5 + NOISE] * 4, b=[0.5 + NOISE] * 4)))
    assert "ahead" not in equal and "the means are equal" in equal


def test_a_method_that_is_told_from_every_other_is_ahead():
    text = verdict(not_distinguishable(table(a=[0.8 + NOISE] * 4, b=[0.5 + NOISE] * 4)), "mean")
    assert text.startswith("a is ahead with 80.0 % (mean, 3 seeds)")


def test_the_spread_of_one_seed_is_taken_from_the_methods_that_have_more():
    found = not_distinguishable(table(a=[[0.55]], b=[0.5 + NOISE]))
    assert found.needed["b"] is not None and "about" in verdict(found)
