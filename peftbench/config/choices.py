"""The names that a group of the configuration has, from every folder that is searched."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from peftbench import methods, plugins, shipped
from peftbench.config import foreign
from peftbench.config.schema import DATA_DIR
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

_log = logging.getLogger(__name__)


def config_dir() -> Path:
    """The folder with `config.yaml`: inside an installed package, or at the top of a clone."""
    return shipped.folder("conf", "conf", "config.yaml")


def config_dirs() -> list[Path]:
    """Folders searched for configuration groups, in order of precedence.

    Ours, then the working directory's own `conf/`, then those of installed packages.
    """
    methods.discover()  # whose schemas the files of methods take
    ours = config_dir()
    local = Path.cwd() / "conf"
    folders = [ours, *plugins.config_dirs()]
    if os.path.isdir(local) and not local.samefile(ours):
        folders.insert(1, local)
    return folders


def group_dirs(group: str) -> list[Path]:
    """Folders whose YAML files are the choices of `group`."""
    if group == "experiments":
        parents = dict.fromkeys((config_dir().parent, Path.cwd()))
        return [p / group for p in parents if os.path.isdir(p / group)]
    return [folder / group for folder in config_dirs() if os.path.isdir(folder / group)]


def only_ours() -> bool:
    """Whether all that can be chosen comes with peftbench."""
    ours = config_dir()
    experiments = {folder.parent for folder in group_dirs("experiments")}
    return config_dirs() == [ours] and experiments <= {ours.parent}


def method_of(choice: str) -> str:
    """The method that a choice is a row of: "mlp" of "mlp/5"; else the choice itself."""
    return choice.partition("/")[0]


def pinned(choice: str) -> frozenset[str]:
    """Keys that a choice of method fixes in its file: `{"method.num_layers"}` of "mlp/5"."""
    entry = catalogue("method").get(choice, {})
    return frozenset(f"method.{key}" for key in entry if key != "defaults")


def catalogue(group: str) -> dict[str, dict[str, Any]]:
    """Every configuration of a group by its name ("mini/digits"), as plain YAML; aliases left out.

    An alias holds a defaults list and nothing else.
    """
    return {name: e for name, e in entries(group).items() if e.keys() != {"defaults"}}


def in_data_dir(entry: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    """The keys of a file that have a value without Hydra: `${data_dir}` is filled in.

    Keys with any other interpolation, with `???`, or that need a `data_dir` which is `None` are
    left out.
    """
    plain = dict(entry)
    for key, value in entry.items():
        if isinstance(value, str) and data_dir is not None:
            plain[key] = value = value.replace(DATA_DIR, data_dir)
        if isinstance(value, str) and ("${" in value or value == "???"):
            del plain[key]
    return plain


def aliases_of(group: str) -> dict[str, str]:
    """Other names of configurations, and what they stand for."""
    return {
        name: str(entry["defaults"][0])
        for name, entry in entries(group).items()
        if entry.keys() == {"defaults"}
    }


def read_group(group: str) -> tuple[dict[str, dict[str, Any]], dict[str, ConfigError]]:
    """The choices of a group by name, and what is wrong with files that are none.

    Folders of the working directory may be somebody else's, so what is wrong there is told, and
    refused where it is asked for. A folder is read once a process.

    Raises:
        ConfigError: a file that peftbench or an installed package comes with is broken.
    """
    return _read(group, tuple((folder, is_local(folder)) for folder in group_dirs(group)))


@cache
def _read(
    group: str, folders: tuple[tuple[Path, bool], ...]
) -> tuple[dict[str, dict[str, Any]], dict[str, ConfigError]]:
    """As `read_group`, from folders that may be somebody else's or not."""
    entries: dict[str, dict[str, Any]] = {}
    wrong: dict[str, ConfigError] = {}
    for folder, local in folders:
        # below experiments/ are the tables that they measure
        pattern = "*.yaml" if group == "experiments" else "**/*.yaml"
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in entries:
                continue
            try:
                entries[name] = foreign.read_of_group(group, path)
            except ConfigError as error:
                if not local:
                    raise
                wrong.setdefault(name, error)
    if wrong:
        first = next(iter(wrong.values()))
        more = f" {len(wrong) - 1} more files there are left out too." if len(wrong) > 1 else ""
        _log.warning("peftbench: left out: %s%s", first, more)
    return entries, wrong


def is_local(folder: Path) -> bool:
    """Whether a folder of a group is one of the working directory, and not ours."""
    local = [Path.cwd() / "conf", Path.cwd() / "experiments"]
    ours = (config_dir(), config_dir().parent / "experiments")
    return any(folder.is_relative_to(place) for place in local) and not any(
        folder.is_relative_to(place) for place in ours
    )


def entries(group: str) -> dict[str, dict[str, Any]]:
    return read_group(group)[0]


def choices(group: str) -> set[str]:
    """Names that `group=NAME` accepts, aliases included."""
    names = set(entries(group))
    if group == "method":
        names |= set(methods.METHODS)
    return names


def check_choices(group: str, chosen: Iterable[str]) -> None:
    """Raise `UnknownName` with suggestions for a name that `group` does not have."""
    known = choices(group)
    for name in chosen:
        if name in read_group(group)[1]:
            raise read_group(group)[1][name]
        if name not in known:
            error = unknown_name(group, name, known)
            hint = {
                "backbone": " Any timm tag works too: backbone.name=TAG.",
                "dataset": " Your own images: dataset=folder dataset.root=PATH.",
            }.get(group, "")
            raise type(error)(f"{error}{hint}")
