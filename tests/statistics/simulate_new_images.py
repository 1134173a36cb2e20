"""How often intervals over images, splits and seeds hold: python THIS [simulations].

Two classes of Gaussians whose means are `apart` in one of `dimensions` are told apart by the
nearest mean of the training images, to which each run adds noise, as seeds do. The accuracy of such
a classifier on new images is known: normal probabilities of its line. The truth is its mean over
data sets, splits and seeds; of a single split, that of the trained models.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from peftbench.statistics.new_images import ImageScores, interval, spread

TEST = 0.2  # share of the images that a drawn split tests
AT_ONCE = 1000  # data sets in memory
MODELS = 100  # further seeds that tell the expected accuracy of a single split


@dataclass(frozen=True)
class Design:
    """A kind of data set, and how often it is split and trained on."""

    images: int
    dimensions: int
    apart: float
    noise: float = 0.0  # standard deviation of what a seed adds to each mean
    first: float = 0.5  # share of the first class
    splits: int = 5
    seeds: int = 1
    folds: bool = False


SETS = (
    Design(60, 2, 2),
    Design(60, 20, 3, 0.1),
    Design(120, 2, 2, 0, 0.3),
    Design(120, 20, 2),
    Design(120, 20, 2, 0.15, 0.3),
    Design(120, 100, 3, 0.1),
    Design(120, 500, 4),
    Design(300, 20, 2, 0.1),
    Design(300, 100, 2, 0, 0.3),
    Design(100, 10, 4),
    Design(200, 5, 1),
    Design(200, 50, 2.5, 0.2),
)
PROTOCOLS = (  # splits, seeds, folds
    *((5, 1, True), (5, 2, True), (10, 1, True), (3, 1, True)),
    *((2, 1, False), (3, 1, False), (5, 1, False), (10, 1, False), (5, 2, False)),
)


@dataclass(frozen=True)
class Simulated:
    """Many data sets of one design, all trained and tested."""

    hits: np.ndarray  # (sets, splits, seeds, images)
    tested: np.ndarray  # (sets, splits, images)
    truth: np.ndarray  # (sets,) expected accuracy on new images
    labels: np.ndarray  # (images,)


def simulate(design: Design, sets: int, seed: int = 0) -> Simulated:
    """So many data sets."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(design.images) >= round(design.images * design.first)).astype(int)
    points = generator.standard_normal((sets, design.images, design.dimensions))
    points[..., 0] += np.where(labels == 1, 0.5, -0.5) * design.apart
    fold = _folds(generator, labels, design.splits, sets)
    hits = np.zeros((sets, design.splits, design.seeds, design.images), bool)
    tested = np.zeros((sets, design.splits, design.images), bool)
    truth = []
    for split in range(design.splits):
        mask = fold == split if design.folds else _fifth(generator, labels, sets)
        tested[:, split] = mask
        for run in range(design.seeds):
            hits[:, split, run], accuracy = _trained(design, points, labels, ~mask, generator)
            truth.append(accuracy)
    if design.splits == 1 and design.seeds > 1:
        more = [_trained(design, points, labels, ~mask, generator)[1] for _ in range(MODELS)]
        return Simulated(hits, tested, np.mean(more, axis=0), labels)
    if design.splits == 1:
        return Simulated(hits, tested, truth[0], labels)
    return Simulated(hits, tested, np.full(sets, np.mean(truth)), labels)


def _trained(design, points, labels, train, generator):
    """Hits (sets, images) of the nearest mean of what trains, and its accuracy on new images."""
    means = []
    for label in (0, 1):
        share = (train & (labels == label)).astype(float)
        mean = np.einsum("rn,rnd->rd", share, points) / share.sum(axis=1, keepdims=True)
        means.append(mean + design.noise * generator.standard_normal(mean.shape))
    line = means[1] - means[0]
    middle = (line * (means[0] + means[1]) / 2).sum(axis=1)
    said = np.einsum("rnd,rd->rn", points, line) > middle[:, None]
    length = np.linalg.norm(line, axis=1)
    centre = line[:, 0] * design.apart / 2
    right = ndtr((centre + middle) / length), ndtr((centre - middle) / length)
    share = labels.mean()
    return said == labels, (1 - share) * right[0] + share * right[1]


def _fifth(generator, labels, sets):
    """Which images a drawn split tests, (sets, images): the same number of each class."""
    draws = generator.random((sets, len(labels)))
    mask = np.zeros(draws.shape, bool)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        order = np.argsort(draws[:, rows], axis=1)[:, : round(TEST * len(rows))]
        np.put_along_axis(mask, rows[order], True, axis=1)
    return mask


def _folds(generator, labels, number, sets):
    """The fold of each image, (sets, images)."""
    fold = np.zeros((sets, len(labels)), int)
    start = 0
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        order = rows[np.argsort(generator.random((sets, len(rows))), axis=1)]
        dealt = np.broadcast_to((start + np.arange(len(rows))) % number, order.shape)
        np.put_along_axis(fold, order, dealt, axis=1)
        start += len(rows)
    return fold


def scores_of(simulated: Simulated, number: int, *, per_class: bool = False) -> ImageScores:
    """What the runs on one of the data sets said of single images."""
    seeds = simulated.hits.shape[2]
    parts = []
    for split, mask in enumerate(simulated.tested[number]):
        image = np.flatnonzero(mask)
        label = simulated.labels[image] if per_class else np.zeros_like(image)
        weight = 1 / np.bincount(label)[label] / len(np.unique(label))
        for run in range(seeds):
            hit = simulated.hits[number, split, run, image].astype(float)
            same = np.full(len(image), split)
            parts.append((same, same * seeds + run, image, hit, weight, label))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return ImageScores(*columns, total=len(simulated.labels))


def coverage(design: Design, sets: int, seed: int = 0) -> float:
    """Share of so many data sets whose 95 % interval holds the truth."""
    held = 0
    for start in range(0, sets, AT_ONCE):
        simulated = simulate(design, min(AT_ONCE, sets - start), seed + start)
        for number in range(len(simulated.truth)):
            found = interval(spread(scores_of(simulated, number)))
            held += found.low <= simulated.truth[number] <= found.high
    return held / sets


def main(sets: int) -> None:
    shares = []
    for splits, seeds, folds in PROTOCOLS:
        for known in SETS:
            design = Design(
                *(known.images, known.dimensions, known.apart, known.noise, known.first),
                splits,
                seeds,
                folds,
            )
            shares.append(coverage(design, sets))
            print(f"{design}: {100 * shares[-1]:.1f} %", flush=True)
    low, mean, high = (100 * x for x in (min(shares), np.mean(shares), max(shares)))
    print(f"{len(shares)} designs: {low:.1f} to {high:.1f} %, {mean:.1f} % on average")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
