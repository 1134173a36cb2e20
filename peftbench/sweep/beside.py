"""Which jobs of a sweep share a process: trials that differ in rate and weight decay alone.

They load backbone and images once, and train in one pass where that is faster.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from peftbench.errors import ConfigError
from peftbench.methods.base import as_method
from peftbench.spec import Phase, RunSpec
from peftbench.sweep.jobs import Job


def passes(jobs: Sequence[Job], slots: int, *, are_timed: bool = False) -> list[list[Job]]:
    """Jobs that share a process, in the order of the first of each.

    There are as many passes as slots, or as there are jobs of a kind, so that no slot is idle.

    Args:
        are_timed: jobs end after some time, which heads alone then spend on others.
    """
    kinds: dict[object, list[Job]] = {}
    for job in jobs:
        alone = are_timed and not as_method(job.spec.method).card.head_only
        shared = None if alone else shared_spec(job.spec)
        kinds.setdefault(shared or job.spec.run_id, []).append(job)
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


def shared_spec(spec: RunSpec) -> RunSpec | None:
    """What runs that can share a pass have in common; `None` of a run that trains alone."""
    alone = spec.phase is not Phase.TUNE or spec.looks or spec.selects_on_test
    if alone or as_method(spec.method).card.solved:
        return None
    recipe = dataclasses.replace(spec.recipe, lr=1.0, weight_decay=0.0)
    return dataclasses.replace(spec, recipe=recipe)
