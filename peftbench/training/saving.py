"""When the state of an unfinished training is saved; loading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import ConfigError
from peftbench.training.world import World

if TYPE_CHECKING:
    from peftbench.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class CheckpointPolicy:
    """How often the state of a training is saved, besides when it is stopped.

    Schema of `checkpoint`; no identity of a run.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for key in ("minutes", "steps"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint.{key}={value}; use a positive value, or null.")

    def to(self, path: Path, world: World) -> Checkpoints:
        """What saves to `path`."""
        from peftbench.training.checkpoint import Checkpoints

        return Checkpoints(path, self.minutes, self.steps, world)


WHEN_STOPPED = CheckpointPolicy()  # and not before
