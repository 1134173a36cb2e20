"""Places for the names of points, so that none covers another, a mark or a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GAPS = (7.0, 10.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0)  # between a point and its name
LEADER_FROM = 11.0  # a name further away than this is joined to its point by a line
CHOICE = 12  # free places of a name after which it is not moved further away
ROUNDS = 4  # the first places names one by one; the others let early names yield to late ones

# Prices, as shares of the area of the name.
CROSSED = 0.3  # a line through a name or a mark
DOUBTFUL = 0.2  # another point is as near
STEP = 0.02  # the next wider gap

XY = tuple[float, float]
Array = npt.NDArray[Any]
Segment = tuple[XY, XY]


@dataclass(frozen=True, slots=True)
class Box:
    """An upright rectangle."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        if self.x1 <= other.x0 or other.x1 <= self.x0 or self.y1 <= other.y0 or other.y1 <= self.y0:
            return 0.0
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        return width * (min(self.y1, other.y1) - max(self.y0, other.y0))

    def crossed(self, line: Segment) -> bool:
        """Whether a part of the line is inside."""
        (x, y), (x1, y1) = line
        first, last = 0.0, 1.0
        for start, way, low, high in ((x, x1 - x, self.x0, self.x1), (y, y1 - y, self.y0, self.y1)):
            if way == 0.0:
                if not low < start < high:
                    return False
                continue
            enters, leaves = sorted(((low - start) / way, (high - start) / way))
            first, last = max(first, enters), min(last, leaves)
        return first < last


@dataclass(frozen=True, slots=True)
class Label:
    """Where a name goes, and the line to its point where it needs one."""

    box: Box
    line: Segment | None
    price: float  # of what never moves: distance, marks, the border


def place(
    sizes: Sequence[XY], points: Sequence[XY], obstacles: Sequence[Box], window: Box
) -> list[Label]:
    """A label of each size near its point, inside `window` and off the others where possible.

    All lengths in typographic points.
    """
    options = [_options(i, sizes[i], points, obstacles, window) for i in range(len(sizes))]
    chosen: dict[int, Label] = {}
    for _ in range(ROUNDS):
        before = dict(chosen)
        for i, labels in enumerate(options):
            chosen[i] = _best(labels, [label for k, label in chosen.items() if k != i])
        if chosen == before:
            break
    return [chosen[i] for i in range(len(options))]


def _options(
    i: int, size: XY, points: Sequence[XY], obstacles: Sequence[Box], window: Box
) -> list[Label]:
    """Places for one name, cheapest first; wide gaps only where near ones leave little choice."""
    (w, h), (x, y) = size, points[i]
    steps, corners = zip(*_offsets(w, h), strict=True)
    step, corner = np.array(steps), np.array(corners) + (x, y)
    boxes = np.concatenate([corner, corner + (w, h)], axis=1)
    others = np.array([point for k, point in enumerate(points) if k != i]).reshape(-1, 2)
    in_the_way = np.array([(o.x0, o.y0, o.x1, o.y1) for o in obstacles]).reshape(-1, 4)
    ends = _nearest(boxes, np.array([[x, y]]))[:, 0]
    gaps = np.hypot(*(ends - (x, y)).T)
    away = np.hypot(*np.moveaxis(_nearest(boxes, others) - others, 2, 0))
    doubtful = (away < gaps[:, None] + 2).any(axis=1)
    lines = (gaps > LEADER_FROM) | (doubtful & (gaps > 0))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)  # w * h but for rounding, as overlaps are
    frame = np.array([[window.x0, window.y0, window.x1, window.y1]])
    price = _overlaps(boxes, in_the_way) + 10 * (area - _overlaps(boxes, frame))
    price += STEP * area * step + DOUBTFUL * area * doubtful
    own = (_nearest(in_the_way, np.array([[x, y]]))[:, 0] == (x, y)).all(axis=1)
    price += CROSSED * area * lines * _crossings((x, y), ends, in_the_way[~own])
    last = _last_step(step, price / (STEP * w * h))
    labels = [
        Label(Box(*box), ((x, y), (end[0], end[1])) if line else None, cost)
        for box, end, line, cost in zip(
            *(array[step <= last].tolist() for array in (boxes, ends, lines, price)), strict=True
        )
    ]
    return sorted(labels, key=lambda label: label.price)


def _last_step(step: Array, price: Array) -> int:
    """The first gap that leaves enough choice; prices (places,) are those of one wider gap."""
    for last in range(len(GAPS)):
        if np.sum(price[step <= last] < last + 1) >= CHOICE:
            return last
    return len(GAPS) - 1


def _nearest(boxes: Array, points: Array) -> Array:
    """For each of boxes (n, 4) its places closest to points (m, 2), as (n, m, 2)."""
    nearest: Array = np.clip(points, boxes[:, None, :2], boxes[:, None, 2:])
    return nearest


def _overlaps(boxes: Array, others: Array) -> Array:
    """Area of each of boxes (n, 4) that others (m, 4) cover, summed over them, as (n,)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    covered: Array = np.maximum(0.0, high - low).prod(axis=2).sum(axis=1)
    return covered


def _crossings(start: XY, ends: Array, boxes: Array) -> Array:
    """Into how many of boxes (m, 4) each line from `start` to `ends` (n, 2) goes, as (n,)."""
    way = (ends - start)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # lines along an axis, told apart below
        low, high = (boxes[:, :2] - start) / way, (boxes[:, 2:] - start) / way
    between = (boxes[:, :2] < start) & (start < boxes[:, 2:])
    enters = np.where(way == 0, np.where(between, -np.inf, np.inf), np.minimum(low, high))
    leaves = np.where(way == 0, np.inf, np.maximum(low, high))
    first, last = np.maximum(0.0, enters.max(axis=2)), np.minimum(1.0, leaves.min(axis=2))
    crossed: Array = (first < last).sum(axis=1)
    return crossed


def _best(labels: Sequence[Label], others: Sequence[Label]) -> Label:
    """The cheapest of `labels`, which rise in price, beside the others."""
    best, lowest = labels[0], math.inf
    for label in labels:
        if label.price >= lowest:
            break
        price = label.price + _quarrel(label, others)
        if price < lowest:
            best, lowest = label, price
    return best


def _quarrel(label: Label, others: Sequence[Label]) -> float:
    """Price of a label beside the others."""
    price = 0.0
    for other in others:
        price += label.box.overlap(other.box)
        if label.line and other.box.crossed(label.line):
            price += CROSSED * label.box.area
        if other.line and label.box.crossed(other.line):
            price += CROSSED * label.box.area
    return price


def _offsets(width: float, height: float) -> list[tuple[int, XY]]:
    """Rank of the gap and lower left corner of a name around its point, best first."""
    offsets: list[tuple[int, XY]] = []
    for step, gap in enumerate(GAPS):
        places = [(gap, -height / 2), (-gap - width, -height / 2)]
        for share in (0.5, 0.15, 0.85):  # of the name that is left of the point
            places += [(-share * width, gap), (-share * width, -gap - height)]
        for right, up in ((0.8, 0.5), (0.5, 0.8)):  # directions in between
            places += [
                (x, y)
                for y in (up * gap, -up * gap - height)
                for x in (right * gap, -right * gap - width)
            ]
        offsets += [(step, place) for place in places]
    return offsets
