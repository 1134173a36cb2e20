"""A supernet that trains on a part of the images, and subnets of it that are scored on the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers import heads, selection
from peftbench.methods.layers.evolution import Space, Subnet

Batches = Iterable[tuple[Tensor, Tensor]]  # images (B, 3, S, S) and their classes (B,)


@dataclass
class Counted:
    """Passes of images through the model, forward and backward."""

    forward: int = 0
    backward: int = 0

    def add(self, forward: int = 0, backward: int = 0) -> None:
        """So many more."""
        self.forward += forward
        self.backward += backward


@dataclass(frozen=True)
class Halves:
    """Batches of which the first images train and the last are held out."""

    images: Batches
    held_out: float  # share of each batch, one image at least

    def parts(self, train: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of one part, as batches (B, 3, S, S) and (B,)."""
        for batch, labels in self.images:
            cut = len(labels) - max(1, round(self.held_out * len(labels)))
            part = slice(None, cut) if train else slice(cut, None)
            if len(labels[part]):
                yield batch[part], labels[part]


@dataclass
class Supernet:
    """A model of full width with a classifier, whose subnets share its weights."""

    model: nn.Module
    head_path: str  # of the classifier that it came with, in front of which features are read
    head: nn.Linear
    trained: list[nn.Parameter]
    choose: Callable[[Subnet], None]
    halves: Halves
    counted: Counted = field(default_factory=Counted)

    def train(self, space: Space, epochs: int, lr: float, decay: float, rng: random.Random) -> None:
        """AdamW with cosine decay; another subnet in each step."""
        parameters = [*self.trained, *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
        steps = max(1, epochs * sum(1 for _ in self.halves.parts(train=True)))
        step = 0
        with surgery.learning(self.model, self.trained), torch.enable_grad():
            for _ in range(epochs):
                for batch, labels in self.halves.parts(train=True):
                    for group in optimizer.param_groups:
                        group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                    self.choose(space.draw(rng))
                    loss = F.cross_entropy(self._logits(batch), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    self.counted.add(backward=len(labels))
                    step += 1

    @torch.no_grad()
    def score(self, subnet: Subnet) -> float:
        """Share of the images that were held out whose class a subnet finds."""
        self.choose(subnet)
        right = total = 0
        for batch, labels in self.halves.parts(train=False):
            right += int((self._logits(batch).argmax(1) == labels).sum())
            total += len(labels)
        return right / total

    def _logits(self, images: Tensor) -> Tensor:
        self.counted.add(forward=len(images))
        logits: Tensor = self.head(selection.features_of(self.model, self.head_path, images))
        return logits


def classifier(
    model: nn.Module, width: int, images: Batches, generator: torch.Generator
) -> nn.Linear:
    """A linear classifier of `width` features for the classes (B,) that occur among images."""
    num_classes = 1 + max(int(labels.max()) for _, labels in images)
    return heads.linear_head(width, num_classes, generator).to(next(model.parameters()))
