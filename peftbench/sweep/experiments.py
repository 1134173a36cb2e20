"""Experiments as files: what each asks, how many runs it expands to, what it costs and regenerates.

The head of a file in `experiments/` is a card in comments; its body is a sweep.

    # peftbench run -m experiments=NAME
    # Question: one sentence
    # Runs: 14 methods x 24 data sets x 5 seeds = 1680 runs, behind 18432 trials
    # GPU hours: 500 with ..., and how that was estimated
    # Table: what it regenerates

A line that is indented by three more spaces continues the one above it.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.config import foreign, grids
from peftbench.config.choices import catalogue, choices, group_dirs, is_local, method_of, pinned
from peftbench.errors import ConfigError
from peftbench.untrusted import printable

_log = logging.getLogger(__name__)

FIELDS = ("Question", "Runs", "GPU hours", "Table")
KEPT_BY_A_SEARCH = ("seed", "dataset.shot_seed")  # jobs that differ in these share a search


@dataclass(frozen=True)
class Experiment:
    """What the head of a file says; a field that it lacks is empty."""

    name: str
    command: str
    told: Mapping[str, str]  # by the names in `FIELDS`

    @property
    def question(self) -> str:
        return self.told.get("Question", "")

    @property
    def runs(self) -> int | None:
        """How many final runs it says that it has."""
        return _number(r"= ([\d,]+) runs", self.told.get("Runs", ""))

    @property
    def trials(self) -> int:
        """How many trials on val it says that come before them."""
        return _number(r"([\d,]+) trials", self.told.get("Runs", "")) or 0

    @property
    def gpu_hours(self) -> str:
        """The number in front of how it was estimated."""
        return self.told.get("GPU hours", "").partition(" ")[0].rstrip(",;:")

    @property
    def table(self) -> str:
        return self.told.get("Table", "")


@dataclass(frozen=True)
class Sweep:
    """What the body of a file runs."""

    axes: Mapping[str, tuple[str, ...]]  # by key, as Hydra expands them
    body: Mapping[str, Any]

    def __len__(self) -> int:
        """Final runs."""
        return math.prod(map(len, self.axes.values()))

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
        methods = self.axes.get("method", ("",))
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
            found = grids.find(grids.named(settings["grid"]), method_of(method))
            return len(found.without(pinned(method)))
        from peftbench.sweep.tuning.search import grid_points, space_of

        return len(grid_points(space_of(settings["space"])))


def read(path: Path) -> Experiment:
    """The card in the head of a file."""
    told: dict[str, str] = {}
    command, last = "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:]
        field, colon, rest = text.strip().partition(": ")
        if text.startswith("    ") and last:
            told[last] += f" {text.strip()}"
        elif colon and field in FIELDS:
            told[field], last = rest, field
        elif not command and re.match(r" (peftbench run|make) ", text):
            command = text.strip()
        else:
            last = ""
    return Experiment(path.stem, command, told)


def sweep(path: Path) -> Sweep:
    """The product that a file declares.

    Raises:
        ConfigError: it is no experiment.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    body = foreign.read(path)
    try:
        params = body.get("hydra", {}).get("sweeper", {}).get("params", {})
        texts = [f"{key}={value}" for key, value in params.items()]
        overrides = OverridesParser.create().parse_overrides(texts)
        if not all(isinstance(body.get(key, {}), dict) for key in ("tuner", "hydra")):
            raise TypeError("tuner is no mapping")
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
    return Sweep(axes, body)


def paths() -> list[Path]:
    """The files of all experiments, ours and those of the working directory.

    What lies there and is no experiment is told of and left out.
    """
    names = choices("experiments")
    found = []
    for folder in group_dirs("experiments"):
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in names:
                continue
            try:
                sweep(path)
            except ConfigError as error:
                if not is_local(folder):
                    raise
                _log.warning("peftbench: left out: %s", error)
            else:
                found.append(path)
    return found


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1).replace(",", "")) if found else None
