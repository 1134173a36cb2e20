"""Methods as a user may get them wrong; none is registered, all are for ViTs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods import Attachment, Method, MethodCard


@dataclass(frozen=True)
class AddsUnused(Method):
    """Adds a tensor to the first block, which no computation reads."""

    name: ClassVar[str] = "adds_unused"
    card: ClassVar[MethodCard] = MethodCard(
        title="Odd", paper="-", section="-", reference="-", identity_at_init=True, mergeable=False
    )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        parameter = nn.Parameter(torch.randn(3, generator=generator))
        backbone.get_submodule("blocks.0").register_parameter("own", parameter)
        return Attachment(backbone, (parameter,), touched=("blocks.0",))

    def expected_params(self, anatomy: Anatomy) -> int:
        return 3


@dataclass(frozen=True)
class TrainsOutside(AddsUnused):
    """Declares a parameter that is nowhere in the model."""

    name: ClassVar[str] = "trains_outside"

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, (nn.Parameter(torch.zeros(3)),), touched=("blocks.0",))


@dataclass(frozen=True)
class TouchesNothing(AddsUnused):
    """Finds no site and says so by an empty tuple."""

    name: ClassVar[str] = "touches_nothing"

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, (), touched=())
