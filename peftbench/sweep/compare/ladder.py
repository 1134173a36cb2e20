"""The methods that are compared, from cheap to dear, and how long each may train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAIVE = ("majority", "logistic", "knn")  # always among them: what any method must beat
# knn keeps all training pictures' features and folds into no plain model
LADDER = ("majority", "logistic", "linear", "knn", "norm", "ssf", "lora", "full")
HEADS = (*NAIVE, "linear", "mlp")  # of kept features, which cost nothing beside the rest
SOLVED = NAIVE
RATES = (1e-2, 3e-3, 1e-3)  # tried on val, where pretrained matrices stay frozen
HEAD_RATES = (3e-2, 1e-2, 3e-3)
RATES_OF = {"linear": HEAD_RATES, "mlp": HEAD_RATES, "full": (1e-3, 3e-4, 1e-4)}
RATES_OF |= {"partial": (3e-3, 1e-3, 3e-4), "bias": (3e-2, 1e-2, 3e-3)}
EPOCHS = (30, 20, 12, 8, 5)  # of a trial and of a final run alike, as many as the time allows
PASSES = {"full": 3.0, "partial": 1.3}  # of a training step, in forward passes
BESIDE_FROZEN = 2.3  # the same of all that stays beside frozen weights
MARGIN = 1.2  # by which an estimate may be too low


@dataclass(frozen=True)
class Pace:
    """What a method's epoch costs here."""

    seconds_an_image: float  # of one training step, or of a forward pass where none was timed
    timed: bool = False  # whether steps of this method were


def rates_of(method: str) -> tuple[float, ...]:
    """Learning rates that are tried; none for a method that takes no steps."""
    return () if method in SOLVED else RATES_OF.get(method, RATES)


def is_head(method: str) -> bool:
    """Whether it trains on kept features."""
    return method in HEADS


def seconds_of(method: str, pace: Pace, epochs: int, images: int) -> float:
    """Of one training with that many epochs of so many images."""
    passes = 1.0 if pace.timed else PASSES.get(method, BESIDE_FROZEN)
    return epochs * images * passes * pace.seconds_an_image


@dataclass(frozen=True)
class Length:
    """How much a method trains."""

    epochs: int
    rates: int  # that are tried

    def tried(self, method: str) -> tuple[float, ...]:
        """All rates of a method, or the middle one alone."""
        known = rates_of(method)
        return known if self.rates >= len(known) else known[len(known) // 2 :][:1]


def length_that_fits(method: str, pace: Pace, images: int, seconds: float) -> Length | None:
    """The longest training whose trials and final run fit in `seconds`; `None` where none does.

    All rates in few epochs come before one rate in many.
    """
    for rates in (len(rates_of(method)), 1):
        for epochs in EPOCHS:
            if MARGIN * (rates + 1) * seconds_of(method, pace, epochs, images) <= seconds:
                return Length(epochs, rates)
    return None


def in_order(asked: Sequence[str]) -> tuple[str, ...]:
    """Methods from cheap to dear, the naive ones first and always."""
    known = [m for m in LADDER if m in asked or m in NAIVE]
    others = [m for m in asked if m not in LADDER]
    full = [m for m in known if m == "full"]
    middle = [m for m in known if m != "full"]
    return (*middle, *others, *full)
