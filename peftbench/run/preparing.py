"""What a method learns of the training images before it is attached, where it looks at them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.hashes import take_in
from peftbench.backbones.load import Backbone
from peftbench.data import TrainSplit, squashed
from peftbench.errors import SplitRoleError
from peftbench.methods.base import Method, Preparation
from peftbench.training.device import Compute
from peftbench.training.pixels import Pixels

AT_ONCE = 64  # images of a batch


@dataclass(frozen=True)
class TrainBatches:
    """Batches of a train split, each image once, in an order that depends on the seed only."""

    pixels: Pixels
    labels: Tensor  # (N,)
    order: tuple[Tensor, ...]  # numbers of the images of each batch, (B,)

    @classmethod
    def of(
        cls, train: TrainSplit, backbone: Backbone, seed: int, device: torch.device
    ) -> TrainBatches:
        """The images as the model takes them when nothing is augmented.

        Raises:
            SplitRoleError: anything but a train split was handed over.
        """
        if not isinstance(train, TrainSplit):
            raise SplitRoleError(f"prepare takes a TrainSplit, not a {type(train).__name__}.")
        norm = backbone.preprocessing
        images = squashed(train.images, norm)
        pixels = Pixels(images, norm.mean, norm.std, device, keep=False)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator).split(AT_ONCE)
        return cls(pixels, torch.tensor(train.labels), order)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with contextlib.closing(self.pixels.batches(self.order)) as batches:
            for numbers, images in zip(self.order, batches, strict=True):
                yield images, self.labels[numbers].to(images.device)


def learnt(
    method: Method,
    backbone: Backbone,
    anatomy: Anatomy,
    train: TrainSplit,
    seed: int,
    compute: Compute,
) -> Preparation | None:
    """What `method` learns of the train split; `None` of one that looks at no images."""
    if not method.looks_at_images:
        return None
    images = TrainBatches.of(train, backbone, seed, compute.device)
    generator = torch.Generator().manual_seed(seed)
    return method.prepare(backbone.model.eval(), anatomy, images, generator)


def facts_of(prepared: Preparation | None) -> dict[str, Any]:
    """What the record says of it: the method's own facts and the SHA-256 of the tensors."""
    if prepared is None:
        return {}
    digest = hashlib.sha256()
    for name in sorted(prepared.tensors):
        take_in(digest, name, prepared.tensors[name])
    return {"prepared": {**prepared.facts, "sha256": digest.hexdigest()}}
