"""Hydra in the test's process reads each shipped file once: a quarter of the time of composing.

A composition parses 14 files of YAML and copies every schema that is known, 0.12 s of one core,
and the tests compose 500 times. Files of a test's own are read each time, for they change, and
commands in processes of their own have Hydra as it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigResult, ConfigSource

from peftbench.config.choices import config_dir


@pytest.fixture(scope="session", autouse=True)
def quick_hydra() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shipped = (str(config_dir()), str(config_dir().parent))
        _keep(patch, FileConfigSource, shipped)
        _keep(patch, ImportlibResourcesConfigSource, ("hydra/conf",))
        # a copy of what refers to the store need not copy it: it hands out copies of its schemas
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, memo: store, raising=False)
        yield


def _keep(patch: pytest.MonkeyPatch, kind: type[ConfigSource], folders: tuple[str, ...]) -> None:
    """Sources of a kind that are for `folders` read a file once; each caller gets its own copy."""
    read = kind.load_config
    kept: dict[tuple[str, str], bytes] = {}

    def load_config(source: ConfigSource, config_path: str) -> ConfigResult:
        if source.path not in folders:
            return read(source, config_path)
        key = (source.path, config_path)
        if key not in kept:
            kept[key] = pickle.dumps(read(source, config_path), pickle.HIGHEST_PROTOCOL)
        found: ConfigResult = pickle.loads(kept[key])
        return found

    patch.setattr(kind, "load_config", load_config)
