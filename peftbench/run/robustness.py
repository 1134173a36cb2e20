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
) -> dict[str, float]:
    """Metrics by name: "imagenet_a/top1", of ImageNet-C "imagenet_c/mce" and each error.

    The mean corruption error (Hendrycks and Dietterich, 2019) is the mean over corruptions of the
    mean error over severities by AlexNet's; 1 is AlexNet, and lower is better.
    """
    score = task.score.name
    scores: dict[str, float] = {}
    errors: dict[str, list[float]] = {name: [] for name in ALEXNET}
    for part in parts:
        outputs = task.among(predict(part.images), part.classes)
        of_part = task.metrics(task.rows(outputs, part.labels), len(part.classes))
        if corrupted(shift):
            _, corruption, severity = part.name.split("/")
            scores[f"{shift.name}/{corruption}/{severity}/{score}"] = of_part[score]
            errors[corruption].append(1 - of_part[score])
        else:
            scores |= {f"{part.name}/{key}": value for key, value in of_part.items()}
    if corrupted(shift):
        relative = [sum(errors[name]) / len(SEVERITIES) / ALEXNET[name] for name in ALEXNET]
        scores[f"{shift.name}/mce"] = sum(relative) / len(relative)
    return scores
