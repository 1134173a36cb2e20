"""What the numbers of a report are, asked of the task that they measure."""

from __future__ import annotations

from peftbench.tasks import CLASSIFICATION

SCORE = CLASSIFICATION.score.name  # what is shown unless told
SCORES = {metric.name: metric.title for metric in CLASSIFICATION.scores}
IN_FIGURE_NAMES = {metric.name: metric.figure for metric in CLASSIFICATION.scores}
