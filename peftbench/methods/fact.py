"""FacT: one factorised tensor of all weight changes (Jie and Deng, 2023, arXiv 2212.03145)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    MethodCard,
    register_method,
)
from peftbench.methods.in_weights import InWeights, changed
from peftbench.methods.layers.slices import SliceLayout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.factors import Factors
    from peftbench.methods.surgery import Delta

# the order of the slices of one block
_ROLES = (Role.ATTN_IN, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)
_CORE_NAMES = {Role.ATTN_OUT: "proj", Role.MLP_IN: "fc1", Role.MLP_OUT: "fc2"}


@dataclass(frozen=True)
class SlicedWeights(InWeights):
    """Makes changes of D x D slices, with factors for each width of the stream."""

    rank: int = 16  # r
    scale: float = 10.0  # s; the median of the released values, 0.01 to 100 by task
    dropout: float = 0.1  # on the r values between the factors

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def check_slices(self, anatomy: Anatomy) -> None:
        """Raise `Unsupported` unless attention and MLP have weights of D x D slices."""
        sites = anatomy.where(*_ROLES)
        if {site.role for site in sites} != set(_ROLES):
            raise Unsupported(
                f"{self.name} factorises the weights of attention and MLP, and "
                f"{anatomy.finds} not both. {advice(self.name, anatomy)}"
            )
        maps = [site.path for site in sites if site.kind is not Kind.LINEAR]
        if maps:
            raise Unsupported(
                f"{self.name} factorises matrices, and {maps[0]!r} of this {anatomy.family} "
                f"backbone is no linear layer. {advice(self.name, anatomy)}"
            )
        widths = _widths(anatomy)
        for site in sites:
            width = widths[site.depth]
            if _slices(site, width) is None:
                raise Unsupported(
                    f"{self.name} cuts each weight into square slices of the {width} channels, but "
                    f"{site.path!r} of this {anatomy.family} backbone is {site.width} x "
                    f"{site.fan_in}. {advice(self.name, anatomy)}"
                )

    def layouts(self, anatomy: Anatomy) -> dict[str, tuple[Site, int, SliceLayout]]:
        """Site, width of its factors and place of its slices, by path."""
        widths = _widths(anatomy)
        used = dict.fromkeys(widths.values(), 0)
        layouts = {}
        for depth, width in widths.items():
            for role in _ROLES:
                for site in anatomy.where(role, depths=(depth,)):
                    count = _slices(site, width)
                    assert count is not None
                    by_rows = role is not Role.MLP_OUT
                    layouts[site.path] = site, width, SliceLayout(used[width], count, by_rows)
                    used[width] += count
        return layouts

    def slices(self, anatomy: Anatomy) -> dict[int, int]:
        """How many slices the tensor of each width has: 12 for each block of a plain ViT."""
        total = dict.fromkeys(_widths(anatomy).values(), 0)
        for _, width, layout in self.layouts(anatomy).values():
            total[width] += layout.count
        return total


@dataclass(frozen=True)
class FactorTuning(SlicedWeights):
    """What both decompositions share. One set of factors for each width of the stream."""

    def check(self, anatomy: Anatomy) -> None:
        self.check_slices(anatomy)
        unseen = [site.path for site in anatomy.where(*_ROLES) if not site.called]
        if self.dropout and unseen:
            raise Unsupported(
                f"{self.name} with dropout needs the input of each weight, but {anatomy.family} "
                f"backbones never call {unseen[0]!r}. Set method.dropout=0."
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.factors import Factors

        layouts = self.layouts(anatomy)
        factors = {w: Factors(w, self.rank, generator) for w in self.slices(anatomy)}
        make = self.deltas(factors, anatomy, generator)

        def delta(site: Site) -> Delta:
            _, width, layout = layouts[site.path]
            return make(site, width, layout)

        sites = [site for site, _, _ in layouts.values()]
        return changed(backbone, sites, delta)

    @abstractmethod
    def deltas(
        self, factors: dict[int, Factors], anatomy: Anatomy, generator: torch.Generator
    ) -> Callable[[Site, int, SliceLayout], Delta]:
        """How to make the delta of a site of one width."""


def _widths(anatomy: Anatomy) -> dict[int, int]:
    """Width of the stream at each depth."""
    return {block.depth: block.width for block in anatomy.where(Role.BLOCK)}


def _slices(site: Site, width: int) -> int | None:
    """How many width x width slices the weight of `site` has, None if they do not fill it."""
    long, short = site.width, site.fan_in
    if site.role is Role.MLP_OUT:
        long, short = site.fan_in or 0, site.width
    return long // width if short == width and long % width == 0 else None


_DEVIATIONS = (
    "any width and depth; the released code is for 12 blocks of 768",
    "hierarchical backbones (Swin) get one set of factors for each width of the stream, shared by "
    "the blocks of that width (ours)",
    "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
)


@register_method("fact_tt")
@dataclass(frozen=True)
class FacTTT(FactorTuning):
    """Tensor train: dW = s V S U with U, V shared by all weights and one S for each slice."""

    card: ClassVar[MethodCard] = MethodCard(
        title="FacT-TT",
        summary="dW = s V S U for every D x D slice of every weight: U, V are shared by all "
        "blocks, each slice has its own r x r core S.",
        paper="arXiv:2212.03145",
        section="3.2",
        reference="JieShibo/PETL-ViT@026e4f1 FacT/fact_tt.py",
        identity_at_init=True,
        mergeable=True,
        deviations=_DEVIATIONS,
        look=("#D55E00", "v"),
    )

    def deltas(
        self, factors: dict[int, Factors], anatomy: Anatomy, generator: torch.Generator
    ) -> Callable[[Site, int, SliceLayout], Delta]:
        from peftbench.methods.layers.factors import TrainDelta

        def make(site: Site, width: int, layout: SliceLayout) -> Delta:
            names = site.parts or ("qkv",)
            if site.role is not Role.ATTN_IN:
                names = (_CORE_NAMES[site.role],)
            return TrainDelta(factors[width], layout, names, self.scale, self.dropout, generator)

        return make

    def expected_params(self, anatomy: Anatomy) -> int:
        r = self.rank
        return sum(2 * width * r + n * r * r for width, n in self.slices(anatomy).items())


@register_method("fact_tk")
@dataclass(frozen=True)
class FacTTK(FactorTuning):
    """Tucker: the cores S are slices of C x_3 P with one small core tensor C."""

    variant: str = "default"  # "released": the slices of the MLP interleaved as in the code

    card: ClassVar[MethodCard] = MethodCard(
        title="FacT-TK",
        summary="dW = s V S U for every D x D slice of every weight; the cores S are slices of one "
        "r x r x r core times P (r x slices).",
        paper="arXiv:2212.03145",
        section="3.2",
        reference="JieShibo/PETL-ViT@026e4f1 FacT/fact_tk.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "each slice of the MLP takes its own slice of the Tucker tensor; the released code "
            "flattens four of them without moving axes, which interleaves them: variant=released",
            *_DEVIATIONS,
        ),
        look=("#D55E00", "^"),
    )

    def validate(self) -> None:
        super().validate()
        self.require_variant(self.variant)

    def deltas(
        self, factors: dict[int, Factors], anatomy: Anatomy, generator: torch.Generator
    ) -> Callable[[Site, int, SliceLayout], Delta]:
        from peftbench.methods.layers.factors import TuckerCore, TuckerDelta

        tuckers = {w: TuckerCore(n, self.rank, generator) for w, n in self.slices(anatomy).items()}

        def make(site: Site, width: int, layout: SliceLayout) -> Delta:
            interleaved = self.variant == "released" and site.role in (Role.MLP_IN, Role.MLP_OUT)
            return TuckerDelta(
                factors[width], tuckers[width], layout, self.scale, self.dropout, interleaved
            )

        return make

    def expected_params(self, anatomy: Anatomy) -> int:
        r = self.rank
        return sum(2 * width * r + n * r + r**3 for width, n in self.slices(anatomy).items())
