"""Published numbers: what papers and released logs print, one number a row, each with its source.

The files are facts about papers and no results of this project. They are shown beside measured
cells and never fill one. `results/published/README.md` tells how they were obtained and checked.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from peftbench import shipped
from peftbench.errors import ConfigError
from peftbench.results.columns import Column

RAW_COLUMNS = (
    Column("paper", "string", "who printed it; '(reprint)': taken from the table of a later paper"),
    Column("method", "string", "as that paper calls it"),
    Column("backbone", "string", "vit_b16, vit_l16, swin_b, convnext_b or resnet50"),
    Column("pretrain", "string", "weights: sup_in21k_orig is ViT-B_16.npz, sup_in21k is unknown"),
    Column("suite", "string", "vtab1k, fgvc, fewshot_fgvc_16shot, cifar100_full, ..."),
    Column("dataset", "string", "of the suite, or an average: mean_natural, mean_groups, mean_19"),
    Column("top1", "Float64", "top-1 accuracy in percent, as printed"),
    Column("params_m", "Float64", "millions of tuned parameters, where the paper says"),
    Column("params_convention", "string", "head_included, head_excluded or unknown"),
    Column("source", "string", "table, figure, file or thread that the number was read from"),
)
COLUMNS = (
    *RAW_COLUMNS,
    Column("printed", "string", "the digits of top1 as they stand in the source"),
    Column("file", "string", "of this collection"),
    Column("reprint", "boolean", "whether a later paper repeats it and the original was not read"),
    Column("low_confidence", "boolean", "a single unconfirmed source, or it looks wrong"),
)
CHECKS = "checks.csv"  # printed means against means of the rows
LOW_CONFIDENCE = "low_confidence"  # folder
CONVENTIONS = ("head_included", "head_excluded", "unknown")
KEY = ["paper", "method", "backbone", "pretrain", "suite", "dataset"]
COMPILATIONS = ("V-PETL Bench",)  # tables that repeat rows of other papers under their own name


def folder() -> Path:
    """Where the files are: `results/published` of a clone, or inside an installed package."""
    return shipped.folder("published", "results/published", CHECKS)


def read(place: Path | None = None, *, low_confidence: bool = False) -> pd.DataFrame:
    """Every published number with the columns and dtypes of `COLUMNS`, in the order of the files.

    Numbers of low confidence are left out unless asked for.

    Raises:
        ConfigError: a file has other columns, a text where a number belongs, or a number twice.
    """
    place = folder() if place is None else place
    paths = [path for path in sorted(place.glob("*.csv")) if path.name != CHECKS]
    if low_confidence:
        paths += sorted((place / LOW_CONFIDENCE).glob("*.csv"))
    rows = [row for path in paths for row in _rows(path, place)]
    table = pd.DataFrame(
        {
            column.name: pd.array([row[column.name] for row in rows], dtype=_dtype(column))
            for column in COLUMNS
        }
    )
    twice = table[table.duplicated(["file", *KEY])]
    if len(twice):
        first = ", ".join(str(twice.iloc[0][name]) for name in KEY)
        raise ConfigError(f"{place / str(twice.iloc[0]['file'])} holds {first} twice. Keep one.")
    return table


def overlay(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that may stand beside measured numbers without counting one twice.

    Left out: numbers of low confidence, a reprint where the original is there too, and the rows
    that a compilation repeats from another paper cell by cell. Averages stay; `mean_groups` and
    `mean_19` are different quantities.
    """
    kept = table[~table["low_confidence"]]
    same = ["method", "backbone", "pretrain", "suite", "dataset"]
    first = kept[~(kept["reprint"] | kept["paper"].isin(COMPILATIONS))]
    originals = set(first[same].itertuples(index=False, name=None))
    keys = kept[same].itertuples(index=False, name=None)
    known = pd.Series([key in originals for key in keys], index=kept.index, dtype="boolean")
    kept = kept[~(kept["reprint"] & known)]
    copied = _copies(kept)
    names = kept[["paper", "method", "backbone", "suite"]].itertuples(index=False, name=None)
    return kept[[name not in copied for name in names]].reset_index(drop=True)


def is_average(dataset: str) -> bool:
    """Whether a dataset of the files is an average that the paper prints."""
    return dataset.startswith("mean_")


def _copies(table: pd.DataFrame) -> set[tuple[str, ...]]:
    """Paper, method, backbone and suite of rows that equal those of another paper cell by cell.

    Weights are not compared: a compilation rarely knows them.
    """
    tasks = table[[not is_average(name) for name in table["dataset"]]]
    copies, originals = [], []
    for key, part in tasks.groupby(KEY[:-1], sort=False):
        paper, method, backbone, _, suite = map(str, key)
        values = part["top1"].astype(float)
        cells = dict(zip(part["dataset"].astype(str), values, strict=True))
        if paper in COMPILATIONS:
            copies.append(((paper, method, backbone, suite), cells))
        else:
            originals.append(((backbone, suite), cells))
    return {key for key, cells in copies if len(cells) > 1 and (key[2:], cells) in originals}


def _rows(path: Path, place: Path) -> list[Mapping[str, Any]]:
    wanted = [column.name for column in RAW_COLUMNS]
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if list(reader.fieldnames or ()) != wanted:
            raise ConfigError(
                f"{path} has the columns {', '.join(reader.fieldnames or ()) or 'none'}. "
                f"Published numbers need {', '.join(wanted)}."
            )
        shared = {
            "file": path.relative_to(place).as_posix(),
            "low_confidence": path.parent.name == LOW_CONFIDENCE,
        }
        return [{**_row(raw, path, number), **shared} for number, raw in enumerate(reader, 2)]


def _row(raw: Mapping[str, Any], path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number}"
    for name in (*KEY, "top1", "params_convention", "source"):
        if not raw.get(name):
            raise ConfigError(f"{where} has no {name}. Every published number needs one.")
    if raw["params_convention"] not in CONVENTIONS:
        raise ConfigError(
            f"{where} has params_convention={raw['params_convention']}. "
            f"Use one of: {', '.join(CONVENTIONS)}."
        )
    try:
        top1 = float(raw["top1"])
        params = float(raw["params_m"]) if raw["params_m"] else pd.NA
    except ValueError as error:
        raise ConfigError(f"{where}: {error}. Write a number, or leave params_m empty.") from error
    if not 0 <= top1 <= 100:
        raise ConfigError(f"{where} has top1={raw['top1']}, which is no percentage.")
    return {
        **raw,
        "top1": top1,
        "params_m": params,
        "printed": raw["top1"],
        "reprint": raw["paper"].endswith("(reprint)"),
    }


def _dtype(column: Column) -> Any:
    return column.dtype
