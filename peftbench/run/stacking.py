"""A model of several trials: modules of what trains once for each of them, all else shared.

A batch of it has the images of every trial, one behind another. What is frozen computes them at
once; each module that trains, or that draws random numbers, computes the part of its trial alone,
with the kernels and shapes of a run by itself. So it works for any method without a word of it. It
is tried on a copy of the network before it is used: two trials with different tensors must get
what each gets alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.copies import without_graph
from peftbench.methods import surgery
from peftbench.run.prefix import Prefix, Suffix
from peftbench.training.activations import Activations
from peftbench.training.device import Compute, autocast, seeded

PROBED = 5  # images: few numbers in a network are multiples of it but by its batch
# of the greatest number of outputs or gradients, in products of other shapes
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
CHANGE = 0.1  # of a tensor, by which trials differ where a stack is tried


class Unstackable(Exception):
    """A network whose trials cannot share what is frozen."""


class Abreast(nn.Module):
    """A module once for each trial; each computes its own rows of the batch."""

    def __init__(self, own: Sequence[nn.Module], draws: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(own)
        self.draws = draws  # random numbers, the same for every trial
        self.active = list(range(len(own)))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x: (k B, ...) rows of k active trials; what comes out has as many times B rows."""
        count, state = len(self.active), torch.get_rng_state() if self.draws else None

        def parts(value: Any) -> Sequence[Any]:
            """Of each trial. The gradient of a split is one concatenation."""
            whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(x)
            return value.split(len(x) // count) if whole else [value] * count

        mine, others = parts(x), [parts(value) for value in args]
        named = {key: parts(value) for key, value in kwargs.items()}
        outputs = []
        for place, trial in enumerate(self.active):
            if state is not None:
                torch.set_rng_state(state)
            beside = [value[place] for value in others]
            keyed = {key: value[place] for key, value in named.items()}
            outputs.append(self.own[trial](mine[place], *beside, **keyed))
        return torch.cat(outputs)


@dataclass
class StackedModel:
    """The network of several trials; see `Stack`."""

    model: nn.Module  # the network, or its part behind a prefix
    root: nn.Module  # the network
    places: dict[str, Abreast]
    copies: list[dict[int, Any]]  # of each trial but the first, by the identity of the original
    trainable: list[nn.Parameter]  # of the first
    trials: int = field(init=False)

    def __post_init__(self) -> None:
        self.trials = len(self.copies) + 1

    def parameters(self, trial: int) -> list[nn.Parameter]:
        """What trains of one trial, in the order of the first one's."""
        return [self.of(trial, parameter) for parameter in self.trainable]

    def of(self, trial: int, tensor: Any) -> Any:
        """What a trial has in the place of a tensor (...) of the first one."""
        return tensor if trial == 0 else self.copies[trial - 1].get(id(tensor), tensor)

    def activate(self, trials: Sequence[int]) -> None:
        """Let the model compute these, in this order."""
        for place in self.places.values():
            place.active = list(trials)

    @contextlib.contextmanager
    def taken_apart(self) -> Iterator[None]:
        """Inside, the network is that of the first trial again."""
        _take_apart(self.root, self)
        try:
            yield
        finally:
            for path, place in self.places.items():
                _put(self.root, path, place)

    def match_modes(self) -> None:
        """Put what trains of each trial into the mode of the first one's."""
        for place in self.places.values():
            first, *others = place.own
            for other in others:
                for mine, its in zip(first.modules(), other.modules(), strict=True):
                    its.training = mine.training


@contextlib.contextmanager
def stacked(
    model: nn.Module,
    trainable: Sequence[nn.Parameter],
    buffers: Iterable[Tensor],
    images: Any,
    given: tuple[Prefix | None, Compute, int],
) -> Iterator[StackedModel]:
    """Inside, `model` is one of several trials, all as the one that it is now.

    Args:
        model: in the mode in which it trains; its part behind a prefix is stacked where one is
            given.
        trainable: what trains of it; `buffers` are those that training changes.
        images: `PROBED` normalised images (B, 3, S, S), or what the prefix gives of them.
        given: the prefix, the arithmetic, and the number of trials.

    Raises:
        Unstackable: its trials have nothing to share, or do not get what each gets alone.
    """
    prefix, compute, trials = given
    changing = {id(tensor) for tensor in (*trainable, *buffers)}
    try:
        with seeded(0, compute):
            memo = without_graph(model)
            twin = copy.deepcopy(model, memo)  # of whose statistics a pass may leave anything
            calls = _calls(_called(twin, prefix), twin, images, compute)
            paths = _places(model, calls, changing)
            own = [memo[id(parameter)] for parameter in trainable]
            moved = {id(memo[key]) for key in changing if key in memo}
            _try(twin, paths, calls, (own, moved), images, (prefix, compute))
    except Unstackable:
        raise
    except Exception as e:  # of a network whose code asks more of its modules than to be called
        raise Unstackable(f"{type(e).__name__}: {e}") from e
    stack = _stack(model, paths, calls, (trainable, changing), trials)
    stack.model = _called(model, prefix)
    try:
        yield stack
    finally:
        _take_apart(model, stack)


@dataclass
class _Call:
    """What was seen of the calls of a module."""

    by_rows: bool = True  # takes a batch and gives one
    draws: bool = False
    state: Tensor | None = None


def _called(model: nn.Module, prefix: Prefix | None) -> nn.Module:
    return model if prefix is None else Suffix(model, prefix)


def _calls(called: nn.Module, model: nn.Module, images: Any, compute: Compute) -> dict[str, _Call]:
    """The modules that a forward pass calls, by their paths in `model`."""
    calls: dict[str, _Call] = {}

    def begin(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = calls.setdefault(path, _Call())
            call.by_rows &= bool(args) and _has_rows(args[0])
            call.state = torch.get_rng_state()

        return hook

    def end(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = calls[path]
            call.by_rows &= _has_rows(output)
            call.draws |= call.state is None or not torch.equal(call.state, torch.get_rng_state())

        return hook

    paths = [path for path, _ in model.named_modules() if path]
    with surgery.watched(model, paths, begin, end), torch.no_grad(), autocast(compute):
        called(images)
    return calls


def _has_rows(value: Any) -> bool:
    """Whether it is a batch of what was shown, such as windows of its images."""
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) % PROBED == 0


def _places(model: nn.Module, calls: dict[str, _Call], changing: set[int]) -> list[str]:
    """Paths of the smallest modules that each trial needs for itself.

    Raises:
        Unstackable: the network as a whole is one.
    """
    needed = {
        path
        for path, module in model.named_modules(remove_duplicate=False)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if id(tensor) in changing
    }
    drawing = {path for path, call in calls.items() if call.draws}
    needed |= {path for path in drawing if not any(o.startswith(f"{path}.") for o in drawing)}
    found = set()
    for path in needed:
        place = path
        while place and (place not in calls or not calls[place].by_rows):
            place = place.rpartition(".")[0]
        if not place:
            raise Unstackable(f"{path!r} is part of what the network itself computes")
        found.add(place)
    return sorted(
        path for path in found if not any(path.startswith(f"{other}.") for other in found)
    )


def _stack(
    model: nn.Module,
    paths: Sequence[str],
    calls: dict[str, _Call],
    tensors: tuple[Sequence[nn.Parameter], set[int]],
    trials: int,
) -> StackedModel:
    """Put modules of all trials into `model`, in the place of those at `paths`."""
    trainable, changing = tensors
    originals = [model.get_submodule(path) for path in paths]
    graph = without_graph(model)
    held = (*model.parameters(), *model.buffers())
    shared = {id(tensor): tensor for tensor in held if id(tensor) not in changing}
    copies: list[dict[int, Any]] = []
    made: list[list[nn.Module]] = [[original] for original in originals]
    for _ in range(trials - 1):
        memo: dict[int, Any] = {**graph, **shared}
        for own, module in zip(made, copy.deepcopy(originals, memo), strict=True):
            own.append(module)
        copies.append(memo)
    places = {}
    for path, own in zip(paths, made, strict=True):
        draws = any(call.draws for at, call in calls.items() if f"{at}.".startswith(f"{path}."))
        places[path] = Abreast(own, draws)
        _put(model, path, places[path])
    return StackedModel(model, model, places, copies, list(trainable))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace what is at `path`; all in `module` stays in the mode in which it is."""
    modes = [inner.training for inner in module.modules()]
    surgery.replace(model, path, module)
    for inner, mode in zip(module.modules(), modes, strict=True):
        inner.training = mode


def _take_apart(model: nn.Module, stack: StackedModel) -> None:
    """Leave the modules of the first trial in their places."""
    for path, place in stack.places.items():
        _put(model, path, place.own[0])


def _try(
    twin: nn.Module,
    paths: Sequence[str],
    calls: dict[str, _Call],
    tensors: tuple[Sequence[nn.Parameter], set[int]],
    images: Any,
    given: tuple[Prefix | None, Compute],
) -> None:
    """Let two trials with different tensors compute in `twin`, a copy, and each alone.

    Raises:
        Unstackable: outputs or gradients differ by more than rounding.
    """
    own, moved = tensors
    prefix, compute = given
    stack = _stack(twin, paths, calls, (own, moved), 2)
    stack.match_modes()
    with torch.no_grad():
        for parameter in stack.parameters(1):
            noise = torch.randn_like(parameter)
            parameter.add_(noise * CHANGE * (parameter.abs().mean() + CHANGE))
    state = torch.get_rng_state()
    both = _computed(_called(twin, prefix), _twice(images), compute)
    halves = both.chunk(2)
    weight = torch.randn(halves[0].shape).to(both.device)
    torch.autograd.backward([(half * weight).sum() for half in halves])
    found = [[p.grad for p in stack.parameters(trial)] for trial in range(2)]
    values = [[p.detach().clone() for p in stack.parameters(trial)] for trial in range(2)]
    _take_apart(twin, stack)
    for trial in range(2):
        with torch.no_grad():
            for parameter, value in zip(own, values[trial], strict=True):
                parameter.copy_(value)
                parameter.grad = None
        torch.set_rng_state(state)
        alone = _computed(_called(twin, prefix), images, compute)
        (alone * weight).sum().backward()
        _compare([alone.detach()], [halves[trial].detach()], compute)
        _compare([p.grad for p in own], found[trial], compute)


def _computed(called: nn.Module, images: Any, compute: Compute) -> Tensor:
    with autocast(compute), torch.enable_grad():
        outputs: Tensor = called(images)
    return outputs.float()


def _twice(images: Any) -> Any:
    if isinstance(images, Activations):
        beside = None if images.images is None else _twice(images.images)
        return Activations(_twice(images.values), beside)
    return torch.cat([images] * 2)


def _compare(
    expected: Sequence[Tensor | None], found: Sequence[Tensor | None], compute: Compute
) -> None:
    """Raise `Unstackable` where tensors (...) differ by more than rounding, or one is missing."""
    tolerance = TOLERANCE.get(compute.dtype, 0.05)
    if any((one is None) != (other is None) for one, other in zip(expected, found, strict=True)):
        raise Unstackable("a tensor gets a gradient by itself alone")
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a is not None]
    most = max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0)
    for one, other in pairs:
        if other is None or not bool(((one - other).abs() <= tolerance * max(most, 1e-3)).all()):
            raise Unstackable("a trial among others gets other numbers than by itself")
