"""Hydra's basic sweeper for launchers that compose their jobs themselves.

To be imported once Hydra has loaded its own plugins: it does so by running their modules again,
and a subclass of what was there before is none of what is there afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf

from peftbench.config.globs import all_written_out
from peftbench.sweep.launchers.base import PLUGINS, JobLauncher


@dataclass
class ProductConfig(BasicSweeperConf):
    """Schema of `hydra/sweeper=product`, which takes what the basic one does."""

    _target_: str = f"{PLUGINS}.ProductSweeper"


class ProductSweeper(BasicSweeper):
    """The product of all lists, as Hydra's own, without composing every job twice."""

    def _parse_config(self) -> list[str]:
        """The sweep of the configuration, with names in place of globs."""
        return all_written_out(super()._parse_config())

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose all jobs in advance, unless the launcher does so before it starts any."""
        if not isinstance(self.launcher, JobLauncher):
            super().validate_batch_is_legal(batch)
