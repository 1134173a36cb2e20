"""The trials of a search among which the settings of a final run were chosen, and what val said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftbench.results.record import RunRecord, Status
from peftbench.spec import Phase

MOST = 40  # trials of one row; those that val liked best
DIGITS = 4


Index = Mapping[tuple[Any, ...], Sequence[RunRecord]]  # trials by what `cell` gives


def by_cell(records: Iterable[RunRecord]) -> Index:
    """The finished trials among records, by the cell that was searched."""
    index: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        if record.status is Status.OK and record.spec.get("phase") == Phase.TUNE:
            index.setdefault(_cell(record.spec), []).append(record)
    return index


def trials(final: RunRecord, index: Index) -> list[dict[str, Any]]:
    """Rate, decay and val score of each trial of the same cell as `final`, the best first.

    With the looks at val on the way, where there were any: pairs of an epoch and a score. Empty
    where no search chose the settings of `final`.
    """
    found: list[dict[str, Any]] = []
    for record in index.get(_cell(final.spec), ()) if final.tuning else ():
        if record.score is None:
            continue
        recipe = record.spec["recipe"]
        looks = sorted((int(epoch), round(value, DIGITS)) for epoch, value in record.looks.items())
        found.append(
            {
                "lr": recipe.get("lr"),
                "weight_decay": recipe.get("weight_decay"),
                "val": round(record.score, DIGITS),
                "stopped": record.stopped_epoch,
                "looks": looks,
                "chosen": recipe.get("lr") == final.spec["recipe"].get("lr")
                and recipe.get("weight_decay") == final.spec["recipe"].get("weight_decay"),
            }
        )
    found.sort(key=lambda trial: (-trial["val"], trial["lr"] or 0.0))
    return found[:MOST]


def _cell(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What trials and the runs that wait for them have in common."""
    backbone, dataset = spec["backbone"], spec["dataset"]
    return (
        spec["method"]["name"],
        backbone.get("name"),
        backbone.get("checkpoint_sha256"),
        backbone.get("image_size"),
        dataset.get("manifest"),
    )
