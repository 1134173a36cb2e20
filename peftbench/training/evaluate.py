"""Predictions and the metrics computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from peftbench.data import DecodedImages
from peftbench.spec import Preprocessing
from peftbench.training.device import Compute, Pixels, autocast

ECE_BINS = 15  # equal-width confidence bins (Guo et al., 2017, §2)


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image, in the order of the split."""

    logits: np.ndarray  # (N, C) float32

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C) float64 softmax."""
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        exponent = np.exp(shifted)
        return exponent / exponent.sum(axis=1, keepdims=True)

    @property
    def classes(self) -> np.ndarray:
        """(N,) predicted class; the smaller index wins a tie."""
        return self.logits.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """(N,) probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @property
    def margin(self) -> np.ndarray:
        """(N,) probability of the predicted class minus that of the runner-up."""
        top = np.sort(self.probabilities, axis=1)
        return top[:, -1] - top[:, -2] if top.shape[1] > 1 else top[:, -1]


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: np.ndarray | DecodedImages,
    preprocessing: Preprocessing,
    compute: Compute,
    batch_size: int = 128,
) -> Predictions:
    """Logits of uint8 `images` (N, S, S, 3) with the whole model in eval mode.

    The processes of `compute` share out the batches, which are those of one process, and all of
    them get all logits: bit for bit what one process gets. Nothing is padded or seen twice.
    """
    model.eval()
    own: dict[int, np.ndarray] = {}
    for start in range(0, len(images), batch_size)[compute.world.rank :: compute.world.size]:
        chunk = images[start : start + batch_size]
        pixels = Pixels(chunk, preprocessing.mean, preprocessing.std, compute.device)
        with autocast(compute):
            own[start] = model(pixels.batch(slice(None))).float().cpu().numpy()
    found = {
        start: part for parts in compute.world.all_gather(own) for start, part in parts.items()
    }
    return Predictions(np.concatenate([found[start] for start in sorted(found)]))


def metrics(predictions: Predictions, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """top1, mean per-class accuracy, cross-entropy, expected calibration error, count.

    Accuracies and the error are fractions in [0, 1]. Classes without an image are left out of the
    mean per-class accuracy.
    """
    hit = predictions.classes == labels
    per_class = [hit[labels == c].mean() for c in range(num_classes) if (labels == c).any()]
    chosen = predictions.probabilities[np.arange(len(labels)), labels]
    return {
        "top1": float(hit.mean()),
        "mean_per_class": float(np.mean(per_class)),
        "loss": float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()),
        "ece": calibration_error(predictions.confidence, hit),
        "num_images": float(len(labels)),
    }


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean of |accuracy - confidence| over equal-width bins, weighted by their images."""
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return float(error)
