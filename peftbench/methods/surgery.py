"""The only code that replaces submodules or sets `requires_grad`."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftbench.backbones.anatomy import Role, Site
from peftbench.methods.changes import Change, Delta
from peftbench.methods.readings import RECOMPUTABLE, NotedActivation, Reading

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound="Change")


def replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`; returns the module that was there."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    old = model.get_submodule(path)
    module.train(old.training)
    # `ModuleList` and `Sequential` keep children under their index as text
    parent.register_module(name, module)
    return old


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `module` a `kind`, a subclass of its class without attributes of its own."""
    if not issubclass(kind, type(module)):
        raise TypeError(f"{kind.__name__} is no {type(module).__name__}")
    module.__class__ = kind


def own_modules(module: nn.Module) -> None:
    """Make children of modules that `module` holds as plain attributes: they then move with it."""
    for name, value in list(vars(module).items()):
        if isinstance(value, nn.Module):
            del vars(module)[name]
            module.register_module(name, value)


def raise_counts(module: nn.Module, name: str, by: int) -> None:
    """Add to the number that `module`, and modules in it, hold as the attribute `name`."""
    for part in module.modules():
        if isinstance(vars(part).get(name), int):
            setattr(part, name, vars(part)[name] + by)


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


@contextlib.contextmanager
def learning(model: nn.Module, tensors: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, exactly `tensors` of `model` require gradients; then those that did before."""
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    freeze_except(model, tensors)
    try:
        yield
    finally:
        freeze_except(model, before)


Hook = Callable[..., Any]  # one before a call may return other arguments for it


@contextlib.contextmanager
def watched(
    model: nn.Module,
    paths: Iterable[str],
    before: Callable[[str], Hook] | None = None,
    after: Callable[[str], Hook] | None = None,
) -> Iterator[None]:
    """Inside, calls of the modules at `paths` are told.

    Args:
        before: gives, of a path, what is called with the module and its arguments.
        after: the same with the output besides.
    """
    handles = []
    try:
        for path in paths:
            module = model.get_submodule(path)
            if before is not None:
                handles.append(module.register_forward_pre_hook(before(path)))
            if after is not None:
                handles.append(module.register_forward_hook(after(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def standing_in(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the modules at some paths give these tensors (B, ...) and compute nothing."""
    replaced: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for path, output in outputs.items():
            attributes = vars(model.get_submodule(path))
            own = {"forward": attributes["forward"]} if "forward" in attributes else {}
            replaced.append((attributes, own))
            attributes["forward"] = lambda *args, _output=output, **kwargs: _output
        yield
    finally:
        for attributes, own in replaced:
            del attributes["forward"]
            attributes.update(own)


class Carrier(nn.Module):
    """Holds modules under the paths that they have in a backbone, and nothing else of it.

    For a library that changes models itself: what it is not given it cannot change.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, module in modules.items():
            parent: nn.Module = self
            *above, name = path.split(".")
            for step in above:
                if step not in dict(parent.named_children()):
                    parent.register_module(step, nn.Module())
                parent = parent.get_submodule(step)
            parent.register_module(name, module)

    def forward(self) -> SimpleNamespace:
        """A loss (1,) of zero, for a library that adds its own terms to a model's loss."""
        return SimpleNamespace(loss=torch.zeros(1))


class Around(nn.Module):
    """A module in the place of another one, which it holds as `base`.

    Some models ask a layer for its weight, to learn a device or a type, or for its kernel size, and
    get those of `base`. A site whose weight they compute with is not `called`, and never wrapped.
    """

    disturb: Callable[[Tensor], Tensor] | None = None  # noise on changes; where false, none acts

    def disturb_by(self, disturb: Callable[[Tensor], Tensor]) -> None:
        """Let training change what is added here, (...)."""
        self.disturb = disturb

    def __getattr__(self, name: str) -> Any:
        """An attribute of the module inside where this one has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self._modules.get("base")
            # how a layer with a parametrization is copied, and that it has one, is its own
            if base is None or name.startswith("__") or name == "parametrizations":
                raise
            return getattr(base, name)


class OutputAdapter(Around):
    """A frozen module with an adapter on its output."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: what the module takes; its output (B, ..., C) or (B, C, H, W), adapted."""
        y: Tensor = self.base(x, *args, **kwargs)
        adapted: Tensor = self.adapter(y)
        return adapted if not self.disturb else y + self.disturb(adapted - y)


class ResidualAdapter(OutputAdapter):
    """A frozen module with what an adapter makes of its output added to it."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: what the module takes; its output y (B, ..., C) or (B, C, H, W), and adapter(y)."""
        y: Tensor = self.base(x, *args, **kwargs)
        change: Tensor = self.adapter(y)
        return y + (change if not self.disturb else self.disturb(change))


class InputAdapter(Around):
    """A frozen module with an adapter on its input."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W), adapted in this shape; what the module makes of it."""
        adapted: Tensor = self.adapter(x)
        adapted = adapted if not self.disturb else x + self.disturb(adapted - x)
        out: Tensor = self.base(adapted, *args, **kwargs)
        return out


class DeltaLayer(Around):
    """A frozen layer with a change computed beside it.

    Forming W + dW at each step would make autograd compute the gradient of the whole weight.
    """

    def __init__(self, base: nn.Module, delta: Change) -> None:
        super().__init__()
        self.base = base
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) from x (..., fan_in); of a convolution (B, C, H, W) from the same."""
        if not self.disturb:
            return self.delta.output(self.base, x)
        y: Tensor = self.base(x)
        if isinstance(self.delta, Delta):
            return y + self.disturb(self.delta.add_to_output(torch.zeros_like(y), x))
        return y + self.disturb(self.delta.output(self.base, x) - y)


class DeltaWeight(nn.Module):
    """The same change as a parametrization, for layers whose weight is read and never called."""

    def __init__(self, delta: Change) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight: (width, fan_in), or (out, in, k, k) of a convolution."""
        return self.delta.changed_weight(weight)


