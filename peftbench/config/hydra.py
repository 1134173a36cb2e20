"""What Hydra needs to compose a run: search path, schemas and resolvers."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from peftbench import methods
from peftbench.config.choices import config_dirs, group_dirs, method_of
from peftbench.config.schema import RunConfig, TunerConfig
from peftbench.errors import ConfigError


class PeftbenchSearchPath(SearchPathPlugin):
    """Lets Hydra find configurations outside our own folder, and `experiments/` as a group."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        _offer_methods_without_file()
        for folder in config_dirs()[1:]:
            search_path.append("peftbench", f"file://{folder}")
        for folder in group_dirs("experiments"):
            search_path.append("peftbench", f"file://{folder.parent}")


@cache
def register() -> None:
    """Tell Hydra the schemas, the search path and the resolvers; once a process."""
    methods.discover()
    store = ConfigStore.instance()
    store.store(name="schema", node=_writable(RunConfig))
    store.store(group="schema", name="tuner", node=TunerConfig)
    for name in methods.METHODS:
        store.store(group="schema/method", name=name, node=_writable(methods.METHODS[name]))
    Plugins.instance().register(PeftbenchSearchPath)
    OmegaConf.register_new_resolver("suite_of", suite_of)
    OmegaConf.register_new_resolver("method_of", method_of)
    OmegaConf.register_new_resolver("by_dataset", _by_dataset)
    OmegaConf.register_new_resolver("in_suite", _in_suite)


def _offer_methods_without_file() -> None:
    """A method without a YAML of its own is chosen by name all the same.

    Hydra refuses two of a name, so where the working directory has such a file, ours goes.
    """
    store = ConfigStore.instance()
    folders = group_dirs("method")
    offered = store.repo.setdefault("method", {})
    for name in methods.METHODS:
        method = methods.METHODS[name]
        held = offered.get(f"{name}.yaml")
        if any((folder / f"{name}.yaml").is_file() for folder in folders):
            offered.pop(f"{name}.yaml", None)
        elif held is None or OmegaConf.get_type(held.node) is not method:  # making it takes 1 ms
            store.store(group="method", name=name, node=_writable(method))


def suite_of(dataset: str) -> str:
    """The suite in the name of a data set: "vtab" of "vtab/dtd"; else the name itself."""
    return dataset.partition("/")[0]


def _in_suite(suite: str, value: Any, *, _root_: DictConfig) -> Any:
    """`value` where the run's data set is of that suite, else nothing: `${in_suite:mini,64}`."""
    return value if suite_of(str(_root_.dataset.name)) == suite else None


def _by_dataset(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """What an overlay's table has under `key` for the run's data set: `${by_dataset:key}`."""
    rows = _root_.by_dataset or {}
    row = rows.get(str(_root_.dataset.name).rpartition("/")[2], {})
    if key not in row and default is None:
        known = [name for name in map(str, rows) if key in rows[name]]
        raise ConfigError(
            f"recipe={_root_.recipe.name} has no value for dataset={_root_.dataset.name} in its "
            f"table of {key}. Give it on the command line, or use one of: {', '.join(known)}."
        )
    return row.get(key, default)


def _writable(cls: type) -> DictConfig:
    """A schema of a frozen dataclass that configurations may still fill."""
    node: DictConfig = OmegaConf.structured(cls)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = None if OmegaConf.is_missing(node, str(key)) else node[str(key)]
        if isinstance(child, DictConfig):
            _unlock(child)
