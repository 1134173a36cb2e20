"""Norm tuning: the scales and shifts of norms train (Frankle et al., 2021, arXiv 2003.00152)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("norm")
@dataclass(frozen=True)
class Norm(Method):
    """Every scale and shift of LayerNorm, BatchNorm and their relatives trains."""

    card: ClassVar[MethodCard] = MethodCard(
        title="Norm tuning",
        summary="The scale and shift of every norm train: y = g * (x - mean) / std + b.",
        paper="arXiv:2003.00152",
        section="3, BatchNorm of ResNets",
        reference="none",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "all norms and not only BatchNorm, on a pretrained network and not on a random one",
            "BatchNorm statistics stay those of pretraining",
        ),
        look=("#CC79A7", "P"),
    )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        trainable = tuple(
            parameter
            for path in anatomy.norms
            for parameter in backbone.get_submodule(path).parameters(recurse=False)
        )
        return Attachment(backbone, trainable, touched=anatomy.norms)

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return anatomy.num_norm_params
