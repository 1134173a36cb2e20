"""Configurations of the jobs of a sweep, as Hydra composes them; what jobs share is done once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Composes the configuration of one job after another.

    Hydra first merges the files that choices such as `method=lora` name, which takes 0.15 s, and
    then sets single values such as `seed=1` in their order. Jobs that make the same choices share
    the first step. A job with overrides of any other form is left to Hydra as a whole, and so is
    one whose values cannot be set, for Hydra's error.

    Args:
        loader: what composes.
        config: the configuration of the sweep itself.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.loader = loader
        self.config = config
        self._is_group = cache(self._has_options)
        self._chosen: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job without its part about Hydra; always a new one."""
        parsed = [_parsed(text) for text in overrides]
        values = [override for override in parsed if not self._is_choice(override)]
        if not all(_sets_a_value(override) for override in values):
            return self._compose(overrides)
        choices = tuple(o.input_line or "" for o in parsed if self._is_choice(o))
        try:
            if choices not in self._chosen:
                self._chosen[choices] = self._compose(choices)
            cfg = copy.deepcopy(self._chosen[choices])
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            return self._compose(overrides)
        return cfg

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        cfg = self.loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _is_choice(self, override: Override) -> bool:
        """Whether Hydra takes it for a choice of files; a mapping is values all the same."""
        return self._is_group(override.key_or_group) and not isinstance(override.value(), dict)

    def _has_options(self, key: str) -> bool:
        options = self.loader.get_group_options(
            key,
            results_filter=None,
            config_name=self.config.hydra.job.config_name,
            overrides=list(self.config.hydra.overrides.hydra),
        )
        return bool(options)


@cache
def _parsed(text: str) -> Override:
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


def _sets_a_value(override: Override) -> bool:
    """Whether an override that chooses no file is of the form `key=value`."""
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and not override.is_hydra_override()
        and not override.is_sweep_override()
    )
