"""Bias tuning (Ben Zaken et al., 2022, arXiv 2106.10199; Cai et al., 2020, arXiv 2007.11622)."""

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


@register_method("bias")
@dataclass(frozen=True)
class Bias(Method):
    """Every bias trains: of linear and convolution layers and the shifts of norms."""

    variant: str = "default"  # "released": every name with "bias", so relative position tables too

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Bias tuning",
        summary="Every bias b trains, in y = W x + b and in y = g * norm(x) + b; all weights W and "
        "g stay frozen.",
        paper="arXiv:2106.10199",
        section="3; for vision arXiv:2203.12119, baseline 'Bias'",
        reference="KMnP/vpt@4410440",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the released code trains every tensor whose name contains 'bias' and so also Swin's "
            "relative position tables: variant=released",
            "the released code runs ConvNets under disabled gradients, so that no bias trains",
            "BatchNorm statistics stay frozen",
        ),
        look=("#CC79A7", "X"),
    )

    def validate(self) -> None:
        self.require_variant(self.variant)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        attributes = anatomy.bias_attributes
        if self.variant == "released":
            attributes += anatomy.position_biases
        chosen = {
            f"{path}.{attribute}": parameter
            for path, module in without_head(backbone, anatomy)
            for attribute, parameter in module.named_parameters(recurse=False)
            if attribute in attributes
        }
        return Attachment(backbone, tuple(chosen.values()), touched=tuple(chosen))

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        tables = anatomy.num_position_biases if self.variant == "released" else 0
        return anatomy.num_biases + tables
