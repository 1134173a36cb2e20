"""Promises of the collection of published numbers: what it holds, and that its sums add up."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import pytest

from peftbench.errors import ConfigError
from peftbench.results import published

NATURAL = ("cifar100", "caltech101", "dtd", "flowers102", "pets", "svhn", "sun397")
SPECIALIZED = ("patch_camelyon", "eurosat", "resisc45", "retinopathy")
STRUCTURED = (
    *("clevr_count", "clevr_distance", "dmlab", "kitti", "dsprites_location"),
    *("dsprites_orientation", "smallnorb_azimuth", "smallnorb_elevation"),
)
FGVC = ("cub200", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars")
SHOTS = ("fgvc_aircraft", "food101", "flowers102", "pets", "stanford_cars")
FULL_DATA = ("cifar100", "svhn", "food101", "pets", "fgvc_aircraft", "stanford_cars")
SHIFTED = ("imagenet_1k", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")

# quantity of checks.csv -> suite, groups of data sets whose means are averaged, stored average
QUANTITIES = {
    "natural": ("vtab1k", (NATURAL,), "mean_natural"),
    "specialized": ("vtab1k", (SPECIALIZED,), "mean_specialized"),
    "structured": ("vtab1k", (STRUCTURED,), "mean_structured"),
    "mean_groups": ("vtab1k", (NATURAL, SPECIALIZED, STRUCTURED), "mean_groups"),
    "mean_19": ("vtab1k", (NATURAL + SPECIALIZED + STRUCTURED,), "mean_19"),
    "fgvc": ("fgvc", (FGVC,), "mean_fgvc"),
    "full-data image avg": ("full_data_image", (FULL_DATA,), ""),
    "domain generalization mean": ("imagenet16shot_dg", (SHIFTED,), ""),
    **{f"fewshot avg {k}-shot": (f"fewshot_fgvc_{k}shot", (SHOTS,), "") for k in (1, 2, 4, 8, 16)},
}
PRINTED_MEANS = {g[0]: average for _, g, average in QUANTITIES.values() if len(g) == 1}
# method, quantity: cells or the printed mean were left out, but for NOAH's LoRA
FAILED = {
    ("VPT-Shallow", "structured"),
    ("VPT-Deep", "structured"),
    ("LoRA", "mean_groups"),
    ("LoRA_mul+VPT_add", "fewshot avg 8-shot"),
    ("VPT", "full-data image avg"),
    ("VPT", "domain generalization mean"),
}
# two sources disagree on a cell of these (DTD, Sun397, SVHN), so it is not stored
HOLES = {("Full", "swin_b", "natural"), ("VPT-Deep", "swin_b", "natural")}


@pytest.fixture(scope="module")
def table():
    return published.read()


@pytest.fixture(scope="module")
def cells():
    """(file, paper, method, backbone, suite, data set) -> [(weights, value)], suspects included."""
    found = {}
    for row in published.read(low_confidence=True).to_dict("records"):
        key = tuple(row[name] for name in ("paper", "method", "backbone", "suite", "dataset"))
        found.setdefault(key, []).append((row["pretrain"], row["top1"]))
    return found


def test_every_file_holds_the_numbers_that_were_collected(table) -> None:
    # rows as counted in the description of the collection: 2,734 in all
    assert table["file"].value_counts().to_dict() == {
        "adapter_plus2024.csv": 16,
        "convpass2022.csv": 111,
        "dyt2024.csv": 110,
        "fact2023.csv": 42,
        "fewshot_fgvc_noah_fact.csv": 125,
        "hta2024.csv": 308,
        "noah2022.csv": 59,
        "osu_peft_vision_repo.csv": 458,
        "pace2024.csv": 245,
        "ssf2022.csv": 27,
        "vfpt2024.csv": 150,
        "vpetl2024.csv": 486,
        "vpt2022.csv": 597,
    }
    assert not table["low_confidence"].any()
    suspects = published.read(low_confidence=True)
    assert suspects["low_confidence"].sum() == 4 + 24 + 6
    assert {c.name: c.dtype for c in published.COLUMNS} == table.dtypes.astype(str).to_dict()
    # as printed: 79.8 stays 79.8
    row = table[(table["paper"] == "VPT") & (table["method"] == "MLP-3")]
    fgvc = row[row["dataset"] == "mean_fgvc"].iloc[0]
    assert (fgvc["top1"], fgvc["printed"]) == (79.8, "79.8")


def mean_of(check: dict[str, str], cells) -> float | None:
    """The mean that a check is about, or `None` where a cell of it is not stored."""
    suite, groups, _ = QUANTITIES[check["quantity"]]
    means = []
    for group in groups:
        values = [value_of(check, suite, name, cells) for name in group]
        if values == [None] * len(group) and len(groups) > 1:  # only the group's mean is printed
            values = [value_of(check, suite, PRINTED_MEANS[group], cells)]
        if None in values:
            return None
        means.append(fmean(values))
    return fmean(means)


def value_of(check: dict[str, str], suite: str, name: str, cells) -> float | None:
    """One stored number; its weights are those of the check where the file has several."""
    key = (check["paper"], check["method"], check["backbone"], suite, name)
    found = dict(cells.get(key, []))
    if len(found) == 1:
        return next(iter(found.values()))
    return found.get(check["pretrain"])


def test_printed_means_are_the_means_of_the_stored_cells(cells) -> None:
    with open(published.folder() / published.CHECKS, encoding="utf-8", newline="") as file:
        checks = list(csv.DictReader(file))
    assert len(checks) == 267
    compared = failed = 0
    holes = set()
    for check in checks:
        name = (check["method"], check["quantity"])
        mean, printed = mean_of(check, cells), float(check["printed"])
        if not check["result"].startswith("pass"):
            failed += 1
            assert name in FAILED
            # nothing stored can be averaged into the contradiction, but for NOAH's LoRA
            assert mean is None or name == ("LoRA", "mean_groups"), check
            continue
        if mean is None:
            holes.add((check["method"], check["backbone"], check["quantity"]))
            continue
        compared += 1
        assert mean == pytest.approx(float(check["mean_of_rows"]), abs=5.1e-4), check
        one_decimal = len(f"{printed:g}".partition(".")[2]) < 2
        assert abs(mean - printed) <= (0.11 if one_decimal else 0.06), check
        average = QUANTITIES[check["quantity"]][2]
        stored = value_of(check, QUANTITIES[check["quantity"]][0], average, cells)
        assert stored in (None, printed), check
    assert (compared, failed, holes) == (259, 6, HOLES)


def test_vpt_deep_beats_full_fine_tuning_on_20_of_24_tasks(table) -> None:
    rows = table[(table["paper"] == "VPT") & (table["pretrain"] == "sup_in21k_orig")]
    value = {
        (row["method"], row["suite"], row["dataset"]): row["top1"]
        for row in rows.to_dict("records")
    }
    names = [("vtab1k", name) for name in NATURAL + SPECIALIZED + STRUCTURED]
    names += [("fgvc", name) for name in FGVC]
    assert len(names) == 24
    assert sum(value["VPT-Deep", *name] > value["Full", *name] for name in names) == 20


def test_an_overlay_has_no_copies(table) -> None:
    kept = published.overlay(table)
    names = ["paper", "method", "suite"]
    dropped = set(table[names].itertuples(index=False, name=None)) - set(
        kept[names].itertuples(index=False, name=None)
    )
    # V-PETL's rows that equal VPT's, NOAH's, Convpass's, FacT's and SSF's cell by cell. Its
    # RepAdapter does too, but the original is not in the collection.
    vtab = ("Full fine-tuning", "Linear probing", "VPT-Shallow", "VPT-Deep", "BitFit", "Adapter")
    vtab += ("LoRA", "NOAH", "AdaptFormer", "SSF", "FacT")
    fgvc = ("Full fine-tuning", "Linear probing", "VPT-Shallow", "VPT-Deep", "SSF", "Adapter")
    assert dropped == {("V-PETL Bench", name, "vtab1k") for name in vtab} | {
        ("V-PETL Bench", name, "fgvc") for name in fgvc
    }
    assert len(table) - len(kept) == 11 * 20 + 6 * 6
    low = published.overlay(published.read(low_confidence=True))
    assert len(low) == len(kept)


HEAD = ",".join(column.name for column in published.RAW_COLUMNS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["paper,top1", "A,1"], "has the columns paper, top1. Published numbers need paper"),
        ([HEAD, "A,Full,b,p,s,d,high,,unknown,x"], "line 2: could not convert string to float"),
        ([HEAD, "A,Full,b,p,s,d,101,,unknown,x"], "line 2 has top1=101, which is no percentage"),
        ([HEAD, "A,Full,b,p,s,d,50,,guess,x"], "line 2 has params_convention=guess"),
        ([HEAD, "A,Full,b,p,s,d,50,,unknown,"], "line 2 has no source"),
        ([HEAD, *["A,Full,b,p,s,d,50,,unknown,x"] * 2], "holds A, Full, b, p, s, d twice"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        published.read(tmp_path)
    assert message in str(refused.value) and "a.csv" in str(refused.value)
    assert "\n" not in str(refused.value)
