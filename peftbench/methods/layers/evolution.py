"""Subnets as lists of widths, and a search over them by evolution. Loading it needs no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_TRIES = 100  # draws for one subnet that the budget allows


@dataclass(frozen=True)
class Subnet:
    """How many prompts, ranks and hidden units each block has; 0 of what it lacks."""

    prompts: tuple[int, ...]
    lora: tuple[int, ...]
    adapters: tuple[int, ...]

    @property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        return (self.prompts, self.lora, self.adapters)


@dataclass(frozen=True)
class Space:
    """What subnets there are: each kind has widths in its first blocks and none behind them."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]  # numbers of blocks
    num_blocks: int

    def draw(self, rng: random.Random) -> Subnet:
        """Any subnet, each width and depth as likely as any other."""
        return Subnet(*(self._kind(rng) for _ in range(3)))

    def mutated(
        self, parent: Subnet, rng: random.Random, width_rate: float, depth_rate: float
    ) -> Subnet:
        """A child some of whose widths, and maybe depths, are drawn anew."""
        kinds = []
        for widths in parent.kinds:
            depth = sum(width > 0 for width in widths)
            if rng.random() < depth_rate:
                depth = rng.choice(self.depths)
            kept = [
                width if width and rng.random() >= width_rate else rng.choice(self.widths)
                for width in widths[:depth]
            ]
            kinds.append(self._padded(kept))
        return Subnet(*kinds)

    def crossed(self, one: Subnet, other: Subnet, rng: random.Random) -> Subnet:
        """A child whose depth of each kind is that of one parent, and each width of either."""
        kinds = []
        for first, second in zip(one.kinds, other.kinds, strict=True):
            depth = sum(width > 0 for width in rng.choice((first, second)))
            pairs = zip(first[:depth], second[:depth], strict=True)
            kinds.append(self._padded([rng.choice([w for w in pair if w]) for pair in pairs]))
        return Subnet(*kinds)

    def _kind(self, rng: random.Random) -> tuple[int, ...]:
        return self._padded([rng.choice(self.widths) for _ in range(rng.choice(self.depths))])

    def _padded(self, widths: Sequence[int]) -> tuple[int, ...]:
        return (*widths, *[0] * (self.num_blocks - len(widths)))


@dataclass(frozen=True)
class Evolution:
    """How many subnets are looked at, and how children differ from their parents."""

    rounds: int
    population: int  # of each round
    parents: int  # the best so far
    crossed: int  # children of two parents in each round
    mutated: int  # children of one
    width_rate: float
    depth_rate: float

    def best(
        self,
        space: Space,
        size: Callable[[Subnet], int],
        most: int,
        score: Callable[[Subnet], float],
        rng: random.Random,
    ) -> tuple[Subnet, dict[Subnet, float]]:
        """The subnet of the highest score with at most `most` parameters, and all that were scored.

        Of equals the smaller wins, then the earlier.

        Raises:
            ValueError: no subnet is small enough.
        """
        scores: dict[Subnet, float] = {}

        def ranked() -> list[Subnet]:
            return sorted(scores, key=lambda subnet: (-scores[subnet], size(subnet)))

        def add(draw: Callable[[], Subnet], number: int) -> None:
            left = number
            for _ in range(MOST_TRIES * number):
                if not left:
                    return
                subnet = draw()
                if subnet not in scores and size(subnet) <= most:
                    scores[subnet] = score(subnet)
                    left -= 1

        add(lambda: space.draw(rng), self.population)
        if not scores:
            raise ValueError("no subnet is small enough")
        for _ in range(self.rounds):
            top = ranked()[: self.parents]
            add(self._mutants(space, top, rng), self.mutated)
            add(self._crossings(space, top, rng), self.crossed)
        return ranked()[0], scores

    def _mutants(self, space: Space, top: list[Subnet], rng: random.Random) -> Callable[[], Subnet]:
        return lambda: space.mutated(rng.choice(top), rng, self.width_rate, self.depth_rate)

    def _crossings(
        self, space: Space, top: list[Subnet], rng: random.Random
    ) -> Callable[[], Subnet]:
        return lambda: space.crossed(rng.choice(top), rng.choice(top), rng)
