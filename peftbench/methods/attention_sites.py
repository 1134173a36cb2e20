"""Which modules of a backbone are attentions of their own; loading it needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from peftbench.backbones.anatomy import Anatomy, Kind, Role
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice

if TYPE_CHECKING:
    from torch import nn


def attention_paths(anatomy: Anatomy) -> dict[int, str]:
    """The module that projects to queries, keys and values and back, by the depth of its block.

    Without blocks that have none, and those that have several.
    """
    parents: dict[int, set[str]] = {}
    for site in anatomy.where(Role.ATTN_OUT):
        parents.setdefault(site.depth, set()).add(site.path.rpartition(".")[0])
    entries = {
        (site.depth, site.path.rpartition(".")[0])
        for site in anatomy.where(Role.ATTN_IN)
        if site.kind is Kind.LINEAR
    }
    blocks = {site.path for site in anatomy.where(Role.BLOCK)}
    return {
        depth: path
        for depth, (path, *others) in ((d, tuple(found)) for d, found in parents.items())
        if not others and (depth, path) in entries and path not in blocks
    }


def attention_widths(anatomy: Anatomy) -> dict[int, int]:
    """Channels of all heads together, by the depth of the block: what the last projection reads."""
    paths = attention_paths(anatomy)
    return {
        site.depth: site.fan_in
        for site in anatomy.where(Role.ATTN_OUT)
        if site.depth in paths and site.fan_in is not None
    }


def require_heads(name: str, backbone: nn.Module, anatomy: Anatomy, depths: Iterable[int]) -> None:
    """Raise `Unsupported` unless the method `name` finds the heads of the blocks at `depths`."""
    from peftbench.methods.layers.attention import heads_of

    found = heads_of(backbone, anatomy, attention_paths(anatomy))
    for depth in depths:
        if depth not in found:
            raise Unsupported(
                f"{name} puts keys and values into attention, and that of block {depth} of this "
                f"{anatomy.family} backbone does not call scaled_dot_product_attention on rows. "
                f"{advice(name, anatomy)}"
            )
