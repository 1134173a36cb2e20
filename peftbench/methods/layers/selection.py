"""What gradients of a bare backbone say of training images, for methods that choose by them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods import surgery
from peftbench.methods.layers import heads

AREA = (0.08, 1.0)  # of a random crop, as a share of the image
RATIO = (3 / 4, 4 / 3)  # of its sides


def features_of(model: nn.Module, head: str, images: Tensor) -> Tensor:
    """(B, D): what the classifier at `head` receives of images (B, 3, S, S), over the places of a
    map their mean.
    """
    received: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received.append(args[0])

    with surgery.watched(model, [head], before=lambda path: keep):
        model(images)
    features = received[-1]
    return features.mean((2, 3)) if features.ndim == 4 else features


def gradients(
    model: nn.Module, tensors: Sequence[nn.Parameter], losses: Callable[[], Iterator[Tensor]]
) -> Iterator[list[Tensor]]:
    """Gradients (...) of each loss () in turn for `tensors` (...); the model is left as it was.

    `losses` computes them one after another, while exactly `tensors` learn.
    """
    with surgery.learning(model, tensors), torch.enable_grad():
        for loss in losses():
            found = torch.autograd.grad(loss, list(tensors), allow_unused=True)
            pairs = zip(tensors, found, strict=True)
            yield [torch.zeros_like(t) if g is None else g for t, g in pairs]


def cross_entropies(
    model: nn.Module,
    anatomy: Anatomy,
    images: Iterable[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    most: int | None = None,
) -> Iterator[Tensor]:
    """The loss () of each of the first `most` batches under a linear classifier drawn at random.

    images: batches (B, 3, S, S) and their classes (B,); the classifier knows those that occur.
    """
    num_classes = 1 + max(int(labels.max()) for _, labels in itertools.islice(images, most))
    head = heads.linear_head(anatomy.head_width, num_classes, generator)
    head.to(next(model.parameters()))
    for batch, labels in itertools.islice(images, most):
        yield F.cross_entropy(head(features_of(model, anatomy.head, batch)), labels)


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The mean over anchors of -mean over positives of log of their share (Khosla et al., 2020).

    features: (M, D), labels: (M,). Positives of an anchor are the other rows of its class; its
    share is among all other rows, by exp(cosine similarity / temperature).
    """
    rows = F.normalize(features, dim=1)
    similar = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logs = similar - similar.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    # an anchor without another of its class has nothing to attract
    counts = positive.sum(1)
    anchors = counts > 0
    attracted = (logs * positive).sum(1)[anchors] / counts[anchors]
    return -attracted.mean()


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of each of the images (B, 3, S, S) at full size again, half of them mirrored.

    Areas are uniform in `AREA` and the logarithms of ratios uniform in `RATIO`.
    """
    number = len(images)
    drawn = torch.rand(5, number, generator=generator)
    area = AREA[0] + (AREA[1] - AREA[0]) * drawn[0]
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    root = ((low + (high - low) * drawn[1]) / 2).exp()
    width, height = (area.sqrt() * root).clamp(max=1), (area.sqrt() / root).clamp(max=1)
    mirrored = torch.where(drawn[4] < 0.5, -1.0, 1.0)
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirrored, height
    theta[:, 0, 2] = (2 * drawn[2] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * drawn[3] - 1) * (1 - height)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def total(parts: Iterable[list[Tensor]]) -> list[Tensor]:
    """The sum of lists of tensors (...) of the same shapes, entry by entry."""
    summed: list[Tensor] = []
    for part in parts:
        summed = [s + p for s, p in zip(summed, part, strict=True)] if summed else part
    return summed


def largest_in_rows(tensor: Tensor, number: int) -> Tensor:
    """Flat indices of the `number` largest magnitudes in each row of (rows, ...), in order."""
    rows = tensor.flatten(1).abs()
    chosen = rows.topk(min(number, rows.shape[1]), dim=1).indices.sort(1).values
    starts = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return (starts + chosen).flatten()
