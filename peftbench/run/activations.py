"""What a training step keeps for its backward pass: each storage once, without the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeptActivations:
    """Storages that autograd keeps, each held once so that no other takes its place."""

    weights: frozenset[int]  # storages that are in memory anyhow
    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(storage.nbytes() for storage in self.storages.values())

    def keep(self, tensor: Tensor) -> Tensor:
        """`tensor` (...) itself, whose storage is counted."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages[storage._cdata] = storage
        return tensor


@contextlib.contextmanager
def counting_kept(weights: Iterable[Tensor]) -> Iterator[KeptActivations]:
    """Inside, what the forward pass keeps for the backward pass is counted, on any device.

    Views of one storage count once, as whole storages. Tensors that a function of somebody's own
    keeps as plain attributes of its context are not seen.

    Args:
        weights: parameters and buffers (...), which do not count.
    """
    kept = KeptActivations(frozenset(tensor.untyped_storage()._cdata for tensor in weights))
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        yield kept
