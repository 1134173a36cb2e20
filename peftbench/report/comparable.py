"""Which finished runs may be compared, and what their readers must know."""

from __future__ import annotations

import pandas as pd

from peftbench.report.tables import cells as tables
from peftbench.report.units import UNKNOWN, draws, units
from peftbench.report.words import commonest, first_of
from peftbench.results.arithmetic import arithmetic, several
from peftbench.results.record import Status

Remarks = dict[tuple[str, str], list[str]]  # by backbone and suite, as tables name them


def comparable(
    runs: pd.DataFrame, cells: pd.DataFrame, metric: str
) -> tuple[pd.DataFrame, Remarks]:
    """Finished runs that may be compared, with the columns of `statistics.scores`, and remarks.

    `runs` come from `tables.labelled` and `cells` from `tables.summary`, by the same metric. Runs
    keep all their columns. A cell that a table refuses to average is not among them, nor is a run
    on other weights, files or suite versions than most runs of its backbone and suite have; splits
    of one's own data set have the same files. `seed` is what `units` documents, `run_seed` the seed
    itself and `draw` the number of the split.
    """
    cells = cells[(cells["kind"] == tables.TASK) & (cells["state"] == tables.OK)]
    keys = ["backbone", "suite", "label", "column"]
    fine = set(cells[keys].fillna("").itertuples(index=False, name=None))
    runs = runs.assign(suite=runs["suite"].fillna(""), score=runs[metric])
    runs = runs[(runs["status"] == str(Status.OK)) & runs["score"].notna()]
    row_keys = runs[["heading", "suite", "label", "dataset"]].itertuples(index=False, name=None)
    runs = runs[pd.Series([key in fine for key in row_keys], index=runs.index, dtype=bool)]
    parts, remarks = list[pd.DataFrame](), Remarks()
    for (heading, suite), part in runs.groupby(["heading", "suite"], sort=True):
        usual = commonest(_texts(part["backbone_sha256"]))
        kept = part[part["backbone_sha256"].fillna("") == usual]
        for column in ("suite_version", "manifest"):
            text = _texts(kept[column]).where(kept["content"].isna(), "")
            common = text.groupby(kept["dataset"]).transform(commonest)
            kept = kept[text == common]
        notes = []
        if len(kept) < len(part):
            notes.append(f"{len(part) - len(kept)} runs on other weights or files are left out")
        budgets = kept[["tuner", "trials", "trial_epochs"]].drop_duplicates()
        if len(budgets) > 1:
            notes.append("hyper-parameters were searched with different budgets: see the table")
        notes += _arithmetic(kept)
        parts.append(kept)
        remarks[str(heading), str(suite)] = notes
    out = (pd.concat(parts) if parts else runs).reset_index(drop=True)
    seeds = out["seed"].fillna(UNKNOWN).astype(int)
    numbers = {"seed": units(out), "run_seed": seeds, "draw": draws(out)}
    return out.assign(**numbers, score=out["score"].astype(float)), remarks


def _texts(values: pd.Series) -> pd.Series:
    return values.astype("string").fillna("")


def _arithmetic(runs: pd.DataFrame) -> list[str]:
    """A remark where runs were computed in different arithmetic, with the methods of each."""
    names = ["label", "dtype", "device"]
    rows = runs[names].astype("string").fillna("").itertuples(index=False, name=None)
    by_label = [(label, arithmetic(dtype, device)) for label, dtype, device in rows]
    if not several(text for _, text in by_label):
        return []
    labels: dict[str, list[str]] = {}
    for label, text in sorted(by_label):
        labels.setdefault(text or "unknown arithmetic", []).append(label)
    parts = [
        f"{text}: {first_of(list(dict.fromkeys(those)), 3)} ({len(those)} runs)"
        if len(those) > 1
        else f"{text}: {those[0]} (1 run)"
        for text, those in sorted(labels.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return [f"runs computed in different arithmetic are compared; {'; '.join(parts)}"]