def add_deltas(
    model: nn.Module, sites: Iterable[Site], make: Callable[[Site], C]
) -> tuple[dict[str, C], tuple[str, ...]]:
    """Give the layer of each site its own `make(site)`.

    Returns the deltas by path, and a note where weights had to be parametrized because their
    modules are never called.
    """
    deltas, parametrized = {}, 0
    for site in sites:
        module = model.get_submodule(site.path)
        delta = make(site).to(module.get_parameter("weight").device)
        deltas[site.path] = delta
        if site.called and not delta.inside:
            replace(model, site.path, DeltaLayer(module, delta))
            if delta.recomputes and site.role is Role.MLP_OUT:
                delta.reading = _note_activation(model, site)
        else:
            parametrize.register_parametrization(module, "weight", DeltaWeight(delta))
            parametrized += not delta.inside
    note = (
        f"{parametrized} weights are parametrized because their modules are never called; training "
        "forms their full gradient"
    )
    return deltas, (note,) if parametrized else ()


def add_bias_deltas(model: nn.Module, deltas: Mapping[str, Delta]) -> None:
    """Let the bias of the layer at each path be what it is and its delta, of the same shape."""
    for path, delta in deltas.items():
        module = model.get_submodule(path)
        delta.to(module.get_parameter("bias").device)
        parametrize.register_parametrization(module, "bias", DeltaWeight(delta))


def _note_activation(model: nn.Module, site: Site) -> Reading | None:
    """Let the activation that timm has in front of a second layer note what it reads.

    Only one that keeps its input and always makes the same of it. Where something stands between
    it and the layer, `Reading.source_of` says so in each pass.
    """
    path = f"{site.path.rpartition('.')[0]}.act".lstrip(".")
    module = dict(model.named_modules()).get(path)
    if type(module) not in RECOMPUTABLE:
        return None
    assert module is not None
    reading = Reading(module)
    replace(model, path, NotedActivation(module, reading))
    return reading


def in_float64(module: M) -> M:
    """A copy of `module` in float64 and eval mode, in which merging sums."""
    return copy.deepcopy(module).double().eval()


