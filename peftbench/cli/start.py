"""How Hydra is started: by itself, or without what is known already.

Hydra composes the whole configuration once more before a run or a sweep to see whether it sets
`hydra.mode`: half of the time between a command and its run, 0.2 s of one core.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace

from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path
from hydra.core.global_hydra import GlobalHydra

from peftbench.config.choices import config_dir, only_ours
from peftbench.sweep.launchers.handover import Handover

MODE = re.compile(r"[+~]*hydra\.mode\b")
HYDRA_OWN = re.compile(r"[+~]*hydra(?!\.sweep\.dir=)")  # which `run` adds, and one run ignores


def start(options: Namespace, parser: ArgumentParser, task: Handover) -> None:
    """Do what the options of Hydra ask for with the configuration `config`."""
    one, several = is_one_run(options), is_plain_sweep(options)
    if not one and not several:
        _run_hydra(options, parser, task, str(config_dir()), "config")
        return
    name = Handover.__module__.rpartition(".")[2]  # as Hydra names a job
    hydra = Hydra.create_main_hydra2(name, create_config_search_path(str(config_dir())))
    try:
        if one:
            hydra.run("config", task, [*options.overrides, "hydra.mode=RUN"])
        else:
            hydra.multirun("config", task, [*options.overrides, "hydra.mode=MULTIRUN"])
    finally:
        GlobalHydra.instance().clear()


def is_one_run(options: Namespace) -> bool:
    """Whether these options of Hydra ask for one run, whatever the configuration says.

    A configuration that is none of ours may set `hydra.mode`, as an override may.
    """
    return (
        not options.multirun
        and _asks_for_nothing_else(options)
        and not any(HYDRA_OWN.match(override) for override in options.overrides)
        and only_ours()
    )


def is_plain_sweep(options: Namespace) -> bool:
    """Whether they ask for a sweep and nothing else; that overrules a mode in a file."""
    return (
        options.multirun
        and not options.run  # both are refused
        and _asks_for_nothing_else(options)
        and not any(MODE.match(override) for override in options.overrides)
    )


def _asks_for_nothing_else(options: Namespace) -> bool:
    """Whether no option is given but `--run` and `--multirun`."""
    plain = ("run", "multirun", "overrides")
    return not any(value for name, value in vars(options).items() if name not in plain)
