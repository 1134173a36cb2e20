"""Every launcher and sweeper, made known to Hydra."""

from __future__ import annotations

from functools import cache

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from peftbench.config import hydra
from peftbench.sweep.launchers.base import PLUGINS
from peftbench.sweep.launchers.pool import PoolConfig, PoolLauncher


@cache
def register() -> None:
    """Tell Hydra all that peftbench adds to it; once a process."""
    hydra.register()
    plugins = Plugins.instance()  # before ours are stored: an installed plugin is called ray too
    from peftbench.sweep.launchers.cluster import RayConfig, RayLauncher, SlurmConfig, SlurmLauncher
    from peftbench.sweep.launchers.plan import PlanConfig, PlanLauncher
    from peftbench.sweep.launchers.product import (  # not before the plugins
        ProductConfig,
        ProductSweeper,
    )

    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="pool", node=PoolConfig)
    store.store(group="hydra/launcher", name="slurm", node=SlurmConfig)
    store.store(group="hydra/launcher", name="ray", node=RayConfig)
    store.store(group="hydra/launcher", name="plan", node=PlanConfig)
    store.store(group="hydra/sweeper", name="product", node=ProductConfig)
    for plugin in (PoolLauncher, SlurmLauncher, RayLauncher, PlanLauncher, ProductSweeper):
        plugins.register(plugin)
        plugins.class_name_to_class[f"{PLUGINS}.{plugin.__name__}"] = plugin