@torch.no_grad()
def bake_deltas(model: nn.Module) -> list[str]:
    """Fold every delta into its weight and restore the plain layers; returns their paths.

    Sums in float64, so that merging adds one rounding and no more.
    """
    baked = []
    for path, module in list(model.named_modules()):
        if isinstance(module, DeltaLayer):
            weight = module.base.get_parameter("weight")
            delta, exact = in_float64(module.delta), weight.double()
            bias = dict(module.base.named_parameters(recurse=False)).get("bias")
            moved = delta.changed_bias(exact, None if bias is None else bias.double())
            if bias is not None and moved is not None:  # else its method refuses to merge
                bias.copy_(moved)
            weight.copy_(delta.changed_weight(exact))
            replace(model, path, module.base)
            baked.append(path)
        elif isinstance(module, NotedActivation):
            replace(model, path, module.base)
        elif parametrize.is_parametrized(module):
            _bake_parametrized(module)
            baked.append(path)
    return baked


def _bake_parametrized(module: nn.Module) -> None:
    """Fold the deltas inside the tensors of one layer and make it a plain one."""
    tensors = {}
    for name, stack in module.get_submodule("parametrizations").named_children():
        tensor = tensors[name] = stack.get_parameter("original")
        total = tensor.double()
        for each in stack.children():
            if isinstance(each, DeltaWeight):
                total = in_float64(each.delta).changed_weight(total)
        tensor.copy_(total)
    # `remove_parametrizations` would delete the property of the generated class, which deep
    # copies of the module share
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    every = {**tensors, **module._parameters}
    weight = {name: tensor for name, tensor in every.items() if name == "weight"}
    module._parameters = {**weight, **every}  # the weight first, as it was


@dataclass(frozen=True)
class Snapshot:
    """What a model was before surgery, for `restore`."""

    # module, its class, its attributes and what its own registries held
    modules: tuple[tuple[nn.Module, type, dict[str, Any], dict[str, Any]], ...]
    tensors: list[tuple[Tensor, Tensor, bool, Tensor | None]]  # object, values, requires_grad, grad

    def keep(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the values of those of `parameters` that the model had: they are about to change."""
        chosen = {id(parameter) for parameter in parameters}
        for i, (tensor, values, requires_grad, grad) in enumerate(self.tensors):
            if id(tensor) in chosen:
                self.tensors[i] = (tensor, values.clone(), requires_grad, grad)


def snapshot(model: nn.Module) -> Snapshot:
    """The module tree and tensors of `model`.

    Buffers are copied. Parameters share their memory with the snapshot until `Snapshot.keep`, so
    one of a frozen backbone costs nothing.
    """
    modules = []
    for module in model.modules():
        attributes = dict(vars(module))
        registries = {k: copy.copy(v) for k, v in attributes.items() if isinstance(v, dict | set)}
        modules.append((module, type(module), attributes, registries))
    tensors: list[tuple[Tensor, Tensor, bool, Tensor | None]] = []
    tensors += [(p, p.detach(), p.requires_grad, p.grad) for p in model.parameters()]
    tensors += [(b, b.detach().clone(), b.requires_grad, b.grad) for b in model.buffers()]
    return Snapshot(tuple(modules), tensors)


def restore(before: Snapshot) -> nn.Module:
    """Make the model of a snapshot what it was: modules, parameter objects, values, modes."""
    for module, kind, attributes, registries in before.modules:
        module.__class__ = kind  # parametrized modules have a class of their own
        vars(module).clear()
        vars(module).update(attributes)
        for name, held in registries.items():
            attributes[name].clear()
            attributes[name].update(held)
    for tensor, values, requires_grad, grad in before.tensors:
        tensor.grad = None  # of another type or device, if the model was moved
        tensor.data = values
        tensor.requires_grad_(requires_grad)
        tensor.grad = grad
    return before.modules[0][0]


# names of before, which methods of others may still use
RENAMED = {"Then": "OutputAdapter", "Plus": "ResidualAdapter", "After": "InputAdapter"}


def __getattr__(name: str) -> Any:
    """A class by its name of before, with a warning that says the one of now."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"surgery.{name} is surgery.{RENAMED[name]} now", DeprecationWarning, stacklevel=2
    )
    return globals()[RENAMED[name]]
