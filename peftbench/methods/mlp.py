"""MLP-k: a frozen backbone under a head of k layers (Jia et al., 2022, §4.1, arXiv 2203.12119)."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("mlp")
@dataclass(frozen=True)
class MLPHead(Method):
    """k - 1 times [Linear, ReLU, BatchNorm, Dropout] of the feature width, then Linear."""

    num_layers: int = 3  # k; the paper's sweep is 2, 3, 5, 9
    dropout: float = 0.1

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="MLP head",
        summary="Only a head of k layers trains: k - 1 times h = BN(relu(W h + b)), then W h + b.",
        paper="arXiv:2203.12119",
        section="4.1, baseline 'Mlp-k'",
        reference="KMnP/vpt@4410440 src/models/mlp.py",
        identity_at_init=True,
        mergeable=False,  # no plain timm model has such a head
        head_only=True,
        look=("#000000", "P"),
    )

    def validate(self) -> None:
        self.require(self.num_layers >= 2, f"num_layers={self.num_layers}; use 2 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, trainable=(), touched=())

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """Hidden layers keep the width; normalisation stands after the activation."""
        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for j in range(self.num_layers - 1):
            hidden = nn.Linear(width, width)
            nn.init.uniform_(
                hidden.bias, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator
            )
            layers[f"linear{j}"] = hidden
            layers[f"act{j}"] = nn.ReLU()
            layers[f"bn{j}"] = nn.BatchNorm1d(width)
            layers[f"dropout{j}"] = nn.Dropout(self.dropout)
        last = nn.Linear(width, num_classes)
        nn.init.constant_(last.bias, -math.log(99))  # a prior of 0.01 for each class
        layers["last"] = last
        for layer in layers.values():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(
                    layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
        return nn.Sequential(layers)

    def expected_params(self, anatomy: Anatomy) -> int:
        return 0
