"""CaRA: all weight changes as two tensors of rank one products (Veeramacheneni et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.fact import SlicedWeights
from peftbench.methods.in_weights import changed
from peftbench.methods.layers.slices import SliceLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.polyadic import CanonicalChange, CanonicalFactors

_HEAD_WIDTH = 64  # channels of a head in the ViTs of the paper
BiasKey = tuple[int, Role, int]  # width of the stream, role, width of the output
FactorKey = tuple[int, bool]  # width of the stream, and whether of projections for attention


@register_method("cara")
@dataclass(frozen=True)
class CaRA(SlicedWeights):
    """One tensor of all q, k, v and one of all other weights, each a sum of r products."""

    rank: int = 32  # r
    scale: float = 10.0  # s; the median of the released values, 0.1 to 100 by task
    dropout: float = 0.1  # on the entries of every change
    num_heads: int = 0  # along which q, k and v are cut; 0: of 64 channels, or what divides them
    lambda_mean: float = 1.0  # the weights of the r products start at N(mean, std^2)
    lambda_std: float = 0.05
    bias: bool = True  # one bias for all proj, one for all fc1 and one for all fc2

    card: ClassVar[MethodCard] = MethodCard(
        title="CaRA",
        summary="dW = s sum_r lambda_r l_r o in_r o head_r o dim_r for q, k and v of all blocks, "
        "s sum_r lambda_r l_r o u_r o v_r for D x D slices of all other weights.",
        paper="ICML 2025, Canonical Rank Adaptation",
        section="3.2",
        reference="BonnBytes/CaRA@f0ac9a9 src/cara/cara.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "any width and depth; the released code is for 12 blocks of 768",
            "anatomies do not tell heads: num_heads gives their number where a head has other "
            "than 64 channels, as in ViT-H",
            "hierarchical backbones (Swin) get one pair of tensors for each width of the stream "
            "(ours)",
            "layers without a bias of their own do not take the shared one",
            "scale, mean and deviation are released for each task, and with a deviation of zero "
            "and a mean other than one the released code leaves lambda as memory has it",
        ),
    )

    def validate(self) -> None:
        super().validate()
        self.require(self.num_heads >= 0, f"num_heads={self.num_heads} is negative.")
        self.require(self.lambda_std >= 0, f"lambda_std={self.lambda_std} is negative.")

    def check(self, anatomy: Anatomy) -> None:
        self.check_slices(anatomy)
        for width, of_heads in self.slices_of(anatomy):
            if of_heads and width % self.heads(width):
                raise Unsupported(
                    f"cara cannot cut the {width} channels of this {anatomy.family} backbone into "
                    f"{self.num_heads} heads. Set method.num_heads."
                )

    def heads(self, width: int) -> int:
        """Into how many heads the outputs of a projection are cut."""
        return self.num_heads or width // math.gcd(width, _HEAD_WIDTH)

    def places(self, anatomy: Anatomy) -> dict[str, tuple[Site, FactorKey, SliceLayout]]:
        """Each site by path, with the tensor of its slices and which of them are its own."""
        used: dict[FactorKey, int] = {}
        places = {}
        for path, (site, width, layout) in self.layouts(anatomy).items():
            key = (width, site.role is Role.ATTN_IN)
            first = used.setdefault(key, 0)
            used[key] += layout.count
            places[path] = site, key, SliceLayout(first, layout.count, layout.by_rows)
        return places

    def slices_of(self, anatomy: Anatomy) -> dict[FactorKey, int]:
        """How many slices each tensor has."""
        slices: dict[FactorKey, int] = {}
        for _, key, layout in self.places(anatomy).values():
            slices[key] = layout.first + layout.count
        return slices

    def bias_of(self, site: Site, key: FactorKey) -> BiasKey | None:
        """Which of the shared biases a site takes."""
        takes = self.bias and site.has_bias and site.role is not Role.ATTN_IN
        return (key[0], site.role, site.width) if takes else None

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch

        from peftbench.methods.layers.polyadic import (
            CanonicalChange,
            HeadFactors,
            MatrixFactors,
        )
        from peftbench.methods.layers.shared import SharedTensor

        start = (self.lambda_mean, self.lambda_std)
        factors: dict[FactorKey, CanonicalFactors] = {}
        for key, slices in self.slices_of(anatomy).items():
            width, of_heads = key
            if of_heads:
                heads = self.heads(width)
                factors[key] = HeadFactors(slices, width, heads, self.rank, start, generator)
            else:
                factors[key] = MatrixFactors(slices, width, self.rank, start, generator)
        biases: dict[BiasKey, SharedTensor] = {}
        places = self.places(anatomy)

        def change(site: Site) -> CanonicalChange:
            _, key, layout = places[site.path]
            of = self.bias_of(site, key)
            bias = None
            if of is not None:
                bias = biases.setdefault(of, SharedTensor(torch.zeros(site.width)))
            return CanonicalChange(factors[key], layout, self.scale, self.dropout, bias)

        sites = [site for site, _, _ in places.values()]
        return changed(backbone, sites, change)

    def expected_params(self, anatomy: Anatomy) -> int:
        total = 0
        for (width, of_heads), slices in self.slices_of(anatomy).items():
            heads = self.heads(width)
            sides = width + heads + width // heads if of_heads else 2 * width
            total += self.rank * (slices + sides + 1)
        biases = {self.bias_of(site, key) for site, key, _ in self.places(anatomy).values()}
        return total + sum(of[2] for of in biases if of is not None)
