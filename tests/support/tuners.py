"""What tests of all methods must know of some: sizes that fit, images, short searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from peftbench.methods import METHODS

# block sizes that divide the widths of tiny backbones
FITTING: Mapping[str, Mapping[str, Any]] = {
    "hf_c3a": {"block_size": 8},
    "hf_road": {"group_size": 8},
    "hf_vblora": {"vector_length": 8, "num_vectors": 16},
}
FOLDED_IN_FLOAT32 = frozenset({"hf_c3a", "hf_deft"})  # by peft, whatever the weights are


# for as short a search as shows that it works
QUICK: Mapping[str, Mapping[str, Any]] = {
    "noah": {"supernet_epochs": 2, "rounds": 1, "population": 3, "crossed": 1, "mutated": 1},
}


def options(method: str, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of `pb.tune`: sizes that fit, and images (B, C, S, S) where the method looks."""
    chosen = {**FITTING.get(method, {}), **QUICK.get(method, {})}
    if METHODS[method].card.prepared:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        chosen["data"] = [(images, torch.arange(len(images)))] * 2
    return chosen
