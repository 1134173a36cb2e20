"""What this folder knows of a method that is a tuner of `peft`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from peftbench.backbones.anatomy import Anatomy, Site


class DeclaredEntry(Protocol):
    """What the table says of it."""

    @property
    def tuner(self) -> str: ...

    @property
    def schedule(self) -> Mapping[str, float]: ...

    @property
    def merges(self) -> bool: ...

    @property
    def derived(self) -> bool: ...


class DeclaredTuner(Protocol):
    """A tuner with its settings."""

    @property
    def name(self) -> str: ...

    @property
    def entry(self) -> DeclaredEntry: ...

    @property
    def options(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]: ...

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]: ...

    def merge(self, model: nn.Module) -> nn.Module: ...

    def expected_params(self, anatomy: Anatomy) -> int: ...
