"""A network of several trials: which modules each has for itself, and what is never shared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftbench.run.stacking import PROBED, Unstackable, stacked
from peftbench.training.device import Compute

EXACT = Compute(torch.device("cpu"), torch.float32)
IMAGES = torch.randn(PROBED, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """(B, 3) -> (B, 2): a frozen layer, one that trains, a frozen one."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(3, 4), middle, nn.Linear(4, 2)
        for frozen in (self.first, self.last):
            frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class OverTheBatch(nn.Module):
    """Subtracts the mean of the batch, so that rows depend on one another."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Reads(Net):
    """Its own code reads a tensor that trains."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) @ self.middle.weight)


def test_each_trial_has_its_own_tensors_and_shares_the_frozen_ones() -> None:
    net = Net(nn.Linear(4, 4))
    trained = list(net.middle.parameters())
    start = [p.detach().clone() for p in trained]
    with stacked(net, trained, [], IMAGES, (None, EXACT, 3)) as stack:
        assert list(stack.places) == ["middle"]
        own = [stack.parameters(trial) for trial in range(3)]
        assert [p is q for p, q in zip(own[0], trained, strict=True)] == [True, True]
        with torch.no_grad():
            own[2][1].fill_(7.0)  # the bias of the third trial
        stack.activate([2, 0])
        shared = net.first(IMAGES)
        third = shared @ start[0].T + 7.0
        first = shared @ start[0].T + start[1]
        expected = net.last(torch.cat([third, first]))
        torch.testing.assert_close(stack.model(torch.cat([IMAGES] * 2)), expected)
    assert net.middle.weight is trained[0] and type(net.middle) is nn.Linear


def test_trials_draw_the_random_numbers_that_each_draws_by_itself() -> None:
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    with stacked(net, list(net.middle.parameters()), [], IMAGES, (None, EXACT, 2)) as stack:
        stack.activate([0, 1])
        torch.manual_seed(3)
        one, other = stack.model(torch.cat([IMAGES] * 2)).chunk(2)
        behind = torch.rand(1)
    assert torch.equal(one, other)
    torch.manual_seed(3)
    torch.testing.assert_close(net(IMAGES), one)
    assert torch.equal(torch.rand(1), behind)


def test_statistics_of_a_trial_are_its_own_and_a_trial_run_leaves_none() -> None:
    net = Net(nn.BatchNorm1d(4))
    buffers = list(net.middle.buffers())
    before = [buffer.clone() for buffer in buffers]
    with stacked(net, list(net.middle.parameters()), buffers, IMAGES, (None, EXACT, 2)) as stack:
        assert all(torch.equal(a, b) for a, b in zip(buffers, before, strict=True))
        stack.activate([1])
        stack.model(IMAGES)
        mean = stack.of(1, net.get_buffer("middle.own.0.running_mean"))
        torch.testing.assert_close(mean, 0.1 * net.first(IMAGES).mean(0))  # momentum 0.1 from zero
    assert all(torch.equal(a, b) for a, b in zip(buffers, before, strict=True))


@pytest.mark.parametrize(
    "net", [Net(nn.Sequential(nn.Linear(4, 4), OverTheBatch())), Reads(nn.Linear(4, 4, bias=False))]
)
def test_networks_in_which_trials_would_meet_are_refused(net: nn.Module) -> None:
    trained = list(net.middle.parameters())
    with pytest.raises(Unstackable), stacked(net, trained, [], IMAGES, (None, EXACT, 2)):
        pass
