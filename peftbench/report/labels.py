"""Places for the names of points, so that none covers another, a mark or a line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

GAPS = (7.0, 10.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0)  # between a point and its name
LEADER_FROM = 11.0  # a name further away than this is joined to its point by a line
CHOICE = 12  # free places of a name after which it is not moved further away
ROUNDS = 4  # the first places names one by one; the others let early names yield to late ones

# Prices, as shares of the area of the name.
CROSSED = 0.3  # a line through a name or a mark
DOUBTFUL = 0.2  # another point is as near
STEP = 0.02  # the next wider gap

XY = tuple[float, float]
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

    def nearest(self, point: XY) -> XY:
        """The point of the box closest to `point`."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

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
    labels: list[Label] = []
    for step, places in itertools.groupby(_offsets(w, h), key=itemgetter(0)):
        for _, (dx, dy) in places:
            box = Box(x + dx, y + dy, x + dx + w, y + dy + h)
            labels.append(_option(box, step, i, points, obstacles, window))
        if sum(label.price < STEP * w * h * (step + 1) for label in labels) >= CHOICE:
            break
    return sorted(labels, key=lambda label: label.price)


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


def _option(
    box: Box, step: int, i: int, points: Sequence[XY], obstacles: Sequence[Box], window: Box
) -> Label:
    end = box.nearest(points[i])
    gap = math.dist(points[i], end)
    doubtful = any(
        math.dist(point, box.nearest(point)) < gap + 2 for k, point in enumerate(points) if k != i
    )
    line = (points[i], end) if gap > LEADER_FROM or (doubtful and gap > 0) else None
    price = sum(box.overlap(other) for other in obstacles)
    price += 10 * (box.area - box.overlap(window)) + STEP * box.area * step
    price += DOUBTFUL * box.area * doubtful
    if line:
        far = [other for other in obstacles if other.nearest(points[i]) != points[i]]
        price += CROSSED * box.area * sum(other.crossed(line) for other in far)
    return Label(box, line, price)


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
