"""Heads that take no steps: the features of all training images once, and the head of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftbench import data
from peftbench.errors import Unsupported
from peftbench.methods import surgery
from peftbench.methods.layers.solvable import Solvable
from peftbench.run.bench import Bench
from peftbench.run.ending import PendingRecord
from peftbench.spec import BALANCED
from peftbench.training.balance import balanced_weights
from peftbench.training.loop import Fit


def solved(bench: Bench) -> Fit:
    """Compute the head of `bench` in place.

    Augmentation is not for it: it sees each training image once, as reported ones are shown. Where
    the recipe weighs or draws classes alike, they weigh the same.

    Raises:
        Unsupported: the classifier of this backbone does not see one vector an image.
    """
    train, tuned = bench.splits.train, bench.tuned
    images = train.images
    if train.sizes is not None:
        images = data.squashed(images, bench.backbone.preprocessing)
    recipe, classes, weights = bench.spec.recipe, bench.splits.num_classes, None
    if BALANCED in (recipe.class_weights, recipe.sampling):
        weights = balanced_weights(torch.tensor(train.labels), classes).numpy()
    seen = features_of(bench, images)
    tuned.solve(*(Solvable(features, train.labels, classes, weights) for features in seen))
    return Fit([], [], None)


def features_of(bench: Bench, images: np.ndarray) -> list[np.ndarray]:
    """Of each classifier (N, D) float32, what it sees of images (N, S, S, 3)."""
    tuned = bench.tuned
    seen: dict[str, list[Tensor]] = {path: [] for path in tuned.heads}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[path].append(inputs[0].detach().float().cpu())

        return hook

    with surgery.watched(tuned.model, seen, before=note):
        bench.predict(images, bench.compute.alone())
    return [_vectors(torch.cat(parts), len(images), tuned.method.name) for parts in seen.values()]


def _vectors(features: Tensor, images: int, method: str) -> np.ndarray:
    """(N, D) of features (N, D), or of maps (N, D, 1, 1)."""
    if features.ndim == 4 and features.shape[2:] == (1, 1):
        features = features.flatten(1)
    if features.ndim != 2 or len(features) != images:
        raise Unsupported(
            f"{method} needs one feature vector an image, and the classifier of this backbone sees "
            f"{tuple(features.shape[1:])}. Use method=linear."
        )
    return features.numpy()


def counted(pending: PendingRecord, bench: Bench) -> Bench:
    """`bench` with the parameters that its head has now: one may hold all training images."""
    head = sum(parameter.numel() for parameter in bench.tuned.head_params.values())
    pending.parameters = dataclasses.replace(bench.parameters, head=head)
    return dataclasses.replace(bench, parameters=pending.parameters)
