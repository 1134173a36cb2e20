"""One forward pass, watched: the modules called, the layers with a matrix, sums and products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from peftbench.backbones.inference import flow as flows
from peftbench.backbones.inference.flow import Flow, Through, flow_of, mark, tensors_in

MOST_HEADS = 64  # of one attention
LAYERS = ("linear", "conv2d")  # functions that apply a matrix of weights


@dataclass
class Call:
    """One call of a module."""

    path: str
    start: int  # position among all that happened
    parent: Call | None
    reads: int = 0  # value of its first tensor; 0 where it does not depend on the image
    first: bool = False  # whether that tensor is its first argument
    single: bool = False  # whether its result is one tensor
    shape: tuple[int, ...] = ()  # of that
    end: int = 0
    gives: int = 0  # value of its result
    result: Tensor | None = None
    given: Tensor | None = None

    def inside(self) -> Iterator[Call]:
        """This call and those around it, the innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(frozen=True)
class Use:
    """One application of a matrix of weights to what depends on the image."""

    path: str  # of the module that owns the weight
    order: int
    call: Call  # innermost
    source: Flow  # of the input
    given: Tensor  # the input
    result: Tensor
    depthwise: bool
    plain: bool  # the weight itself, not what was computed of it
    own: bool  # by the forward of the module that owns the weight


@dataclass(frozen=True)
class Sum:
    """One sum of two tensors of one shape that both depend on the image."""

    order: int
    call: Call
    values: tuple[int, int]
    gives: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SeenProduct:
    """One product of tensors that depend on the image."""

    order: int
    call: Call
    operands: tuple[Tensor, ...]
    sources: tuple[Flow, ...]


@dataclass
class Trace:
    """What happened in one forward pass, in order."""

    calls: list[Call] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    products: list[SeenProduct] = field(default_factory=list)
    image: Tensor | None = None
    output: Tensor | None = None


def traced(model: nn.Module, image: Tensor) -> Trace:
    """Run `model` on `image` (B, C, H, W) and watch.

    Raises:
        whatever the model raises.
    """
    trace = Trace(image=image)
    watch = _Watch(model, trace)
    mark(image, Flow(value=flows.fresh_value(), image=True))
    with watch.hooked(), watch:
        output = model(image)
    trace.output = output
    return trace


