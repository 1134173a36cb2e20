"""A tuned model on shifted test sets, without training it further."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from peftbench import data
from peftbench.data import DecodedImages
from peftbench.data.shifts import ALEXNET, SEVERITIES, corrupted
from peftbench.spec import DatasetSpec, Preprocessing
from peftbench.tasks import Task


def find(
    shifts: Sequence[DatasetSpec], class_names: Sequence[str], preprocessing: Preprocessing
) -> dict[DatasetSpec, list[data.ShiftSet]]:
    """The parts of each set, listed and not decoded: what is absent is known before training."""
    return {s: list(data.load_shift(s, class_names, preprocessing)) for s in shifts}


def measure(
    shift: DatasetSpec,
    parts: Sequence[data.ShiftSet],
    predict: Callable[[DecodedImages], np.ndarray],
    task: Task,
    judged_by: str | None = None,
) -> dict[str, float]:
    """Metrics by name: "imagenet_a/top1", of ImageNet-C "imagenet_c/mce" and each score.

    The mean corruption error (Hendrycks and Dietterich, 2019) is the mean over corruptions of the
    mean error over severities by AlexNet's; 1 is AlexNet, and lower is better. It is about top-1.
    A run that is judged by another metric has that one of each corruption as well, and its mean
    over all corruptions and severities as "imagenet_c/f1_macro".

    Args:
        judged_by: name of the metric that the run declares; the task's own score by default.
    """
    score = task.score.name
    named = dict.fromkeys((score, judged_by or score))
    scores: dict[str, float] = {}
    found: dict[str, list[float]] = {name: [] for name in named}
    errors: dict[str, list[float]] = {name: [] for name in ALEXNET}
    for part in parts:
        outputs = task.among(predict(part.images), part.classes)
        of_part = task.metrics(task.rows(outputs, part.labels), len(part.classes))
        if not corrupted(shift):
            scores |= {f"{part.name}/{key}": value for key, value in of_part.items()}
            continue
        _, corruption, severity = part.name.split("/")
        for name in named:
            if name in of_part:  # some are of two classes alone
                scores[f"{shift.name}/{corruption}/{severity}/{name}"] = of_part[name]
                found[name].append(of_part[name])
        errors[corruption].append(1 - of_part[score])
    if corrupted(shift):
        relative = [sum(errors[name]) / len(SEVERITIES) / ALEXNET[name] for name in ALEXNET]
        scores[f"{shift.name}/mce"] = sum(relative) / len(relative)
        for name, values in found.items():
            if name != score and values:
                scores[f"{shift.name}/{name}"] = sum(values) / len(values)
    return scores
