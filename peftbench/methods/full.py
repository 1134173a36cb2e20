"""Full fine-tuning: every parameter of the backbone trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    register_method,
    without_head,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("full")
@dataclass(frozen=True)
class Full(Method):
    """All backbone parameters and the head train."""

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Full fine-tuning",
        summary="Every parameter theta of the backbone trains: logits = W f_theta(x) + b.",
        paper="arXiv:2203.12119",
        section="3.1, the baseline of every table",
        reference="KMnP/vpt@4410440",
        identity_at_init=True,
        mergeable=True,
        frozen_mode="train",  # nothing is frozen: dropout, drop-path and BatchNorm are active
        layer_decay=True,
        look=("#000000", "*"),
    )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        unique = {
            id(p): p
            for _, module in without_head(backbone, anatomy)
            for p in module.parameters(recurse=False)
        }
        return Attachment(
            backbone, tuple(unique.values()), touched=("",), train_modules=(backbone,)
        )

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return anatomy.num_params
