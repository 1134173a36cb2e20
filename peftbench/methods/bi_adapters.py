"""Binary adapters: factors of one bit, or of few (Jie et al., 2023, arXiv 2307.16867)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Site
from peftbench.errors import Unsupported
from peftbench.methods.adapter import FixedBottleneck
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.methods.layers.design import Design
from peftbench.methods.targets import AUTO, Targeted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.quantised import QuantisedDelta

_REFERENCE = "JieShibo/PETL-ViT@026e4f1 binary_adapter"
_DEVIATIONS = (
    "the file of a task holds the packed bits with mean and deviation of each factor, and not the "
    "values that train; one bit as published, or up to eight",
    "the scale is released for each task; the bits of the classifier are those of float32 unless "
    "binary_head=true, which takes its bias too",
    "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
)


class _FewBits(Method):
    """What both methods check and put in front of the logits."""

    bits: int
    binary_head: bool

    def validate_bits(self) -> None:
        self.require(1 <= self.bits <= 8, f"bits={self.bits} is not in 1 to 8.")

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        if not self.binary_head:
            return super().head(width, num_classes, generator)
        from peftbench.methods.layers.quantised import QuantisedHead

        return QuantisedHead(width, num_classes, generator)


@register_method("bi_lora")
@dataclass(frozen=True)
class BiLoRA(_FewBits, Targeted):
    """W + s B A on the weight of each target, where A and B have a few bits."""

    rank: int = 32  # r
    bits: int = 1
    scale: float = 1.0  # s
    dropout: float = 0.1  # between the factors
    binary_head: bool = False
    targets: tuple[str, ...] = (AUTO,)  # auto: q and v

    card: ClassVar[MethodCard] = MethodCard(
        title="Bi-LoRA",
        summary="W + s Q(B) Q(A) on queries and values, where Q rounds each standardised factor "
        "to 2^bits levels, and a task stores those bits, a mean and a deviation.",
        paper="arXiv:2307.16867",
        section="3.2-3.3",
        reference=f"{_REFERENCE}/lora.py",
        identity_at_init=False,  # B starts at 0.001, of one bit
        mergeable=True,
        deviations=_DEVIATIONS,
    )

    def validate(self) -> None:
        self.validate_targets()
        self.validate_bits()
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        for site in self.sites(anatomy):
            if site.kind is not Kind.LINEAR:
                raise Unsupported(
                    f"bi_lora changes matrices, and {site.path!r} of this {anatomy.family} "
                    f"backbone is no linear layer. {advice(self.name, anatomy)}"
                )
            if self.dropout and not site.called:
                raise Unsupported(
                    f"bi_lora with dropout needs the input of each target, but {anatomy.family} "
                    f"backbones never call {site.path!r}. Set method.dropout=0."
                )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.quantised import QuantisedDelta

        design = Design(scale=self.scale, dropout=self.dropout)
        targets = self.resolved(anatomy)

        def delta(site: Site) -> QuantisedDelta:
            shape = (site.width, site.fan_in or 1)
            rows = self.rows(site, targets)
            return QuantisedDelta(rows, shape, self.rank, self.bits, design, generator)

        return changed(backbone, self.sites(anatomy), delta)

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(
            self.rank * ((site.fan_in or 0) + stop - start)
            for site, rows in self.row_blocks(anatomy)
            for start, stop in rows.values()
        )


@register_method("bi_adaptformer")
@dataclass(frozen=True)
class BiAdaptFormer(_FewBits, FixedBottleneck):
    """z = y + MLP(LN y) + s W_up relu(W_down y), where both matrices have a few bits."""

    bottleneck: int = 32
    bits: int = 1
    scale: float = 1.0  # s
    dropout: float = 0.1  # on the bottleneck
    binary_head: bool = False

    position: ClassVar[str] = "parallel"

    card: ClassVar[MethodCard] = MethodCard(
        title="Bi-AdaptFormer",
        summary="z = y + MLP(LN y) + s Q(W_up) relu(Q(W_down) y), where Q rounds each "
        "standardised matrix to 2^bits levels, and a task stores those bits, a mean and a "
        "deviation.",
        paper="arXiv:2307.16867",
        section="3.2-3.3",
        reference=f"{_REFERENCE}/adaptformer.py",
        identity_at_init=False,  # W_up starts at 0.001, of one bit
        mergeable=False,
        deviations=(*_DEVIATIONS, "outside plain ViTs the placement is ours, as AdaptFormer's"),
    )

    @property
    def design(self) -> Design:
        return Design(activation="relu", dropout=self.dropout, scale=self.scale, bias=False)

    def validate(self) -> None:
        super().validate()
        self.validate_bits()

    def adapter(self, site: Site, generator: torch.Generator) -> nn.Module:
        from peftbench.methods.layers.quantised import QuantisedBottleneck

        return QuantisedBottleneck(
            self.design, site.width, self.bottleneck, self.bits, site.channels_last, generator
        )
