"""Low-rank adaptation (Hu et al., 2022, §4.1, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.surgery import Delta

# target -> role of its sites; q, k and v may be row blocks of one fused projection
TARGETS: Mapping[str, Role] = {
    "q": Role.ATTN_IN,
    "k": Role.ATTN_IN,
    "v": Role.ATTN_IN,
    "qkv": Role.ATTN_IN,  # one pair on the whole fused projection
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "conv": Role.SPATIAL_CONV,  # larger than 1 x 1, depthwise and grouped ones too
    "pointwise": Role.POINT_CONV,
}
AUTO = "auto"  # what `targets` says by default


@register_method("lora")
@dataclass(frozen=True)
class LoRA(Method):
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
        self.require(bool(self.targets), f"targets is empty; choose among {', '.join(TARGETS)}.")
        unknown = [t for t in self.targets if t not in TARGETS and self.targets != (AUTO,)]
        self.require(not unknown, f"unknown targets {unknown}; choose among {', '.join(TARGETS)}.")
        self.require(
            len(set(self.targets)) == len(self.targets)
            and not ("qkv" in self.targets and {"q", "k", "v"} & set(self.targets)),
            f"targets {list(self.targets)} name one weight twice.",
        )

    def check(self, anatomy: Anatomy) -> None:
        described = {t for site in anatomy.sites for t in self.rows(site, tuple(TARGETS))}
        if "qkv" in described:  # rows that cannot be told apart are adapted as one
            described |= {"q", "k", "v"}
        absent = [t for t in self.resolved(anatomy) if t not in described]
        if not anatomy.sites:
            raise Unsupported(
                f"lora needs to know the weights, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        if absent:
            other = ", ".join(t for t in TARGETS if t in described)
            hint = (
                f"They have {other}: set method.targets."
                if other
                else f"They have no other target either. {advice(self.name, anatomy)}"
            )
            raise Unsupported(
                f"lora targets {', '.join(absent)}, which {anatomy.family} backbones do not have. "
                f"{hint}"
            )

        unseen = [s.path for s in self.sites(anatomy) if not s.called]
        if self.dropout and unseen:
            raise Unsupported(
                f"lora with dropout needs the input of each target, but {anatomy.family} backbones "
                f"never call {unseen[0]!r}. Set method.dropout=0."
            )

    def resolved(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The targets, with `auto` replaced by what it means on this backbone."""
        if self.targets != (AUTO,):
            return self.targets
        if anatomy.where(Role.ATTN_IN):
            named = {part for site in anatomy.where(Role.ATTN_IN) for part in site.parts}
            # a deformable convolution has values alone
            return tuple(t for t in ("q", "v") if t in named) or ("q", "v")
        if anatomy.where(Role.MLP_IN):
            return ("fc1", "fc2")
        return tuple(t for t in ("conv", "pointwise") if anatomy.where(TARGETS[t]))

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites of the targets; a module with two roles counts once."""
        return tuple(s for s in anatomy.sites if self.rows(s, self.resolved(anatomy)))

    def rows(self, site: Site, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Which rows of the site's weight each target names: {target: (start, stop)}."""
        rows = {}
        for target in targets:
            if TARGETS[target] is not site.role or site.kind not in (Kind.LINEAR, Kind.CONV):
                continue
            if target in site.parts:
                size = site.width // len(site.parts)
                start = site.parts.index(target) * size
                rows[target] = (start, start + size)
            elif site.role is Role.ATTN_IN and not site.parts:
                rows = {"qkv": (0, site.width)}  # which rows are whose does not show
            elif not site.parts or (target == "qkv" and len(site.parts) == 3):
                rows[target] = (0, site.width)
        return rows

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from torch import nn

        from peftbench.methods import surgery
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

        deltas, notes = surgery.add_deltas(backbone, self.sites(anatomy), delta)
        return Attachment(
            backbone,
            tuple(p for d in deltas.values() for p in d.parameters()),
            touched=tuple(deltas),
            train_modules=tuple(deltas.values()),
            notes=notes,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods import surgery

        surgery.bake_deltas(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        total = 0
        for site in self.sites(anatomy):
            for start, stop in self.rows(site, self.resolved(anatomy)).values():
                total += self.rank * ((site.fan_in or 0) + stop - start)
        return total
