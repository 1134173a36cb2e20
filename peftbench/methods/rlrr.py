"""RLRR: each weight scaled by a residual product of two vectors (Dong et al., 2024, CVPR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.base import Attachment, MethodCard, parameters_of, register_method
from peftbench.methods.targets import AUTO, EveryMatrix

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.rank_one import RankOneScale


@register_method("rlrr")
@dataclass(frozen=True)
class RLRR(EveryMatrix):
    """W ⊙ (1 + o iᵀ) and b + f, and a scale and a shift behind embedding and norms."""

    # auto: q, k, v, proj, fc1 and fc2 apart where there is attention, fc1 and fc2 in other nets
    # with an MLP in each block, all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)
    shift: bool = True  # f, behind each target that has a bias
    norms: bool = True  # the pairs behind embedding and norms that have a bias
    std: float = 0.02  # scales of those start at N(1, std^2), shifts at N(0, std^2)
    variant: str = "default"  # "released": keys get a shift too

    card: ClassVar[MethodCard] = MethodCard(
        title="RLRR",
        summary="W * (1 + o i^T) and b + f for every weight of attention and MLP, with a scale "
        "and a shift behind embedding and norms; folds into the weights.",
        paper="arXiv:2403.17303",
        section="3.3",
        reference="zstarN70/RLRR@287c772 models/networks.py",
        identity_at_init=False,  # o i^T starts at 7 % of the weights
        mergeable=True,
        deviations=(
            "keys get no shift where they are apart: the softmax cancels it, so it would be "
            "counted and move by rounding alone; variant=released has it",
            "layers, embeddings and norms without a bias get no shift and no pair, so that all of "
            "it folds",
            "outside attention and MLP the targets are ours; a convolution is scaled by vectors "
            "of its outputs and of the entries of one kernel",
            "the released code keeps an element-wise dropout in place of drop-path in the frozen "
            "blocks",
        ),
    )

    def validate(self) -> None:
        self.validate_targets()
        self.require(self.std >= 0, f"std={self.std} is negative.")
        self.require_variant(self.variant)

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        unseen = [site.path for site in self.pairs(anatomy) if not site.called]
        if unseen:
            raise Unsupported(
                f"rlrr scales the output of {unseen[0]!r}, which {anatomy.family} backbones never "
                "call. Set method.norms=false."
            )

    def pairs(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites behind which a scale and a shift stand: the embedding and every norm."""
        if not self.norms:
            return ()
        norms = anatomy.where(Role.NORM, Role.AFTER)
        kinds = (Kind.NORM, Kind.BATCH_NORM)
        sites = (*anatomy.where(Role.EMBED), *(site for site in norms if site.kind in kinds))
        return tuple(site for site in sites if site.has_bias)

    def shifted(self, site: Site, anatomy: Anatomy) -> tuple[str, ...]:
        """The targets at a site that get a shift."""
        if not (self.shift and site.has_bias):
            return ()
        targets = self.rows(site, self.resolved(anatomy))
        return tuple(t for t in targets if t != "k" or self.variant == "released")

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.rank_one import RankOneScale
        from peftbench.methods.layers.scale_shift import ScaleShift, add_pair

        targets = self.resolved(anatomy)

        def change(site: Site) -> RankOneScale:
            shape = (site.width, site.fan_in or 1)
            shifted = self.shifted(site, anatomy)
            return RankOneScale(self.rows(site, targets), shape, shifted, generator)

        changes, notes = surgery.add_deltas(backbone, self.sites(anatomy), change)
        pairs = {}
        for site in self.pairs(anatomy):
            pair = ScaleShift(site.width, site.channels_last, self.std, generator)
            pairs[site.path] = pair
            add_pair(backbone, site, pair)
        return Attachment(
            backbone,
            parameters_of(*changes.values(), *pairs.values()),
            touched=(*changes, *pairs),
            train_modules=tuple(pairs.values()),
            notes=notes,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods import surgery
        from peftbench.methods.layers.scale_shift import fold

        surgery.bake_deltas(model)
        fold(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        total = sum(2 * site.width for site in self.pairs(anatomy))
        for site, rows in self.row_blocks(anatomy):
            shifted = self.shifted(site, anatomy)
            for name, (start, stop) in rows.items():
                total += (stop - start) * (1 + (name in shifted)) + (site.fan_in or 0)
        return total
