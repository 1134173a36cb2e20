"""What goes through Hydra from a command to a launcher, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from peftbench.sweep.jobs import Ending


@dataclass(frozen=True)
class Handover:
    """What Hydra calls with a composed configuration, or gives to a launcher in its place."""

    do: Callable[[DictConfig], None]
    flags: tuple[str, ...]  # options of Hydra that jobs in processes of their own need too
    plans: bool = False  # whether a launcher only tells what it would do
    unfinished: list[Ending] = field(default_factory=list)  # left by a launcher for the command

    def __call__(self, cfg: DictConfig) -> None:
        self.do(cfg)
