"""Image classification: one class an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.tasks.base import ImageRows, Metric, Task, register_task

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ECE_BINS = 15  # equal-width confidence bins (Guo et al., 2017, §2)


def top1(rows: ImageRows) -> float:
    """The share of images whose class is right."""
    return float((rows["classes"] == rows["labels"]).mean())


def mean_per_class(rows: ImageRows) -> float:
    """The mean over classes of the share of their images that is right.

    Classes without an image are left out, as scikit-learn's balanced accuracy does.
    """
    import numpy as np

    _, index = np.unique(rows["labels"], return_inverse=True)
    hits = np.bincount(index, weights=rows["classes"] == rows["labels"])
    return float((hits / np.bincount(index)).mean())


def f1_macro(rows: ImageRows) -> float:
    """The mean over classes of F1: twice the hits by the images of a class and those given to it.

    Over the classes that images have or are given, as scikit-learn's `f1_score` does: one that is
    given to images of others alone counts as 0, and one that does not occur is left out.
    """
    import numpy as np

    labels, classes = rows["labels"], rows["classes"]
    _, index = np.unique(np.concatenate([labels, classes]), return_inverse=True)
    counts = np.bincount(index)
    hits = np.bincount(index[: len(labels)], weights=classes == labels, minlength=len(counts))
    return float((2 * hits / counts).mean())


def auroc(rows: ImageRows) -> float:
    """The share of pairs of images of two classes whose order is right; a tie is half a pair.

    The order is that of the probability of the second class; the first gives the same. NaN unless
    both classes have an image, as scikit-learn's `roc_auc_score` gives.
    """
    first, second = _counts_by_place(rows)
    pairs = first.sum() * second.sum()
    below = first.cumsum() - first
    return float((second * (below + first / 2)).sum() / pairs) if pairs else math.nan


def half_of_ties(rows: ImageRows) -> float:
    """Half the share of pairs of images of two classes that are ties.

    Rounding a probability keeps its place, or makes a tie: by so much may the AUROC of rounded rows
    be off.
    """
    first, second = _counts_by_place(rows)
    return float((first * second).sum() / max(1.0, first.sum() * second.sum()) / 2)


def _counts_by_place(rows: ImageRows) -> tuple[np.ndarray, np.ndarray]:
    """How many images of either class have each probability of the second, in rising order."""
    import numpy as np

    if "log_odds" in rows:  # which tells probabilities apart that round to 1
        places = rows["log_odds"]
    else:
        confidence = rows["confidence"].astype(np.float64)
        places = np.where(rows["classes"] == 1, confidence, 1 - confidence)
    _, index = np.unique(places, return_inverse=True)
    is_second = rows["labels"] == 1
    return np.bincount(index, weights=~is_second), np.bincount(index, weights=is_second)


@register_task("classification")
@dataclass(frozen=True)
class Classification(Task):
    """Tell the class of an image; a model's outputs are logits (B, C).

    Rows are the predicted class, where the smaller index wins a tie; its probability
    (`confidence`); that minus the runner-up's (`margin`); the true class (`labels`); and its
    probability (`likelihood`); of two classes also the second's logit minus the first's
    (`log_odds`). All are (N,), probabilities in float64.
    """

    scores: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "top-1 accuracy", "top-1", "accuracy", top1),
        Metric(
            "mean_per_class",
            "mean per-class accuracy",
            "mean per class",
            "mean_per_class",
            mean_per_class,
        ),
        Metric("f1_macro", "macro F1", "macro F1", "f1_macro", f1_macro),
        Metric("auroc", "area under the ROC curve", "AUROC", "auroc", auroc, 2, half_of_ties),
    )
    fractions: ClassVar[frozenset[str]] = frozenset((*(m.name for m in scores), "ece"))
    stored: ClassVar[Mapping[str, str]] = {
        "classes": "int32",
        "confidence": "float32",
        "margin": "float32",
        "labels": "int32",
    }

    def outputs(self, raw: Tensor) -> Tensor:
        """(B, C) logits."""
        return raw.float()

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy of logits (B, C) with classes (B,), or with shares (B, C) of them."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def weighted_loss(
        self, outputs: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor
    ) -> Tensor:
        """Cross-entropy, each class's term times its weight, over the weights of the targets.

        Of classes (B,) it is torch's own, whose smoothed terms have the weights of their classes
        too. Of shares (B, C), which torch divides by B, it is divided as that of classes is: an
        image weighs what its classes weigh, by their shares, so that unmixed images have the same
        loss in either form.
        """
        from torch.nn.functional import cross_entropy, log_softmax

        if not targets.is_floating_point():
            return cross_entropy(outputs, targets, weights, label_smoothing=label_smoothing)
        smoothed = (1 - label_smoothing) * targets + label_smoothing / outputs.shape[1]
        terms = smoothed * weights * log_softmax(outputs, dim=1)
        return -terms.sum() / self.weight_of(targets, weights)

    def weight_of(self, targets: Tensor, weights: Tensor) -> Tensor:
        """() the sum of the weights (C,) of classes (B,), or of shares (B, C) of them."""
        shared = targets.is_floating_point()
        return (targets * weights).sum() if shared else weights[targets].sum()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) whether the largest of the logits (B, C) is that of the label (B,)."""
        return outputs.argmax(1) == labels

    def among(self, outputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(N, K) logits of `classes` (K,) alone, out of (N, C)."""
        return outputs[:, classes]

    def rows(self, outputs: np.ndarray, labels: np.ndarray) -> ImageRows:
        """Prediction and truth of each image; outputs: logits (N, C), labels: (N,)."""
        import numpy as np

        probabilities = softmax(outputs)
        top = np.sort(probabilities, axis=1)
        of_two = {}
        if outputs.shape[1] == 2:
            of_two["log_odds"] = outputs[:, 1].astype(np.float64) - outputs[:, 0]
        return {
            "classes": outputs.argmax(axis=1),
            "confidence": probabilities.max(axis=1),
            "margin": top[:, -1] - top[:, -2] if top.shape[1] > 1 else top[:, -1],
            "labels": labels,
            "likelihood": probabilities[np.arange(len(labels)), labels],
            **of_two,
        }

    def metrics(self, rows: ImageRows, num_classes: int) -> dict[str, float]:
        """Those of `scores` that are defined, cross-entropy, expected calibration error, count.

        All but cross-entropy and count are fractions in [0, 1].
        """
        import numpy as np

        labels = rows["labels"]
        likelihood = np.maximum(rows["likelihood"], np.finfo(np.float64).tiny)
        return {
            **self.scored(rows, num_classes),
            "loss": float(-np.log(likelihood).mean()),
            "ece": calibration_error(rows["confidence"], rows["classes"] == labels),
            "num_images": float(len(labels)),
        }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) probabilities in float64."""
    import numpy as np

    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponent = np.exp(shifted)
    return exponent / exponent.sum(axis=1, keepdims=True)


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean of |accuracy - confidence| over equal-width bins, weighted by their images.

    Args:
        confidence: (N,) probability of the predicted class.
        hit: (N,) whether it is right.
    """
    import numpy as np

    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return float(error)
