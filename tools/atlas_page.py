"""The method atlas: `peftbench/report/atlas.json`, and `docs/atlas.md` from it.

Counts are taken from the file as it is where the key of a method is unchanged; a new or changed
method is counted, which takes a few seconds each. `--recount` counts all. Alone this goes on where
it stopped.

    python tools/atlas_page.py [--recount]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import atlas_counts  # noqa: E402 - beside this file

from peftbench.methods import METHODS, Method, discover  # noqa: E402
from peftbench.report import atlas  # noqa: E402
from peftbench.report.atlas import (  # noqa: E402
    NONE,
    Atlas,
    AtlasEntry,
    MeasuredRatio,
    OwnMean,
    PublishedMean,
)
from peftbench.results import published  # noqa: E402
from peftbench.results.settings import settings_of, settings_text  # noqa: E402
from peftbench.results.table_files import read_table  # noqa: E402

GENERATED = "<!-- written by `make docs`; do not edit -->\n"
PAPERS = Path(__file__).with_name("vtab_published.toml")
SUITES = ROOT / "experiments" / "tables" / "_suites.yaml"
OWN = ROOT / "results" / "mini" / "table.csv"
LATENCIES = ROOT / "results" / "benchmarks"
PLAIN = "sup_in21k_orig"  # of a paper that has rows on several weights, those of ViT-B_16.npz
DIGITS = 2  # of means that are worked out here

LEAD = (
    "All is of default hyper-parameters, and an empty cell (–) is not known. Formulas and sources"
    " are in [methods.md](methods.md), other backbones and settings in "
    "[parameters.md](parameters.md), what works where in [support.md](support.md)."
)
PLACES = (
    "roles of the sites that it touches, and how many, found by attaching it without weights to the"
    f" first of {', '.join(atlas_counts.BACKBONES)} that takes it. What lies beside a branch reads "
    "the stream where the branch does: at the norm before it."
)
STORED = (
    "bytes of the tensors in the file of a task of {classes} classes, which was really written; "
    "without the head, and those of the head."
)
KEPT = (
    "activations that a batch of {batch} images keeps for the backward pass over those of full "
    "fine-tuning, counted in float32 as `peftbench profile --meta` does."
)
LATENCY = (
    "a forward pass of the model as trained, not folded, over that of the plain backbone: median of"
    " turns in one process, and the least and greatest. A folded model is the plain backbone."
)
OURS = (
    "accuracy in percent, mean of the embedded data sets, and standard deviation over seeds, from "
    "the runs in [results/mini](../results/mini/table.csv) of the method as it is now."
)
PRINTED = (
    "ViT-B/16, percent. Two averages are in use, up to 3.4 points apart on the same runs: the mean "
    "of the 19 tasks (flat), and the mean of the means of the three groups. A column holds one of "
    "them, and a table one set of weights. Numbers in *italics* are worked out here of the 19 tasks"
    " that the paper prints. Scores of the epoch that is best on the test images are higher than "
    "those of the last one; – is not told. Settings are those of the papers, not always ours."
)


def made(recount: bool = False, keep: Callable[[str], object] = lambda text: None) -> Atlas:
    """The atlas of all registered methods with their default hyper-parameters, as of now.

    `keep` gets the text of a file with the counts so far, whenever a method was counted.
    """
    discover()
    kept = {} if recount else atlas.read().entries
    papers, own, (about, ratios) = published_means(), own_means(), latencies(LATENCIES)
    entries = {}
    for name in METHODS:
        method = METHODS[name]()
        key = atlas_counts.key_of(method)
        found = kept.get(name)
        if found is None or found.key != key:
            print(f"counting {name}", file=sys.stderr, flush=True)
            found = atlas_counts.counted(method)
            so_far = {**kept, **entries, name: found}
            keep(atlas.written(Atlas(atlas_counts.CLASSES, atlas_counts.BATCH, {}, so_far)))
        entries[name] = dataclasses.replace(
            found,
            latency=ratios.get((name, key, found.backbone)),
            published=papers.get(name, ()),
            own=own_of(method, own),
        )
    used = any(entry.latency for entry in entries.values())
    return Atlas(atlas_counts.CLASSES, atlas_counts.BATCH, about if used else {}, entries)


Ratios = Mapping[tuple[str, str, str], MeasuredRatio]  # by name, key and backbone


def latencies(folder: Path) -> tuple[dict[str, str], Ratios]:
    """Of the machine that measured most methods: what it is, and the ratios.

    Those of several machines are never mixed.
    """
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("atlas_*.json"))]
    best = max(files, key=lambda content: len(content["rows"]), default=None)
    rows = [] if best is None else [row for row in best["rows"].values() if "ratio" in row]
    if best is None or not rows:
        return {}, {}
    dates = sorted(row["measured"] for row in rows)
    about = {name: str(best[name]) for name in ("device", "dtype", "threads")}
    about |= {"first": dates[0], "last": dates[-1]}
    ratios = {
        (row["method"], row["key"], row["backbone"]): MeasuredRatio(
            *(round(row[name], 4) for name in ("ratio", "low", "high"))
        )
        for row in rows
    }
    return about, ratios


def own_means() -> pd.DataFrame:
    """Scores of the runs that the repository keeps, all finished and of one recipe and phase."""
    return read_table(OWN)


def own_of(method: Method, runs: pd.DataFrame) -> dict[str, OwnMean]:
    """By backbone, the mean over the data sets of the runs of `method` as it is now.

    Empty where a data set that others have is missing, for it would be a mean of something else.
    """
    identity = method.identity()
    wanted = settings_of(settings_text(identity["hyperparameters"]))  # in whatever order
    same = runs[(runs["method"] == method.name) & (runs["method_version"] == identity["version"])]
    settings = same["hyperparameters"].fillna("")
    same = same[settings.map(lambda text: settings_of(text) == wanted).astype(bool)]
    found = {}
    for backbone, part in same.groupby("backbone", sort=False):
        tasks = runs.loc[runs["backbone"] == backbone, "dataset"].nunique()
        seeds = part.groupby("seed")["top1"].agg(["size", "mean"])
        if not (seeds["size"] == tasks).all() or part["dataset"].nunique() != tasks:
            continue
        scores = 100 * seeds["mean"].astype(float)
        deviation = round(float(scores.std()), DIGITS) if len(scores) > 1 else None
        mean = round(float(scores.mean()), DIGITS)
        found[str(backbone)] = OwnMean(mean, deviation, len(scores), int(tasks))
    return found


def published_means() -> dict[str, tuple[PublishedMean, ...]]:
    """What papers print of each method on VTAB-1k with ViT-B/16."""
    told = tomllib.loads(PAPERS.read_text(encoding="utf-8"))
    table = published.read()
    table = table[(table["suite"] == "vtab1k") & (table["backbone"] == "vit_b16")]
    return {
        name: tuple(_mean_of(row, table, told["epochs"]) for row in rows)
        for name, rows in told["methods"].items()
    }


def _mean_of(row: Mapping[str, str], table: pd.DataFrame, epochs: Mapping[str, str]) -> Any:
    if "source" in row:
        flat, groups = row.get("flat", ""), row.get("groups", "")
        return PublishedMean(row["row"], row["weights"], flat, groups, (), "", row["source"])
    paper, _, name = row["row"].partition(" / ")
    cells = table[(table["paper"] == paper) & (table["method"] == name)]
    weights = list(dict.fromkeys(map(str, cells["pretrain"])))
    if not weights:
        raise ValueError(f"{PAPERS.name}: results/published has no {row['row']}")
    chosen = PLAIN if PLAIN in weights else weights[0]
    if len(weights) > 1 and chosen != PLAIN:
        chosen = next(one for one in weights if one.startswith("sup_"))
    cells = cells[cells["pretrain"] == chosen]
    printed = dict(zip(cells["dataset"], cells["printed"], strict=True))
    worked_out = computed({task: float(text) for task, text in printed.items()})
    flat, groups = (
        (str(printed[average]), "") if average in printed else (worked_out.get(average, ""), key)
        for average, key in (("mean_19", "flat"), ("mean_groups", "groups"))
    )
    here = tuple(key for text, key in (flat, groups) if text and key)
    source = f"results/published/{cells['file'].iloc[0]}"
    epoch = epochs.get(paper, "")
    return PublishedMean(f"{paper}: {name}", chosen, flat[0], groups[0], here, epoch, source)


def computed(cells: Mapping[str, float]) -> dict[str, str]:
    """Both means of the 19 tasks of VTAB-1k, in percent; none where a task is missing."""
    groups = [
        [cells[task] for task in tasks if task in cells] for tasks in _groups_of_vtab().values()
    ]
    tasks = [value for group in groups for value in group]
    if len(tasks) != sum(map(len, _groups_of_vtab().values())):
        return {}
    means = [sum(group) / len(group) for group in groups]
    flat, grouped = sum(tasks) / len(tasks), sum(means) / len(means)
    return {"mean_19": f"{flat:.{DIGITS}f}", "mean_groups": f"{grouped:.{DIGITS}f}"}


@cache
def _groups_of_vtab() -> dict[str, tuple[str, ...]]:
    groups = yaml.safe_load(SUITES.read_text(encoding="utf-8"))["vtab"]["groups"]
    return {name: tuple(group["tasks"]) for name, group in groups.items()}


def page(content: Atlas) -> str:
    """The atlas as Markdown."""
    scored = Counter(backbone for entry in content.entries.values() for backbone in entry.own)
    backbones = [backbone for backbone, _ in scored.most_common()]
    measured = atlas.about_latency(content)
    said = [
        f"**acts at**: {PLACES}",
        "**tuned**: parameters without the head.",
        f"**stored**, **head**: {STORED.format(classes=content.classes)}",
        f"**kept**: {KEPT.format(batch=content.batch)}",
        "**folds**: whether the tuned model becomes a plain backbone.",
        f"**latency**: {LATENCY} " + (f"{measured}." if measured else "Not measured yet."),
        *([f"**ours**: {OURS}"] if backbones else []),
    ]
    lines = [
        GENERATED + "# Method atlas",
        "",
        "Where does each method act, what does it cost, and what is known of its accuracy?",
        "",
        _filled(LEAD),
        "",
        *_costs(content, backbones),
        "",
        *(_filled(f"* {text}", subsequent_indent="  ") for text in said),
        *_remarks(content),
        "",
        *_published(content),
    ]
    return "\n".join(lines) + "\n"


def _filled(text: str, subsequent_indent: str = "") -> str:
    return textwrap.fill(
        text,
        110,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _costs(content: Atlas, backbones: Sequence[str]) -> Iterator[str]:
    head = ["method", "on", "acts at", "tuned", "stored", "head", "kept", "folds", "latency"]
    yield _row([*head, *(f"ours, {name}" for name in backbones)])
    yield _row([*["---"] * 3, *["---:"] * 4, ":---:", "---:", *["---:"] * len(backbones)])
    for name, entry in content.entries.items():
        folds = atlas.FOLDING[entry.folding] if entry.backbone else NONE
        cells = [
            f"`{name}`",
            entry.backbone or NONE,
            entry.places,
            NONE if entry.tuned is None else f"{entry.tuned:,}",
            atlas.size(entry.stored_bytes),
            atlas.size(entry.head_bytes),
            entry.kept,
            folds,
            _span(entry),
        ]
        yield _row([*cells, *(atlas.own_text(entry.own.get(backbone)) for backbone in backbones)])


def _span(entry: AtlasEntry) -> str:
    found = entry.latency
    return NONE if found is None else f"{entry.slower} ({found.low:.2f} to {found.high:.2f})"


def _remarks(content: Atlas) -> Iterator[str]:
    by_text: dict[str, list[str]] = {}
    for name, entry in content.entries.items():
        for remark in entry.remarks:
            by_text.setdefault(remark, []).append(f"`{name}`")
    if by_text:
        yield ""
        yield "Remarks:"
        yield ""
    for text, names in by_text.items():
        yield f"* {', '.join(names)}: {_escaped(text)}"


def _published(content: Atlas) -> Iterator[str]:
    yield "## What papers print on VTAB-1k"
    yield ""
    yield _filled(PRINTED)
    rows = [(name, mean) for name, entry in content.entries.items() for mean in entry.published]
    for weights, title in atlas.WEIGHTS.items():
        chosen = [(name, mean) for name, mean in rows if mean.weights == weights]
        if not chosen:
            continue
        yield from ("", f"### {title[:1].upper()}{title[1:]}", "")
        yield _row(["method", "row of the source", "flat", "groups", "epoch", "source"])
        yield _row(["---", "---", "---:", "---:", "---", "---"])
        for name, mean in chosen:
            flat, groups = (
                f"*{text}*" if key in mean.computed else text or NONE
                for key, text in (("flat", mean.flat), ("groups", mean.groups))
            )
            epoch, source = mean.epoch or NONE, _linked(mean.source)
            yield _row([f"`{name}`", _escaped(mean.row), flat, groups, epoch, source])


def _linked(source: str) -> str:
    if not source.startswith("results/"):
        return source
    return f"[{source.rpartition('/')[2]}](../{source})"


def _escaped(text: str) -> str:
    """Signs of formulas are no emphasis in Markdown, nor the end of a cell."""
    for sign in ("*", "<", "|"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    def keep(text: str) -> None:
        atlas.FILE.write_text(text, encoding="utf-8")

    content = made("--recount" in sys.argv[1:], keep)
    atlas.FILE.write_text(atlas.written(content), encoding="utf-8")
    (ROOT / "docs" / "atlas.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    main()
