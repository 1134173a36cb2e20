"""What a model says of one picture."""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.errors import ConfigError

TOP = 5  # classes that a prediction names


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture."""

    class_name: str  # the likeliest class
    probability: float  # of it, within 0 and 1
    top: tuple[tuple[str, float], ...]  # the likeliest classes with their probabilities, in order


def check_top(top: object) -> None:
    """Raise `ConfigError` unless `top` is a number of classes."""
    if type(top) is not int or top < 1:
        raise ConfigError(f"top={top} is no number of classes. Use 1 or more.")