class _Watch(TorchFunctionMode):
    """Notes each function that torch calls, and what comes out of it."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        super().__init__()
        self.model, self.trace = model, trace
        self.order = 0
        self.open: list[Call] = []
        self.owners = {
            id(parameter): (path, name)
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.matrices = {
            f"{path}.{name}".lstrip("."): path
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim >= 2
        }

    # ------------------------------------------------------------------ modules

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, calls of modules are noted."""
        handles: list[RemovableHandle] = []
        try:
            for path, module in self.model.named_modules():
                handles.append(
                    module.register_forward_pre_hook(self._enters(path), with_kwargs=True)
                )
                handles.append(module.register_forward_hook(self._leaves(path), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enters(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.order += 1
            call = Call(path, self.order, self.open[-1] if self.open else None)
            given = next(tensors_in((args, kwargs)), None)
            if given is not None:
                call.given, call.shape = given, tuple(given.shape)
                call.first = bool(args) and args[0] is given
                known = flow_of(given)
                call.reads = known.value if known is not None and known.image else 0
            self.open.append(call)
            self.trace.calls.append(call)

        return hook

    def _leaves(self, path: str) -> Callable[..., None]:
        activation = _is_activation(self.model.get_submodule(path))

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = self.open.pop()
            self.order += 1
            call.end = self.order
            given = [f for t in tensors_in((args, kwargs)) if (f := flow_of(t)) is not None]
            for tensor in tensors_in(output):
                known = flow_of(tensor)
                if known is None and given:  # by code that torch does not show, as of a script
                    known = flows.joined(given)
                    mark(tensor, known)
                if known is not None and activation and given:
                    passed = flows.joined([known], Through.ACTIVATION)
                    mark(tensor, replace(passed, value=known.value))
            result = next(tensors_in(output), None)
            call.single = isinstance(output, Tensor)
            if result is not None:
                call.result = result
                known = flow_of(result)
                call.gives = known.value if known is not None and known.image else 0

        return hook

    # ------------------------------------------------------------------ functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "size", "dim") and not isinstance(result, Tensor):
            return result
        given = list(tensors_in((args, kwargs)))
        known = [self._flow(tensor) for tensor in given]
        image = [f for f in known if f.image]
        self.order += 1
        if name == "__setitem__":
            if image:
                mark(args[0], flows.joined(known))
            return result
        if not image and not any(f.weights for f in known):
            return result
        outcome = self._outcome(name, args, kwargs, given, known, result)
        for tensor in tensors_in(result):
            one = outcome
            if not isinstance(result, Tensor):  # parts of a tensor are values of their own
                one = replace(outcome, value=flows.fresh_value())
            mark(tensor, one)
        return result

    def _flow(self, tensor: Tensor) -> Flow:
        known = flow_of(tensor)
        if known is not None:
            return known
        owner = self.owners.get(id(tensor))
        if owner is None:
            return Flow(value=0)
        return Flow(value=0, weights=frozenset({f"{owner[0]}.{owner[1]}".lstrip(".")}))

    def _outcome(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        given: list[Tensor],
        known: list[Flow],
        result: Any,
    ) -> Flow:
        """What is known of the result of one function."""
        image = [f for f in known if f.image]
        if name in LAYERS and len(given) > 1 and known[0].image and not known[1].image:
            return self._layer(name, args, kwargs, given, known, result)
        if name in flows.LAYOUT and len(image) == 1 and isinstance(result, Tensor):
            return image[0]
        passed = Through.NOTHING
        if name in flows.ACTIVATIONS:
            passed = Through.ACTIVATION
        elif name in flows.NORMS:
            passed = Through.NORM
        elif name in flows.PRODUCTS and len(image) > 1:
            passed = Through.PRODUCT
            self.trace.products.append(
                SeenProduct(
                    self.order,
                    self.open[-1],
                    tuple(t for t, f in zip(given, known, strict=True) if f.image),
                    tuple(image),
                )
            )
        elif name in flows.SUMS and len(image) > 1 and image[0].near.keys() != image[1].near.keys():
            # of one layer alone, as where positions turn queries, it is no sum of two branches
            passed = Through.SUM
        outcome = flows.joined(known, passed)
        if passed is Through.SUM and isinstance(result, Tensor) and self.open:
            self.trace.sums.append(
                Sum(
                    self.order,
                    self.open[-1],
                    (image[0].value, image[1].value),
                    outcome.value,
                    tuple(result.shape),
                )
            )
        return outcome

    def _layer(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        given: list[Tensor],
        known: list[Flow],
        result: Tensor,
    ) -> Flow:
        """Note that a matrix of weights was applied; what comes out depends on it first."""
        weight = known[1].weights
        matrices = [w for w in weight if w in self.matrices]
        if len(matrices) != 1 or not self.open:
            return flows.joined(known)
        path = self.matrices[matrices[0]]
        depthwise = name == "conv2d" and given[1].shape[1] == 1 and given[0].shape[1] > 1
        self.trace.uses.append(
            Use(
                path,
                self.order,
                self.open[-1],
                known[0],
                given[0],
                result,
                depthwise,
                plain=id(given[1]) in self.owners,
                own=self.open[-1].path == path,
            )
        )
        passed = Through.NOTHING
        for through in known[0].dense.values():
            passed |= Through.NOTHING if through & Through.SUM else through
        if not passed & Through.PRODUCT or max(given[1].shape[:2]) > MOST_HEADS:
            passed = Through.NOTHING  # else it may mix the heads of attention
        own = {path: passed}
        return Flow(
            value=flows.fresh_value(),
            image=True,
            near=own,
            dense=known[0].dense if depthwise else own,
        )


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation, also one that torch shows nothing of."""
    kind = type(module)
    return "activation" in kind.__module__ and not any(True for _ in module.children())
