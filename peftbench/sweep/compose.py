"""Configurations of the jobs of a sweep, as Hydra composes them; what jobs share is done once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from peftbench import mappings
from peftbench.config.choices import config_dir, entries
from peftbench.config.hydra import suite_of
from peftbench.sweep.read_once import ReadOnce

Choices = tuple[str, ...]  # overrides that choose files: "method=lora"
# groups whose choices may be put together with those of data sets
READ = ("method", "backbone", "recipe", "tuner", "logger", "protocol", "experiments")
BY_SUITE = "${suite_of:${dataset}}"


@dataclass(frozen=True)
class Composed:
    """What Hydra made of choices, and its values as they are written, before any is resolved."""

    cfg: DictConfig
    data_set: Any  # values of the part `dataset`
    rest: dict[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig) -> Composed:
        """The values beside the configuration that holds them."""
        plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
        return cls(cfg, plain.pop("dataset", None), plain)


class Composer:
    """Composes the configuration of one job after another.

    Hydra first merges the files that choices such as `method=lora` name, which takes 0.15 s, and
    then sets single values such as `seed=1` in their order. Jobs that make the same choices share
    the first step. A job with overrides of any other form is left to Hydra as a whole, and so is
    one whose values cannot be set, for Hydra's error.

    Where `data_sets_stand_apart`, choices whose parts have been composed with others are put
    together of them: 20 methods on 24 data sets of two suites are 62 compositions, and not 480.

    Args:
        loader: what composes.
        config: the configuration of the sweep itself.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        if isinstance(loader, ConfigLoaderImpl):
            loader.repository = ReadOnce(loader.get_search_path())
        self.loader = loader
        self.config = config
        self._is_group = cache(self._has_options)
        self._chosen: dict[Choices, Composed] = {}
        # by the other choices and the data set, what Hydra composed
        self._composed: dict[Choices, dict[str, Composed]] = {}
        self._apart: bool | None = None

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job without its part about Hydra; always a new one."""
        parsed = [_parsed(text) for text in overrides]
        values = [override for override in parsed if not self._is_choice(override)]
        if not all(_sets_a_value(override) for override in values):
            return self._compose(overrides)
        choices = tuple(o.input_line or "" for o in parsed if self._is_choice(o))
        try:
            cfg = self._of_choices(choices)
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            return self._compose(overrides)
        return cfg

    def _of_choices(self, choices: Choices) -> DictConfig:
        """The configuration that choices of files alone make; always a new one."""
        if choices not in self._chosen:
            parts = self._of_parts(choices)
            if parts is not None:
                return parts
            self._chosen[choices] = composed = Composed.of(self._compose(choices))
            others, data_set = _split(choices)
            if data_set is not None:
                self._composed.setdefault(others, {})[data_set] = composed
        return copy.deepcopy(self._chosen[choices].cfg)

    def _of_parts(self, choices: Choices) -> DictConfig | None:
        """The same, put together of what is known; `None` where that does not suffice."""
        others, data_set = _split(choices)
        if data_set is None or not self._may_share(others):
            return None
        for start in self._composed.get(others, ()):
            if suite_of(start) == suite_of(data_set):
                found = self._put_together(others, start, data_set)
                if found is not None:
                    return found
        return None

    def _may_share(self, choices: Choices) -> bool:
        if any(_parsed(choice).key_or_group not in READ for choice in choices):
            return False
        if self._apart is None:
            self._apart = data_sets_stand_apart()
        return self._apart

    def _put_together(self, others: Choices, start: str, data_set: str) -> DictConfig | None:
        """`others` with `data_set`, of `others` with `start` and some third choices with both."""
        mine = self._composed[others][start]
        for third, known in self._composed.items():  # the first has most
            if start not in known or data_set not in known or _fixed(third) != _fixed(others):
                continue
            before, after = known[start], known[data_set]
            if before.data_set == mine.data_set and before.rest == after.rest:
                # copied with the other part in the place of its own
                apart = {id(mine.cfg.dataset): copy.deepcopy(after.cfg.dataset)}
                return copy.deepcopy(mine.cfg, apart)
        return None

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


def data_sets_stand_apart() -> bool:
    """Whether a choice of data set changes the part `dataset`, and what its suite changes, alone.

    So it is where no file sets keys of `dataset` but its own and those of its suite, and none is
    chosen by the name of the data set but through the suite in it.
    """
    files = {group: list(entries(group).values()) for group in (*READ, "suite", "tuned")}
    experiments = files.pop("experiments")  # one for all that is put together
    texts = [str(i) for group in files for entry in files[group] for i in entry.get("defaults", ())]
    first = mappings.read(config_dir() / "config.yaml")
    shared = [str(i) for entry in (first, *experiments) for i in entry.get("defaults", ())]
    own = [str(i) for entry in entries("dataset").values() for i in entry.get("defaults", ())]
    return (
        not any("dataset" in entry for group in files if group != "suite" for entry in files[group])
        and not any("dataset" in text.replace(BY_SUITE, "") for text in texts)
        and not any("${" in t and "dataset" in t.replace(BY_SUITE, "") for t in shared)
        and not any("${" in text for text in own)
    )


def _split(choices: Choices) -> tuple[Choices, str | None]:
    """The choices without the last one of a data set, and its name; `None` unless it has one."""
    names = [str(o.value()) for o in map(_parsed, choices) if o.key_or_group == "dataset"]
    others = tuple(c for c in choices if _parsed(c).key_or_group != "dataset")
    return others, names[0] if len(names) == 1 else None


def _fixed(choices: Choices) -> set[str]:
    """The choices that decide what a suite changes: all but these two."""
    return {c for c in choices if _parsed(c).key_or_group not in ("method", "backbone")}


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
