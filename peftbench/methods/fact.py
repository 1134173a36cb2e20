"""FacT: one factorised tensor of all weight changes (Jie and Deng, 2023, arXiv 2212.03145)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)

# the order of the slices of one block
_ROLES = (Role.ATTN_IN, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)
_CORE_NAMES = {Role.ATTN_OUT: "proj", Role.MLP_IN: "fc1", Role.MLP_OUT: "fc2"}


class Factors(nn.Module):
    """What all weights of one width share: U (r, D) on the input side, V (D, r) on the output's."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        u = torch.empty(rank, width).uniform_(-bound, bound, generator=generator)
        self.u = nn.Parameter(u)
        self.v = nn.Parameter(torch.zeros(width, rank))


class TuckerCore(nn.Module):
    """K = C x_3 P: the slice of every weight from one core C (r, r, r) and P (r, slices)."""

    def __init__(self, slices: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        # Xavier uniform: fan-in and fan-out of the third-order tensor are both r * r
        bound = math.sqrt(3) / rank
        core = torch.empty(rank, rank, rank).uniform_(-bound, bound, generator=generator)
        self.core = nn.Parameter(core)
        bound = math.sqrt(6 / (slices + rank))
        p = torch.empty(rank, slices).uniform_(-bound, bound, generator=generator)
        self.p = nn.Parameter(p)


@dataclass(frozen=True)
class Layout:
    """Which D x D slices of the tensor one weight is made of."""

    first: int  # index of its first slice among all of its width
    count: int
    by_rows: bool  # slices are row blocks of the weight, else column blocks


class FactorisedDelta(surgery.Delta):
    """scale · V S_j U for each slice j of a weight."""

    def __init__(self, factors: Factors, layout: Layout, scale: float, dropout: float) -> None:
        super().__init__()
        self.factors = factors
        self.layout = layout
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def cores(self) -> Tensor:
        """S (slices, r, r)."""

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        u, v = self.factors.u, self.factors.v
        cores = self.cores().to(x.dtype)
        if self.layout.by_rows:
            hidden = torch.einsum("jab,...b->...ja", cores, F.linear(x, u))
            change = F.linear(self.dropout(hidden), v).flatten(-2)
        else:
            hidden = F.linear(x.unflatten(-1, (self.layout.count, -1)), u)
            change = F.linear(self.dropout(torch.einsum("jab,...jb->...a", cores, hidden)), v)
        return y + self.scale * change

    def weight_delta(self) -> Tensor:
        slices = [self.scale * self.factors.v @ core @ self.factors.u for core in self.cores()]
        return torch.cat(slices, dim=0 if self.layout.by_rows else 1)


class TrainDelta(FactorisedDelta):
    """Tensor train: every slice has a core of its own."""

    def __init__(
        self,
        factors: Factors,
        layout: Layout,
        names: tuple[str, ...],
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(factors, layout, scale, dropout)
        self.rank = rank = factors.u.shape[0]
        self.names = names  # in the order of the rows; a ParameterDict sorts its keys
        # the released layers are r -> r, r -> 4 r and 4 r -> r with the default start of a linear
        long = rank * layout.count // len(names)
        shape = (long, rank) if layout.by_rows else (rank, long)
        bound = 1 / math.sqrt(shape[1])
        self.core = nn.ParameterDict(
            {n: torch.empty(shape).uniform_(-bound, bound, generator=generator) for n in names}
        )

    def cores(self) -> Tensor:
        if self.layout.by_rows:
            return torch.cat([self.core[name] for name in self.names]).unflatten(0, (-1, self.rank))
        return self.core[self.names[0]].unflatten(1, (-1, self.rank)).transpose(0, 1)


class TuckerDelta(FactorisedDelta):
    """Tucker: every core is a slice of one tensor."""

    def __init__(
        self,
        factors: Factors,
        tucker: TuckerCore,
        layout: Layout,
        scale: float,
        dropout: float,
        interleaved: bool,
    ) -> None:
        super().__init__(factors, layout, scale, dropout)
        self.tucker = tucker
        self.interleaved = interleaved

    def cores(self) -> Tensor:
        first, count = self.layout.first, self.layout.count
        # axes of K: input, output, slice
        k = torch.einsum("abc,ck->abk", self.tucker.core, self.tucker.p[:, first : first + count])
        if count == 1 or not self.interleaved:
            return k.permute(2, 1, 0)
        # as released: (output, slice) is flattened and cut into blocks of r again
        blocks = k.flatten(1).unflatten(1, (count, -1)).transpose(0, 1)
        return blocks.transpose(1, 2) if self.layout.by_rows else blocks


@dataclass(frozen=True)
class FactorTuning(Method):
    """What both decompositions share. One set of factors for each width of the stream."""

    rank: int = 16  # r
    scale: float = 10.0  # s; the median of the released values, 0.01 to 100 by task
    dropout: float = 0.1  # on the r values between the factors

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def check(self, anatomy: Anatomy) -> None:
        sites = anatomy.where(*_ROLES)
        if {site.role for site in sites} != set(_ROLES):
            raise Unsupported(
                f"{self.name} factorises the weights of attention and MLP, and family "
                f"{anatomy.family!r} does not describe both. Use method=lora, bias or norm."
            )
        widths = _widths(anatomy)
        for site in sites:
            width = widths[site.depth]
            if _slices(site, width) is None:
                raise Unsupported(
                    f"{self.name} cuts each weight into square slices of the {width} channels, but "
                    f"{site.path!r} of this {anatomy.family} backbone is {site.width} x "
                    f"{site.fan_in}. Use method=lora."
                )
        unseen = [site.path for site in sites if not site.called]
        if self.dropout and unseen:
            raise Unsupported(
                f"{self.name} with dropout needs the input of each weight, but {anatomy.family} "
                f"backbones never call {unseen[0]!r}. Set method.dropout=0."
            )

    def layouts(self, anatomy: Anatomy) -> dict[str, tuple[Site, int, Layout]]:
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
                    layouts[site.path] = site, width, Layout(used[width], count, by_rows)
                    used[width] += count
        return layouts

    def slices(self, anatomy: Anatomy) -> dict[int, int]:
        """How many slices the tensor of each width has: 12 for each block of a plain ViT."""
        total = dict.fromkeys(_widths(anatomy).values(), 0)
        for _, width, layout in self.layouts(anatomy).values():
            total[width] += layout.count
        return total

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        layouts = self.layouts(anatomy)
        factors = {w: Factors(w, self.rank, generator) for w in self.slices(anatomy)}
        make = self.deltas(factors, anatomy, generator)

        def delta(site: Site) -> surgery.Delta:
            _, width, layout = layouts[site.path]
            return make(site, width, layout)

        sites = [site for site, _, _ in layouts.values()]
        deltas, notes = surgery.add_deltas(backbone, sites, delta)
        return Attachment(
            backbone,
            parameters_of(*deltas.values()),
            touched=tuple(deltas),
            train_modules=tuple(deltas.values()),
            notes=notes,
        )

    @abstractmethod
    def deltas(
        self, factors: dict[int, Factors], anatomy: Anatomy, generator: torch.Generator
    ) -> Callable[[Site, int, Layout], surgery.Delta]:
        """How to make the delta of a site of one width."""

    def merge(self, model: nn.Module) -> nn.Module:
        surgery.bake_deltas(model)
        return model


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
    ) -> Callable[[Site, int, Layout], surgery.Delta]:
        def make(site: Site, width: int, layout: Layout) -> surgery.Delta:
            names = site.parts if site.role is Role.ATTN_IN else (_CORE_NAMES[site.role],)
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
    ) -> Callable[[Site, int, Layout], surgery.Delta]:
        tuckers = {w: TuckerCore(n, self.rank, generator) for w, n in self.slices(anatomy).items()}

        def make(site: Site, width: int, layout: Layout) -> surgery.Delta:
            interleaved = self.variant == "released" and site.role in (Role.MLP_IN, Role.MLP_OUT)
            return TuckerDelta(
                factors[width], tuckers[width], layout, self.scale, self.dropout, interleaved
            )

        return make

    def expected_params(self, anatomy: Anatomy) -> int:
        r = self.rank
        return sum(2 * width * r + n * r + r**3 for width, n in self.slices(anatomy).items())
