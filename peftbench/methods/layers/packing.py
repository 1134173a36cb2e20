"""Tensors that are stored as packed bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn


class PackedTensor(nn.Module, ABC):
    """Holds a parameter that a file has in another form."""

    packs: ClassVar[str]  # the name of that parameter

    @abstractmethod
    def pack(self) -> dict[str, Tensor]:
        """What a file holds of it, by names of their own."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, Tensor]) -> None:
        """Take over what `pack` gave, so that the forward pass is the same."""

    @abstractmethod
    def load_full(self) -> None:
        """The parameter has been loaded as it trains."""


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) below 2^bits as bytes (ceil(n bits / 8),), the low bits of the first in front."""
    places = torch.arange(bits, device=codes.device)
    flat = ((codes[:, None] >> places) & 1).flatten()
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
    weights = 1 << torch.arange(8, device=codes.device)
    return (flat.view(-1, 8) * weights).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes (n,) that `pack_bits` made bytes (m,) of."""
    places = torch.arange(8, device=packed.device)
    flat = ((packed[:, None].long() >> places) & 1).flatten()[: count * bits]
    weights = 1 << torch.arange(bits, device=packed.device)
    return (flat.view(count, bits) * weights).sum(1)
