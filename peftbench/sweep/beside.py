"""Which jobs of a sweep train in one pass: trials of heads that differ in rate and decay alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from peftbench.errors import ConfigError
from peftbench.methods.base import as_method
from peftbench.spec import Phase, RunSpec
from peftbench.sweep.jobs import Job
from peftbench.training.recipe import OPTIMIZERS


def passes(jobs: Sequence[Job], slots: int) -> list[list[Job]]:
    """Jobs that train in one pass, in the order of the first of each.

    Such jobs share a process. There are as many passes as slots, or as there are jobs of a kind, so
    that no slot is idle.
    """
    kinds: dict[object, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(_kind(job.spec) or job.spec.run_id, []).append(job)
    together = []
    for kind in kinds.values():
        size = math.ceil(len(kind) / max(1, slots))
        together += [kind[start : start + size] for start in range(0, len(kind), size)]
    return together


def override(others: Sequence[Job]) -> tuple[str, ...]:
    """What a job is told of those that train with it and follow it in its process."""
    points = [[job.spec.recipe.lr, job.spec.recipe.weight_decay] for job in others]
    return (f"one_pass='{json.dumps(points)}'",) if points else ()


def runs_beside(spec: RunSpec, points: str) -> tuple[RunSpec, ...]:
    """The runs at some rates and decays, as `override` wrote them, and otherwise those of `spec`.

    Raises:
        ConfigError: they are no pairs of numbers.
    """
    try:
        pairs = [(float(lr), float(decay)) for lr, decay in json.loads(points or "[]")]
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"one_pass={points!r} is no JSON list of [rate, weight decay]. Leave it to sweeps."
        ) from e
    return tuple(
        dataclasses.replace(
            spec, recipe=dataclasses.replace(spec.recipe, lr=lr, weight_decay=decay)
        )
        for lr, decay in pairs
    )


def _kind(spec: RunSpec) -> RunSpec | None:
    """What runs that can train in one pass have in common; `None` of a run that trains alone."""
    alone = spec.phase is not Phase.TUNE or spec.looks or spec.selects_on_test
    if alone or not as_method(spec.method).card.head_only:
        return None
    if spec.recipe.optimizer.lower() not in OPTIMIZERS:
        return None
    recipe = dataclasses.replace(spec.recipe, lr=1.0, weight_decay=0.0)
    return dataclasses.replace(spec, recipe=recipe)
