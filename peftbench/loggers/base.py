"""What a logger is and how it is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peftbench.errors import ConfigError, PeftbenchError
from peftbench.registry import Registry, unknown_name
from peftbench.results.record import EpochRow, RunRecord

MODES = ("auto", "online", "offline")


class LoggerError(PeftbenchError):
    """A logger that could not do its part; becomes a warning and never a failed run."""


@dataclass(frozen=True)
class LoggerSettings:
    """Schema of the group `logger`. None of it is part of a run's identity."""

    name: str = "none"
    project: str = "peftbench"
    entity: str | None = None  # user or team; None: the default of the account
    group: str | None = None  # None: the name of the experiment, or a digest of the sweep
    tags: tuple[str, ...] = ()  # beside method, backbone, data set, suite and status
    mode: str = "auto"  # online where there is a key, else offline; never asks for one
    timeout: float = 20.0  # seconds that a run waits for its logger, once and at its end

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("logger.mode", self.mode, MODES)
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(
                f"logger.timeout={self.timeout} is no time to wait. Use a number of seconds."
            )
        object.__setattr__(self, "tags", tuple(self.tags))


class Logger(ABC):
    """Mirrors one run. Called in order, from one thread that is not the one that trains.

    A method may block and may raise: the guard bounds both.
    """

    packages: ClassVar[tuple[str, ...]] = ()  # what it needs beside our own requirements

    def __init__(self, settings: LoggerSettings, root: Path) -> None:
        self.settings = settings
        self.root = root

    @abstractmethod
    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        """A run begins; `spec` is what its record will hold under that name."""

    @abstractmethod
    def epoch(self, row: EpochRow) -> None:
        """An epoch of training is over."""

    @abstractmethod
    def finish(self, record: RunRecord) -> None:
        """The run is over and in the store."""

    def close(self) -> None:  # noqa: B027 - most loggers hold nothing that can hang
        """Let go at once, possibly while another thread is inside a method that hangs."""


LOGGERS: Registry[type[Logger]] = Registry("logger")


def flat(value: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Nested mappings as one, with joined keys; `None` and empty values are left out."""
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            inner = flat(item, separator)
            leaves |= {f"{key}{separator}{name}": leaf for name, leaf in inner.items()}
        elif item is not None and item != "":
            leaves[str(key)] = item
    return leaves


def history_row(row: EpochRow) -> dict[str, float]:
    """An epoch under the names that charts show."""
    return {
        "epoch": row.epoch,
        "train/loss": row.loss,
        "train/accuracy": row.accuracy,
        "train/lr": row.lr,
        "train/seconds": row.seconds,
    }
