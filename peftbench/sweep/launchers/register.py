"""Every launcher and sweeper, made known to Hydra.

An installed package adds launchers through the entry point group `peftbench.launchers`.
"""

from __future__ import annotations

from functools import cache

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

from peftbench import plugins
from peftbench.config import hydra
from peftbench.sweep.launchers.base import LAUNCHERS, PLUGINS


@cache
def register() -> None:
    """Tell Hydra all that peftbench adds to it; once a process."""
    hydra.register()
    known = Plugins.instance()  # before ours are stored: an installed plugin is called ray too
    from peftbench.sweep.launchers import cluster, pool, product  # noqa: F401  # theirs too

    plugins.load("launchers")
    store = ConfigStore.instance()
    for name in LAUNCHERS:
        store.store(group="hydra/launcher", name=name, node=LAUNCHERS[name].config)
    store.store(group="hydra/sweeper", name="product", node=product.ProductConfig)
    offered: list[type[Plugin]] = [LAUNCHERS[name].launcher for name in LAUNCHERS]
    offered.append(product.ProductSweeper)
    for plugin in offered:
        known.register(plugin)
        known.class_name_to_class[f"{PLUGINS}.{plugin.__name__}"] = plugin
