"""Loggers: mirrors of a run elsewhere. The results store is the truth and needs none of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from peftbench.errors import ConfigError

# importing a module registers its logger; what it logs with is imported when a run starts
from peftbench.loggers import csv, tensorboard, wandb
from peftbench.loggers.base import LOGGERS, Logger, LoggerError, LoggerSettings
from peftbench.loggers.guard import WARNING, Guard

__all__ = [
    "LOGGERS",
    "WARNING",
    "Guard",
    "Logger",
    "LoggerError",
    "LoggerSettings",
    "check",
    "csv",
    "make",
    "tensorboard",
    "wandb",
]


def make(settings: LoggerSettings, root: Path | str) -> Guard:
    """The logger that `settings` ask for, behind its guard; `root` is the results folder.

    Raises:
        ConfigError: no logger has this name, or the package it needs is not installed.
    """
    check(settings)
    if settings.name == "none":
        return Guard(None)
    return Guard(LOGGERS[settings.name](settings, Path(root)), settings.timeout)


def check(settings: LoggerSettings) -> None:
    """Raise `ConfigError` for a logger that does not exist or lacks its package."""
    if settings.name == "none":
        return
    for package in LOGGERS[settings.name].packages:
        require(package, f"logger={settings.name}")


def require(package: str, who: str) -> None:
    """Raise `ConfigError` unless `package` can be imported; it is not imported."""
    if importlib.util.find_spec(package) is None:
        distribution = package.replace("_", "-")
        raise ConfigError(
            f"{who} needs {distribution}, which is not installed. Run: pip install {distribution}"
        )
