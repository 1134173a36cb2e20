"""Experiments as files: what each asks, how many runs it expands to, what it regenerates.

A file in `experiments/` is a sweep. Its key `experiments` is about itself; runs, trials and GPU
hours are computed from the sweep and not written.

    experiments:
      question: one sentence
      table: what it regenerates
      gpu_hours: 0  # only where `hours` cannot estimate them
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench import mappings
from peftbench.config import grids
from peftbench.config.choices import catalogue, choices, group_dirs, is_local, method_of, pinned
from peftbench.config.globs import all_written_out
from peftbench.errors import ConfigError
from peftbench.untrusted import printable

_log = logging.getLogger(__name__)

KEPT_BY_A_SEARCH = ("seed", "dataset.shot_seed")  # jobs that differ in these share a search


@dataclass(frozen=True)
class Experiment:
    """What a file says of itself; a text that it lacks is empty."""

    name: str
    question: str
    table: str
    gpu_hours: str


@dataclass(frozen=True)
class Sweep:
    """What the body of a file runs."""

    name: str
    axes: Mapping[str, tuple[str, ...]]  # by key, as Hydra expands them
    body: Mapping[str, Any]

    def __len__(self) -> int:
        """Final runs."""
        return math.prod(map(len, self.axes.values()))

    @property
    def card(self) -> Experiment:
        """What the file says of itself."""
        declared = self.body.get("experiments") or {}
        question, table, gpu_hours = (
            str(declared.get(key, "")) for key in ("question", "table", "gpu_hours")
        )
        return Experiment(self.name, question, table, gpu_hours)

    def choice(self, group: str) -> str | None:
        """What the file chooses of a group for all of its runs."""
        for entry in self.body.get("defaults", []):
            if isinstance(entry, dict) and f"override /{group}" in entry:
                return str(entry[f"override /{group}"])
        return None

    def cells(self) -> list[dict[str, str]]:
        """One choice for each search: the axes without what a search keeps together."""
        axes = {k: v for k, v in self.axes.items() if k not in KEPT_BY_A_SEARCH}
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]

    @property
    def trials(self) -> int:
        """Trials of all searches."""
        methods = self.axes.get("method", (self.choice("method") or "linear",))
        searches = len(self.cells()) // len(methods)  # of each method
        return sum(self.budget(method) for method in methods) * searches

    def budget(self, method: str) -> int:
        """Trials of one search of a method."""
        tuner = self.choice("tuner")
        if tuner is None or tuner == "none":
            return 0
        settings = {**catalogue("tuner").get(tuner, {}), **self.body.get("tuner", {})}
        if settings.get("trials") is not None:
            return int(settings["trials"])
        if settings.get("grid"):
            grid = grids.find(grids.named(settings["grid"]), method_of(method))
            return len(grid.without(pinned(method)))
        from peftbench.sweep.tuning.search import grid_points, space_of

        return len(grid_points(space_of(settings.get("space") or {})))


def sweep(path: Path) -> Sweep:
    """The product that a file declares.

    Raises:
        ConfigError: it is no experiment.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    body = mappings.read(path)
    try:
        params = body.get("hydra", {}).get("sweeper", {}).get("params", {})
        texts = [f"{key}={value}" for key, value in params.items()]
        overrides = OverridesParser.create().parse_overrides(all_written_out(texts))
        if not all(isinstance(body.get(key, {}), dict) for key in ("tuner", "hydra")):
            raise TypeError("tuner is no mapping")
        if not isinstance(body.get("experiments") or {}, dict):
            raise TypeError("experiments is no mapping")
        if not isinstance(body.get("defaults", []), list):
            raise TypeError("defaults is no list")
    except (AttributeError, TypeError, HydraException) as error:
        reason = printable(str(error).strip().partition("\n")[0])
        raise ConfigError(f"{path} is no experiment: {reason}. Correct the file.") from error
    axes = {
        str(override.get_key_element()): tuple(map(str, override.sweep_string_iterator()))
        if override.is_sweep_override()
        else (str(override.get_value_element_as_str()),)
        for override in overrides
    }
    return Sweep(path.stem, axes, body)


def every() -> dict[Path, Sweep]:
    """All experiments by their files, ours and those of the working directory.

    What lies there and is no experiment is told of and left out.
    """
    names = choices("experiments")
    result = {}
    for folder in group_dirs("experiments"):
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in names:
                continue
            try:
                declared = _searchable(path)
            except ConfigError as error:
                if not is_local(folder):
                    raise
                _log.warning("peftbench: left out: %s", error)
            else:
                result[path] = declared
    return result


def _searchable(path: Path) -> Sweep:
    """As `sweep`; `ConfigError` with the path where it searches what is not there."""
    declared = sweep(path)
    try:
        _ = declared.trials
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return declared
