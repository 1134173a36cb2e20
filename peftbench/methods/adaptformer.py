"""AdaptFormer: an adapter beside the MLP (Chen et al., 2022, arXiv 2205.13535)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.canonical import later
from peftbench.methods.adapter import FixedBottleneck
from peftbench.methods.base import MethodCard, register_method
from peftbench.methods.layers.design import Design
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("adaptformer")
@dataclass(frozen=True)
class AdaptFormer(FixedBottleneck):
    """z = y + MLP(LN y) + s W_up relu(W_down y)."""

    bottleneck: int = 64
    scale: float = 0.1  # s
    dropout: float = 0.1
    bias: bool = True
    variant: str = "default"  # "released": batch normalisation in front of the classifier
    placement: str = later("parallel")  # "sequential": behind the MLP, which it reads
    learned_scale: str = later("none")  # "scalar": s trains, from `scale`; "channel": one a channel
    # a layer norm that trains "in" front of the first layer, or on what comes "out", scaled
    layer_norm: str = later("none")
    init: str = later("lora")  # "bert": both random, so that it does not start as the backbone

    @property
    def position(self) -> str:
        return "parallel" if self.placement == "parallel" else "intermediate"

    card: ClassVar[MethodCard] = MethodCard(
        title="AdaptFormer",
        summary="z = y + MLP(LN y) + s W_up relu(W_down y): a bottleneck beside each MLP that "
        "reads the stream, scaled by s = 0.1.",
        paper="arXiv:2205.13535",
        section="3.2",
        reference="ShoufaChen/AdaptFormer@6967d67; without biases JieShibo/PETL-ViT@026e4f1",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "reads the stream in front of the layer norm, as the released code does",
            "a linear classifier; the released code puts a batch normalisation without affine in "
            "front of it, which is part of its gain: variant=released",
            "outside plain ViTs the placement is ours; a ConvNeXt block is one branch, beside "
            "which the adapter stands",
        ),
        look=("#009E73", "^"),
    )

    @property
    def design(self) -> Design:
        return Design(
            activation="relu",
            dropout=self.dropout,
            scale=self.scale,
            bias=self.bias,
            init=self.init,
            learned_scale=self.learned_scale,
            own_norm=self.layer_norm == "in",
            norm_behind=self.layer_norm == "out",
            norm_eps=1e-5,
        )

    def validate(self) -> None:
        super().validate()
        self.require_variant(self.variant)
        for key, known in (
            ("placement", ("parallel", "sequential")),
            ("layer_norm", ("none", "in", "out")),
        ):
            if getattr(self, key) not in known:
                raise unknown_name(f"{key} of method={self.name}:", getattr(self, key), known)

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        if self.variant == "default":
            return super().head(width, num_classes, generator)
        from torch import nn

        last = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(last.weight, std=0.01, generator=generator)
        nn.init.zeros_(last.bias)
        norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        return nn.Sequential(OrderedDict(bn=norm, last=last))
