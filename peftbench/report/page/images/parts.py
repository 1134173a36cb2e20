"""What the page has of each data set whose pictures can be looked at, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.report.page.images import counting, finding, pictures
from peftbench.report.page.images.pictures import CheckedPictures
from peftbench.report.page.images.runs import ShownRun, Sources, groups, with_predictions
from peftbench.report.page.images.thumbnails import Room
from peftbench.report.page.images.trials import Index, by_cell, trials
from peftbench.report.view import Views
from peftbench.results.predictions import Predictions
from peftbench.results.record import RunRecord, parsed
from peftbench.results.store import ResultsStore
from peftbench.spec import TRAIN_AND_VAL, TRAIN_ONLY, called
from peftbench.tasks import PER_CLASS
from peftbench.untrusted import MOST_RECORD, printable, read_bounded

if TYPE_CHECKING:
    from peftbench.data.listing import Listing

MOST_DATASETS = 12
MOST_IMAGES = 100_000  # images times runs of the page; each takes about 8 bytes
MOST_RUNS = 40  # of a data set
MOST_NAMES = 5_000  # of a data set
MOST_CHARACTERS = 2_000_000  # of all pictures of the page
MOST_PICTURES = 360  # of the page, each of which is decoded
WITHOUT = "Pictures and the names of their files are left out."
DIGITS = 4


@dataclass(frozen=True)
class _Data:
    """What is known of the images of a data set."""

    labels: np.ndarray  # (N,) of test
    class_names: tuple[str, ...]
    names: tuple[str, ...] | None  # of the test images' files
    listing: Listing | None  # where the data set is here, as the runs saw it
    remark: str


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
        part = _part(runs, sources, room.part(len(found) - place))
        result.append(part | {"rows": _rows(runs, index, len(part["classes"]))})
    return _told_apart(result)


def _part(runs: Sequence[ShownRun], sources: Sources, room: Room) -> dict[str, Any]:
    shown = [(run, run.predictions) for run in runs if run.predictions is not None]
    best, said = shown[0][0].record, [predictions for _, predictions in shown]
    data = _data(best, said, sources.store)
    counts = _counts(data)
    part: dict[str, Any] = {
        "name": printable(_name(best)),
        "manifest": str(best.spec["dataset"]["manifest"])[:8],
        "classes": list(data.class_names),
        "labels": data.labels.tolist(),
        "counts": counts,
        "majority": _majority(counts, data.labels, best),
        "remark": data.remark if sources.pictures else WITHOUT,
        "names": None,
        "thumbs": {},
        "samples": None,
    }
    if sources.pictures and data.names is not None:
        numbers = _worth_a_name(said, data.labels)
        part["names"] = {str(number): printable(data.names[number]) for number in numbers}
    if sources.pictures and data.listing is not None:
        opened, preprocessing = CheckedPictures(data.listing), finding.preprocessing_of(best)
        if preprocessing is not None:
            part["samples"] = pictures.samples(opened, preprocessing, room)
        part["thumbs"] = pictures.mistakes(opened, said, data.labels, room)
    return part


def _name(record: RunRecord) -> str:
    """Of a data set as tables call it, and of its fold."""
    dataset = record.spec["dataset"]
    fold = f", fold {dataset['fold']} of {dataset['folds']}" if dataset.get("folds") else ""
    return f"{called(dataset)}{fold}"


def _data(record: RunRecord, said: Sequence[Predictions], store: ResultsStore) -> _Data:
    """From the data set if it is here and has these test images, else from what the runs left."""
    labels, here = said[0].labels, finding.find(record)
    most = max(int(max(one.classes.max(), one.labels.max())) for one in said) + 1
    listing = here.listing
    fits = listing is not None and listing.test.labels == tuple(labels.tolist())
    if listing is not None and fits and most <= len(listing.class_names):
        known = tuple(map(printable, listing.class_names))
        return _Data(labels, known, listing.test.names, listing, here.remark)
    names = next((one.names for one in said if one.names is not None), None)
    told = _class_names(record, store)
    known = (*told, *(f"class {number}" for number in range(len(told), most)))
    return _Data(labels, known, names, None, here.remark or finding.CHANGED)


def _class_names(record: RunRecord, store: ResultsStore) -> list[str]:
    """Of the card that a run left; empty without one."""
    path = store.artefacts((str(record.spec["method"]["name"]), record.run_id)) / "card.json"
    try:
        card = parsed(read_bounded(path, MOST_RECORD))
    except (OSError, ValueError):
        return []
    classes = card.get("classes") if isinstance(card, dict) else None
    return [printable(str(name)) for name in classes] if isinstance(classes, list) else []


def _counts(data: _Data) -> dict[str, list[int]]:
    """Images of each class by split; of test alone where the data set is not here."""
    count = len(data.class_names)
    if data.listing is None:
        return {"test": np.bincount(data.labels, minlength=count).tolist()}
    return {
        split: np.bincount(np.asarray(part.labels, dtype=np.int64), minlength=count).tolist()
        for split, part in data.listing.splits()
    }


def _majority(
    counts: dict[str, list[int]], labels: np.ndarray, record: RunRecord
) -> dict[str, Any] | None:
    """The largest class of what trained, and what it would reach by itself."""
    if "train" not in counts:
        return None
    trained = np.asarray(counts["train"])
    if record.spec["dataset"].get("final_trains_on", TRAIN_AND_VAL) != TRAIN_ONLY:
        trained = trained + np.asarray(counts["val"])
    found = counting.majority(trained, labels)
    return None if found is None else {"class": found.number, "share": _rounded(found.share)}


def _rows(runs: Sequence[ShownRun], index: Index, count: int) -> list[dict[str, Any]]:
    """One entry for each method and backbone, the best first, with its runs by seed."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        key = run.heading, run.label
        if key not in rows:
            rows[key] = {
                "backbone": run.heading,
                "label": run.label,
                "method": str(run.record.spec["method"]["name"]),
                "runs": [],
                "trials": [] if run.predictions is None else trials(run.record, index),
            }
        rows[key]["runs"].append(_run(run, count))
    return list(rows.values())


def _run(run: ShownRun, count: int) -> dict[str, Any]:
    """Numbers of one run; of the images only where the page has its predictions."""
    record = run.record
    told: dict[str, Any] = {
        "id": record.run_id,
        "seed": record.spec["seed"],
        # a method that took no epoch has no rate, whatever its recipe says
        "lr": record.spec["recipe"].get("lr") if record.history else None,
        "tuning": record.tuning or None,
        PER_CLASS: _rounded(record.reported(PER_CLASS)),
    }
    predictions = run.predictions
    if predictions is None:
        return told
    matrix = counting.confusions(predictions.labels, predictions.classes, count)
    each = counting.per_class(matrix)
    percent = np.nan_to_num(100 * predictions.confidence.astype(np.float64))
    return told | {
        "right": _rounded(matrix.trace() / matrix.sum()),
        "cells": counting.cells(matrix),
        "precision": list(map(_rounded, each.precision)),
        "recall": list(map(_rounded, each.recall)),
        "said": predictions.classes.tolist(),
        "percent": np.clip(np.round(percent), 0, 100).astype(int).tolist(),
    }


def _worth_a_name(said: Sequence[Predictions], labels: np.ndarray) -> list[int]:
    """Numbers of the images whose names the page has: all, or mistakes alone of many."""
    if len(labels) <= MOST_NAMES:
        return list(range(len(labels)))
    wanted: dict[int, None] = {}
    for run in said:
        wrong = counting.by_confidence(run.confidence, run.classes != labels)
        wanted |= dict.fromkeys(wrong)
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
