"""What runs of one cell differ by, a split that was drawn and a seed, and which runs are apart."""

from __future__ import annotations

import pandas as pd

DRAW = ["split_seed", "fold"]
UNKNOWN = -1  # where a record does not say it


def places(table: pd.DataFrame) -> pd.Series[str]:
    """Where each run belongs: its suite, or one's own data set that is in none, by its name."""
    suite = table["suite"].astype("string").fillna("")
    if "content" not in table:  # of an older version, or made by hand
        return suite
    own = table["content"].notna() & (suite == "")
    return suite.mask(own, table["dataset"].astype("string").fillna(""))


def draws(runs: pd.DataFrame) -> pd.Series[int]:
    """Number of the drawn split of each run, the same for equal splits of one data set."""
    named = runs[["dataset", *DRAW]].astype("string").fillna("")
    return pd.Series(named.groupby(["dataset", *DRAW], sort=True).ngroup(), index=runs.index)


def units(runs: pd.DataFrame) -> pd.Series[int]:
    """The seed of each run; where a data set was split in several ways, split and seed as one.

    Such numbers count from 0 within the data set, so that tables, curves and tests that average
    over seeds average over splits as well.
    """
    seeds = runs["seed"].fillna(UNKNOWN).astype(int)
    drawn = draws(runs)
    result = seeds.copy()
    for _, rows in runs.groupby("dataset", dropna=False, sort=False).groups.items():
        if drawn[rows].nunique() > 1:
            both = pd.DataFrame({"draw": drawn[rows], "seed": seeds[rows]})
            result[rows] = both.groupby(["draw", "seed"], sort=True).ngroup()
    return result
