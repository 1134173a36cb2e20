"""Scores on val of final runs, which train on val: those of a trial of the same settings."""

from __future__ import annotations

import pandas as pd

from peftbench.results.columns import VAL

# what a run and its trial have in common; names of a recipe or of a data set mean nothing
SAME = [
    *("method", "method_version", "hyperparameters", "backbone_tag", "manifest", "recipe_settings"),
    *("preprocessing", "image_size", "drop_path", "precision", "limit", "data_settings"),
]


def with_vals(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows; final runs without a score on val have that of their trials, if there are any.

    The trial with the same seed counts, or the mean over the seeds of all. Most final runs train on
    train and val, so that only a run that trains on train alone, `phase=tune`, has seen val as
    new images.
    """
    tuned = table[(table["phase"] == "tune") & (table["status"] == "OK")]
    if tuned.empty:
        return table
    final = table["phase"] == "final"
    keys = _keys(table)
    result = table.copy()
    for name in VAL:
        known = tuned[name].notna()
        if not known.any():
            continue
        scores = tuned.loc[known, name].astype(float)
        settings, seeds = keys[scores.index], tuned.loc[known, "seed"]
        exact = scores.groupby([settings, seeds]).mean().to_dict()  # without runs of no seed
        mean = scores.groupby(settings).mean().to_dict()
        for row in table.index[final & table[name].isna()]:
            value = exact.get((keys[row], table.at[row, "seed"]), mean.get(keys[row]))
            if value is not None:
                result.at[row, name] = value
    return result


def _keys(table: pd.DataFrame) -> pd.Series[int]:
    """One number for equal settings on equal splits."""
    texts = table[SAME].astype("string").fillna("")
    return texts.groupby(SAME, sort=False).ngroup()
