"""The moving average of weights against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftbench.training.average import WeightAverage


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor(4.0))]


def test_the_average_is_its_closed_form() -> None:
    weights = parameters()
    average = WeightAverage(weights, 0.9)
    for step in range(1, 6):
        with torch.no_grad():
            for weight in weights:
                weight.fill_(float(step))
        average.update()
    average.keep()
    # 0.9^5 of the start, and 0.1 x 0.9^(5 - t) of the weights t of step t
    rest = sum(0.1 * 0.9 ** (5 - t) * t for t in range(1, 6))
    torch.testing.assert_close(weights[0].detach(), 0.9**5 * torch.tensor([1.0, -2.0]) + rest)
    torch.testing.assert_close(weights[1].detach(), torch.tensor(0.9**5 * 4.0 + rest))


def test_inside_the_model_has_the_average_and_behind_its_own_weights() -> None:
    weights = parameters()
    average = WeightAverage(weights, 0.5)
    with torch.no_grad():
        weights[1].fill_(8.0)
    average.update()
    with average.in_place():
        assert weights[1].item() == 6.0
        assert weights[1].requires_grad
    assert weights[1].item() == 8.0
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        raise RuntimeError("inside")
    assert weights[1].item() == 8.0


def test_without_a_decay_the_weights_are_the_average() -> None:
    weights = parameters()
    average = WeightAverage(weights, None)
    with torch.no_grad():
        weights[1].fill_(8.0)
    average.update()
    with average.in_place():
        assert weights[1].item() == 8.0
    average.keep()
    assert weights[1].item() == 8.0
    assert average.averages is None
