"""What is learned from images: its loss, what is kept of each image, and what judges a run.

No torch and no numpy at import: tables and records ask a task for the name of its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench.tasks.base import TASKS, ImageRows, Metric, Task, register_task
from peftbench.tasks.classification import Classification

__all__ = [
    "CLASSIFICATION",
    "PER_CLASS",
    "TASKS",
    "TOP1",
    "Classification",
    "ImageRows",
    "Metric",
    "Task",
    "register_task",
]

CLASSIFICATION = Classification()  # of every run that names no other
# names of its scores that are means over images, and over classes
TOP1, PER_CLASS = (metric.name for metric in CLASSIFICATION.scores[:2])


def judged_by(spec: Mapping[str, Any]) -> Metric:
    """What a recorded run declares to be judged by, from its `spec`.

    Raises:
        UnknownName: it names a task or a metric that is not known here.
    """
    selection = spec.get("selection")
    return task_of(spec).metric(selection.get("metric") if isinstance(selection, dict) else None)


def task_of(spec: Mapping[str, Any]) -> Task:
    """The task of a recorded run, from its `spec`.

    Raises:
        UnknownName: it names a task that is not registered here.
    """
    name = spec.get("task")
    return CLASSIFICATION if name is None else TASKS[str(name)]()
