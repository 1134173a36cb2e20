"""Linear probing: the backbone is frozen, a linear classifier trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("linear")
@dataclass(frozen=True)
class Linear(Method):
    """logits = W f(x) + b with f frozen."""

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Linear probing",
        summary="Only a linear classifier trains on frozen features: logits = W f(x) + b.",
        paper="arXiv:2203.12119",
        section="4.1, baseline 'Linear'",
        reference="KMnP/vpt@4410440",
        identity_at_init=True,
        mergeable=True,
        head_only=True,
        look=("#000000", "s"),
    )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, trainable=(), touched=())

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return 0
