"""What the page has of each data set whose pictures can be looked at, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftbench.report.page.images import counting, finding, pictures
from peftbench.report.page.images.pictures import CheckedPictures
from peftbench.report.page.images.runs import ShownRun, Sources, groups, with_predictions
from peftbench.report.page.images.tested import Fold, Said, Tested, pooled, tested
from peftbench.report.page.images.thumbnails import Room
from peftbench.report.page.images.trials import Index, by_cell, trials
from peftbench.report.view import Views
from peftbench.report.words import commonest
from peftbench.results.record import RunRecord
from peftbench.spec import called
from peftbench.tasks import PER_CLASS
from peftbench.untrusted import printable

MOST_DATASETS = 12
MOST_IMAGES = 100_000  # images times runs of the page; each takes about 8 bytes
MOST_RUNS = 40  # of a data set
MOST_NAMES = 5_000  # of a data set
MOST_CHARACTERS = 2_000_000  # of all pictures of the page
MOST_PICTURES = 360  # of the page, each of which is decoded
WITHOUT = "Pictures and the names of their files are left out."
DIGITS = 4


def parts(views: Views, sources: Sources) -> list[dict[str, Any]]:
    """One entry for each data set of one's own, and of those that ship, with its runs.

    Pictures come from the files of the data set, where it is on this machine and is what the runs
    saw. They are small, and so few that the page stays below `MOST_CHARACTERS` of them.
    """
    every = groups(views, sources)[:MOST_DATASETS]
    left, found = MOST_IMAGES, []
    for place, runs in enumerate(every):
        most = left // (len(every) - place)
        read, used = with_predictions(runs, sources.store, most, MOST_RUNS)
        left -= used
        if any(run.predictions is not None for run in read):
            found.append(read)
    room, index = Room(MOST_CHARACTERS, MOST_PICTURES), by_cell(sources.records.values())
    result = []
    for place, runs in enumerate(found):
        result.append(_part(runs, index, sources, room.part(len(found) - place)))
    return _told_apart(result)


def _part(every: Sequence[ShownRun], index: Index, sources: Sources, room: Room) -> dict[str, Any]:
    shown = [run for run in every if run.predictions is not None]
    best, data = shown[0].record, tested(shown, sources.store)
    folded = shown[0].fold is not None
    said = [pooled(runs, data) for runs in _together(shown).values()]
    part: dict[str, Any] = {
        "name": printable(_name(best)),
        "manifest": str(best.spec["dataset"]["manifest"])[:8],
        "classes": list(data.class_names),
        "labels": data.labels.tolist(),
        "counts": _counts(data.folds),
        "majority": _majority(data.folds),
        "folds": [_fold(fold) for fold in data.folds] if folded else None,
        "folds_in_all": best.spec["dataset"].get("folds"),
        "remark": data.remark if sources.pictures else WITHOUT,
        "names": None,
        "thumbs": {},
        "samples": None,
        "rows": _rows(every, index, data),
    }
    if sources.pictures and data.names is not None:
        numbers = _worth_a_name(said, len(data.labels))
        part["names"] = {str(number): printable(data.names[number]) for number in numbers}
    if sources.pictures and data.listing is not None and data.names is not None:
        opened = CheckedPictures(data.listing, data.names, data.digests)
        preprocessing = finding.preprocessing_of(best)
        if preprocessing is not None:
            part["samples"] = pictures.samples(opened, preprocessing, room)
        part["thumbs"] = pictures.mistakes(opened, said, room)
    return part


def _together(runs: Sequence[ShownRun]) -> dict[tuple[Any, ...], list[ShownRun]]:
    """The runs of each row and seed: one, or one on each fold."""
    found: dict[tuple[Any, ...], list[ShownRun]] = {}
    times: Counter[tuple[Any, ...]] = Counter()
    for run in runs:
        row = run.heading, run.label, run.record.spec["seed"]
        times[*row, run.fold] += 1  # one that is there twice is not put together with itself
        found.setdefault((*row, times[*row, run.fold]), []).append(run)
    return {key: sorted(mine, key=lambda run: run.fold or 0) for key, mine in found.items()}


def _name(record: RunRecord) -> str:
    """Of a data set as tables call it, and how many folds it has."""
    dataset = record.spec["dataset"]
    if not dataset.get("folds"):
        return called(dataset)
    drawn = f" of split seed {dataset['split_seed']}" if dataset.get("split_seed") else ""
    return f"{called(dataset)}, {dataset['folds']} folds{drawn}"


def _counts(folds: Sequence[Fold]) -> Mapping[str, list[int]]:
    """Images of each class by split; of test alone where folds take turns as it."""
    if len(folds) == 1:
        return folds[0].counts
    each = [fold.counts["test"] for fold in folds]
    return {"test": [sum(counts) for counts in zip(*each, strict=True)]}


def _majority(folds: Sequence[Fold]) -> dict[str, Any] | None:
    """The largest class of what trained, and what it would reach by itself, on all folds."""
    known = [(fold.majority, fold.images) for fold in folds if fold.majority is not None]
    if len(known) < len(folds):
        return None
    right = sum(found.share * images for found, images in known)
    number = commonest(found.number for found, _ in known)
    return {"class": number, "share": _rounded(right / sum(images for _, images in known))}


def _fold(fold: Fold) -> dict[str, Any]:
    found = {"fold": fold.number, "start": fold.start, "counts": fold.counts}
    return {**found, "majority": _majority([fold])}


def _rows(runs: Sequence[ShownRun], index: Index, data: Tested) -> list[dict[str, Any]]:
    """One entry for each method and backbone, the best first, with its runs by seed.

    Where a data set has folds, what its runs with one seed said of all images comes before them.
    """
    by_row: dict[tuple[str, str], list[ShownRun]] = {}
    for run in runs:
        by_row.setdefault((run.heading, run.label), []).append(run)
    rows = []
    for (heading, label), mine in by_row.items():
        shown = [run for run in mine if run.predictions is not None]
        folded = mine[0].fold is not None
        every = _together(shown).values() if folded else ()
        together = [one for one in every if len(one) > 1]
        places = {run.record.run_id: place for place, run in enumerate(mine, len(together))}
        rows.append(
            {
                "backbone": heading,
                "label": label,
                "method": str(mine[0].record.spec["method"]["name"]),
                "runs": [
                    *(_all_folds(each, places, data) for each in together),
                    *(_run(run, index if folded else None, data) for run in mine),
                ],
                "trials": [] if folded or not shown else trials(shown[0].record, index),
            }
        )
    return rows


def _all_folds(runs: Sequence[ShownRun], places: Mapping[str, int], data: Tested) -> dict[str, Any]:
    """What runs with one seed on different folds said, each image once."""
    said = pooled(runs, data)
    matrix = counting.confusions(said.labels, said.classes, len(data.class_names))
    recall = [one for one in counting.per_class(matrix).recall if one is not None]
    return {
        "seed": runs[0].record.spec["seed"],
        "of": [places[run.record.run_id] for run in runs],
        PER_CLASS: _rounded(sum(recall) / len(recall)),
        **_classes(matrix),
    }


def _run(run: ShownRun, index: Index | None, data: Tested) -> dict[str, Any]:
    """Numbers of one run; of the images only where the page has its predictions.

    With its trials among those of `index`, where there is one.
    """
    record = run.record
    told: dict[str, Any] = {
        "id": record.run_id,
        "seed": record.spec["seed"],
        # a method that took no epoch has no rate, whatever its recipe says
        "lr": record.spec["recipe"].get("lr") if record.history else None,
        "tuning": record.tuning or None,
        PER_CLASS: _rounded(record.reported(PER_CLASS)),
    }
    if run.fold is not None:
        told["fold"] = run.fold
    predictions = run.predictions
    if predictions is None:
        return told
    count = len(data.class_names)
    matrix = counting.confusions(predictions.labels, predictions.classes, count)
    percent = np.nan_to_num(100 * predictions.confidence.astype(np.float64))
    return told | {
        **_classes(matrix),
        "said": predictions.classes.tolist(),
        "percent": np.clip(np.round(percent), 0, 100).astype(int).tolist(),
        **({} if index is None else {"trials": trials(record, index)}),
    }


def _classes(matrix: np.ndarray) -> dict[str, Any]:
    """What confusions (C, C) say of the classes."""
    each = counting.per_class(matrix)
    return {
        "right": _rounded(matrix.trace() / matrix.sum()),
        "cells": counting.cells(matrix),
        "precision": list(map(_rounded, each.precision)),
        "recall": list(map(_rounded, each.recall)),
    }


def _worth_a_name(said: Sequence[Said], images: int) -> list[int]:
    """Numbers of the images whose names the page has: all, or mistakes alone of many."""
    if images <= MOST_NAMES:
        return list(range(images))
    wanted: dict[int, None] = {}
    for run in said:
        wrong = counting.by_confidence(run.confidence, run.classes != run.labels)
        wanted |= dict.fromkeys(run.places[wrong].tolist())
    return list(wanted)[:MOST_NAMES]


def _told_apart(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Data sets of one name get the beginning of their hash behind it."""
    names = [part["name"] for part in found]
    for part in found:
        if names.count(part["name"]) > 1:
            part["name"] += f" ({part['manifest']})"
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
