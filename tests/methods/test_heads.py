"""What the classifiers start from, and how the MLP head is built."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from peftbench.methods import METHODS, discover

discover()
WIDTH, CLASSES = 384, 100


def _head(method: str, **options: object) -> nn.Module:
    return METHODS[method](**options).head(WIDTH, CLASSES, torch.Generator().manual_seed(0))


def test_the_linear_head_is_uniform_with_zero_bias() -> None:
    head = _head("linear")
    bound = 1 / math.sqrt(WIDTH)
    assert head.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not head.bias.any()


def test_the_mlp_head_starts_as_in_the_released_code() -> None:
    """Kaiming normal over the outputs; a prior of 0.01 for each class in the last bias."""
    head = _head("mlp", num_layers=3)
    assert head.last.weight.std().item() == pytest.approx(math.sqrt(2 / CLASSES), rel=0.02)
    torch.testing.assert_close(head.last.bias, torch.full((CLASSES,), -4.5951), rtol=0, atol=5e-5)
    for hidden in (head.linear0, head.linear1):
        assert hidden.weight.std().item() == pytest.approx(math.sqrt(2 / WIDTH), rel=0.02)
        assert hidden.bias.abs().max().item() == pytest.approx(1 / math.sqrt(WIDTH), rel=0.02)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_mlp_head_normalises_after_the_activation(k: int) -> None:
    kinds = [type(layer) for layer in _head("mlp", num_layers=k).children()]
    assert kinds == [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout] * (k - 1) + [nn.Linear]
