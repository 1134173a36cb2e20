"""How far float32 may be from float64, from a model of its rounding and not from one machine."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

UNIT = 2.0**-23  # distance of float32 numbers, relative
BFLOAT16_UNIT = 2.0**-8  # of bfloat16: eight bits of mantissa, one of them implied

# A sum of n products is wrong by up to sqrt(n) of its roundings where they are random, and the
# longest sums of the tiny backbones have about a thousand terms; forward and backward double that.
# Libraries differ in the order of the sum and in fused steps, which is all within it: what was
# measured of five kinds of instruction sets is below 16.
TERMS = 64
# what was computed once, in float32 on one machine, and is compared with float64: the files
STORED = 32


def assert_alike(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of sums in float32, which kernels choose by size and alignment."""
    assert actual.shape == expected.shape
    error = float((actual.detach().double() - expected.detach().double()).abs().max())
    largest = float(expected.detach().abs().max())
    assert error <= TERMS * UNIT * largest, f"{error:.2e} of {largest:.2e}"


def round_outputs(model: nn.Module) -> None:
    """Round what each module returns to float32, and so its gradient, in a model in float64.

    What then differs from float64 is what one rounding of each value makes, with the conditioning
    of this very function: a number that has no order of summation in it.
    """

    def rounded(module: nn.Module, args: object, output: object) -> object:
        return output.float().double() if isinstance(output, Tensor) else output

    for module in model.modules():
        module.register_forward_hook(rounded)


class Corners:
    """Watches the ReLUs and max-pools of a model for values that rounding may put on either side.

    There a gradient jumps by a whole term, and float32 is right with the one and with the other.
    """

    def __init__(self, model: nn.Module) -> None:
        self.near = False  # whether a value was that close, since the last look
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(self._relu)
            elif isinstance(module, nn.MaxPool2d):
                module.register_forward_pre_hook(self._pool)

    def _relu(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        self._look(x.abs(), x)

    def _pool(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        sides = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding")}
        count = x.shape[0] * x.shape[1]
        windows = F.unfold(x.reshape(count, 1, *x.shape[2:]), **sides)
        first, second = windows.topk(2, dim=1).values.unbind(1)
        # behind a ReLU a window of zeros has no gradient, whichever is taken
        self._look((first - second)[first > 0], x)

    def _look(self, distance: Tensor, x: Tensor) -> None:
        if distance.numel():
            self.near |= bool(distance.min() < TERMS * UNIT * x.abs().max())
