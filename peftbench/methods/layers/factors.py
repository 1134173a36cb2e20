"""Factors that weights share, and the changes that are made of them."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.products import Input, add_factorised
from peftbench.methods.layers.slices import SliceLayout


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


class FactorisedDelta(surgery.Delta):
    """scale · V S_j U for each slice j of a weight."""

    recomputes = True

    def __init__(self, factors: Factors, layout: SliceLayout, scale: float, dropout: float) -> None:
        super().__init__()
        self.factors = factors
        self.layout = layout
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def cores(self) -> Tensor:
        """S (slices, r, r)."""

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        cores = self.scale * self.cores()
        # by rows the slices' cores stand below one another, else beside one another
        mixing = cores.flatten(0, 1) if self.layout.by_rows else cores.transpose(0, 1).flatten(1)
        mask = None
        if self.dropout.training and self.dropout.p > 0:
            kept = 1 - self.dropout.p
            # on a CPU the draws are those of dropout on the values themselves
            shape = (*x.shape[:-1], len(mixing))
            mask = torch.bernoulli(torch.empty(shape, dtype=torch.bool, device=x.device), kept)
            mixing = mixing / kept
        return add_factorised(
            y, Input.of(x, self.reading), (self.factors.u, mixing, self.factors.v), mask
        )

    def weight_delta(self) -> Tensor:
        slices = [self.scale * self.factors.v @ core @ self.factors.u for core in self.cores()]
        return torch.cat(slices, dim=0 if self.layout.by_rows else 1)


class TrainDelta(FactorisedDelta):
    """Tensor train: every slice has a core of its own."""

    def __init__(
        self,
        factors: Factors,
        layout: SliceLayout,
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
        layout: SliceLayout,
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
