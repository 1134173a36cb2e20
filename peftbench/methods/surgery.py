"""The only code that replaces submodules or sets `requires_grad`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftbench.backbones.anatomy import Site


def replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`; returns the module that was there."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    old = model.get_submodule(path)
    module.train(old.training)
    # `ModuleList` and `Sequential` keep children under their index as text
    parent.register_module(name, module)
    return old


def wrap(
    model: nn.Module, sites: Iterable[Site], make: Callable[[Site, nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Replace the module of each site by `make(site, module)`; returns the new ones by path."""
    wrapped = {}
    for site in sites:
        new = make(site, model.get_submodule(site.path))
        replace(model, site.path, new)
        wrapped[site.path] = new
    return wrapped


def freeze_except(model: nn.Module, trainable: Iterable[nn.Parameter]) -> None:
    """Make exactly `trainable` require gradients, decided by object and never by name."""
    chosen = {id(parameter) for parameter in trainable}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


class Delta(nn.Module, ABC):
    """A learned change of one linear layer, usable beside it or inside its weight."""

    @abstractmethod
    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """`y` (..., width), the layer's fresh output for `x` (..., fan_in), with the change added.

        May write into `y`.
        """

    @abstractmethod
    def of_weight(self) -> Tensor:
        """The same change as a matrix of the weight's shape (width, fan_in)."""


class DeltaLayer(nn.Module):
    """A frozen layer with a change computed beside it.

    Forming W + dW at each step would make autograd compute the gradient of the whole weight.
    """

    def __init__(self, base: nn.Module, delta: Delta) -> None:
        super().__init__()
        self.base = base
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        return self.delta.add_to(self.base(x), x)


class DeltaWeight(nn.Module):
    """The same change as a parametrization, for layers whose weight is read and never called."""

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta.of_weight().to(weight.dtype)


def add_deltas(
    model: nn.Module, sites: Iterable[Site], make: Callable[[Site], Delta]
) -> tuple[dict[str, Delta], list[str]]:
    """Give the linear layer of each site its own `make(site)`.

    Returns the deltas by path and the paths where the weight had to be parametrized because its
    module is never called.
    """
    deltas, parametrized = {}, []
    for site in sites:
        module = model.get_submodule(site.path)
        delta = make(site).to(module.get_parameter("weight").device)
        deltas[site.path] = delta
        if site.called:
            replace(model, site.path, DeltaLayer(module, delta))
        else:
            parametrize.register_parametrization(module, "weight", DeltaWeight(delta))
            parametrized.append(site.path)
    return deltas, parametrized


@torch.no_grad()
def bake_deltas(model: nn.Module) -> list[str]:
    """Fold every delta into its weight and restore the plain layers; returns their paths.

    Sums in float64, so that merging adds one rounding and no more.
    """
    baked = []
    for path, module in list(model.named_modules()):
        if isinstance(module, DeltaLayer):
            weight = module.base.get_parameter("weight")
            weight.copy_(weight.double() + copy.deepcopy(module.delta).double().of_weight())
            replace(model, path, module.base)
            baked.append(path)
        elif parametrize.is_parametrized(module, "weight"):
            stack = module.get_submodule("parametrizations.weight")
            deltas = [p for p in stack.children() if isinstance(p, DeltaWeight)]
            weight = stack.get_parameter("original")
            total = weight.double()
            for parametrization in deltas:
                total = total + copy.deepcopy(parametrization.delta).double().of_weight()
            weight.copy_(total)
            # `remove_parametrizations` would delete the property of the generated class, which
            # deep copies of the module share
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            module.register_parameter("weight", weight)
            baked.append(path)
    return baked
