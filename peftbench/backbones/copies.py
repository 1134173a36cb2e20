"""Copies of models, with and without the memory of their tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def weightless_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device; costs no memory."""
    memo = without_graph(model)
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def full_copy(model: nn.Module) -> nn.Module:
    """A copy with tensors of its own, whatever a forward pass left in the modules.

    timm keeps the attention biases of LeViT or TinyViT from one pass to the next as attributes.
    Where the pass had gradients they are results, which torch refuses to copy.
    """
    return copy.deepcopy(model, without_graph(model))


def without_graph(model: nn.Module) -> dict[int, Any]:
    """What stands in a copy of `model` for results that its modules hold, by their identity."""
    return {id(made): made.detach().clone() for made in _computed(model)}


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a graph behind them that modules hold as attributes or in containers."""
    for module in model.modules():
        todo = list(vars(module).values())
        while todo:
            held = todo.pop()
            if isinstance(held, Tensor) and not held.is_leaf:
                yield held
            elif type(held) in (list, tuple):
                todo += held
            elif isinstance(held, dict):
                todo += [each for each in held.values() if not isinstance(each, nn.Module)]
