"""VeRA: vectors around shared random matrices (Kopiczko et al., 2024, ICLR, arXiv 2310.11454)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.methods.targets import AUTO, Targeted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.backbones.anatomy import Site
    from peftbench.methods.layers.vectors import VectorChange


@register_method("vera")
@dataclass(frozen=True)
class VeRA(Targeted):
    """W + Λ_b B Λ_d A on the weight of each target; A and B are random, frozen and shared."""

    rank: int = 256  # r, that of the paper's vision transformers
    d_initial: float = 0.1  # what d holds at the start
    dropout: float = 0.0  # on what A reads
    projection_seed: int = 0  # of A and B: the same in all runs, whatever their seed
    # auto: q and v where there is attention, fc1 and fc2 in other nets with an MLP in each block,
    # all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)

    card: ClassVar[MethodCard] = MethodCard(
        title="VeRA",
        summary="W + diag(b) B diag(d) A in place of the weight W of each target: vectors d and b "
        "of a layer are learned, A and B are random and shared by all layers.",
        paper="arXiv:2310.11454",
        section="3.1, equation 2",
        reference="none",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "there is no released code but that of HF peft (method=hf_vera), which changes a fused "
            "projection as one and takes no convolution",
            "A and B are as large as the widest target asks for, and narrower ones read their "
            "corners, as in HF peft",
            "files hold d and b alone: A and B are drawn again from projection_seed",
            "a convolution gets the product on its kernel, read as a matrix, and no dropout",
        ),
    )

    def validate(self) -> None:
        self.validate_targets()
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(self.d_initial != 0, "d_initial=0 leaves b without a gradient; use 0.1.")
        self.require(
            0 <= self.projection_seed < 2**32,
            f"projection_seed={self.projection_seed} is not in [0, 2**32).",
        )

    def widest(self, anatomy: Anatomy) -> tuple[int, int]:
        """The most rows of a target and the most inputs."""
        blocks = self.row_blocks(anatomy)
        outputs = max(stop - start for _, rows in blocks for start, stop in rows.values())
        return outputs, max(site.fan_in or 1 for site, _ in blocks)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.vectors import RandomProjections, VectorChange

        targets = self.resolved(anatomy)
        shared = RandomProjections(self.rank, self.widest(anatomy), self.projection_seed)

        def change(site: Site) -> VectorChange:
            shape = (site.width, site.fan_in or 1)
            return VectorChange(
                self.rows(site, targets), shape, shared, self.d_initial, self.dropout
            )

        return changed(backbone, self.sites(anatomy), change)

    def expected_params(self, anatomy: Anatomy) -> int:
        # d (r) and b (rows) of each target
        return sum(
            self.rank + stop - start
            for _, rows in self.row_blocks(anatomy)
            for start, stop in rows.values()
        )
