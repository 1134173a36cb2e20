"""Low-rank adaptation (Hu et al., 2022, §4.1, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Site
from peftbench.errors import Unsupported
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.methods.targets import AUTO, Targeted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.surgery import Delta


@register_method("lora")
@dataclass(frozen=True)
class LoRA(Targeted):
    """W + (alpha / rank) B A on the weight of each target."""

    rank: int = 8  # r in §4.1
    alpha: float = 8.0  # the update is scaled by alpha / r
    # auto: q and v where there is attention (§4.2; timm fuses q, k and v), fc1 and fc2 in other
    # nets with an MLP in each block, all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)
    dropout: float = 0.0  # on the input of A

    card: ClassVar[MethodCard] = MethodCard(
        title="LoRA",
        summary="W + (alpha / r) B A in place of the weight W of each target, with A (r x inputs) "
        "random and B (outputs x r) zero at the start.",
        paper="arXiv:2106.09685",
        section="4.1-4.2",
        reference="microsoft/LoRA@4c03338; for vision JieShibo/PETL-ViT@026e4f1 binary_adapter",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "one pair on the fused projection, as in NOAH, has as many parameters as separate "
            "pairs on q and v but is another model: targets=[qkv]",
            "outside attention the targets are ours; a convolution gets B A on its kernel, read as "
            "a matrix, and groups share A",
        ),
        look=("#0072B2", "o"),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.validate_targets()

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        unseen = [s.path for s in self.sites(anatomy) if not s.called]
        if self.dropout and unseen:
            raise Unsupported(
                f"lora with dropout needs the input of each target, but {anatomy.family} backbones "
                f"never call {unseen[0]!r}. Set method.dropout=0."
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from torch import nn

        from peftbench.methods.layers.low_rank import LowRankConvDelta, LowRankDelta

        scale = self.alpha / self.rank

        def delta(site: Site) -> Delta:
            rows = self.rows(site, self.resolved(anatomy))
            module = backbone.get_submodule(site.path)
            if isinstance(module, nn.Conv2d):
                return LowRankConvDelta(module, rows, self.rank, scale, self.dropout, generator)
            assert site.fan_in is not None
            shape = (site.width, site.fan_in)
            return LowRankDelta(rows, shape, self.rank, scale, self.dropout, generator)

        return changed(backbone, self.sites(anatomy), delta)

    def expected_params(self, anatomy: Anatomy) -> int:
        total = 0
        for site in self.sites(anatomy):
            for start, stop in self.rows(site, self.resolved(anatomy)).values():
                total += self.rank * ((site.fan_in or 0) + stop - start)
        return total
