"""The files of a configuration, read once for many compositions."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class ReadOnce(ConfigRepository):
    """The files of a configuration, each read and parsed once for all jobs of a sweep.

    Hydra copies its repository for each composition and reads every file again.
    """

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Search other places from now on."""
        super().initialize_sources(config_search_path)
        self._known: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The file of that path, with its defaults list; `None` where there is none."""
        if config_path not in self._known:
            self._known[config_path] = super().load_config(config_path)
        return copy.deepcopy(self._known[config_path])

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        return copy.copy(self)  # places are never changed but by `initialize_sources`
