"""The part of a network in front of everything that trains, found by running the network.

Nobody has to say where it ends. One pass shows which modules give something that depends on no
trained tensor and draws no random number; a second one shows that what follows needs the output of
the last such module and nothing else, whatever image the network is shown. So it holds for any
architecture, and where a network is of another kind, nothing is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftbench.backbones.hashes import take_in
from peftbench.methods import surgery
from peftbench.training.activations import Activations
from peftbench.training.device import Compute, autocast, seeded

LEAST_SHARE = 0.25  # of the forward pass that must be saved; less is not worth the memory
ATTEMPTS = 8  # modules that are tried for the end of the prefix, from the last one on


@dataclass(frozen=True)
class Prefix:
    """Modules of a network that are computed once an image."""

    path: str  # of the module behind which the rest begins
    constants: dict[str, Tensor]  # path -> what a module in front of it gives for a blank image
    blank: Tensor  # (1, 3, S, S)
    needs_images: bool  # whether what follows reads the images as well
    saved: float  # share of the forward pass, by its products
    row: Tensor  # (1, ...) of the output, for its type, shape and layout
    head: str | None = None  # the one module that makes the model's outputs of it, if one does

    @property
    def row_bytes(self) -> int:
        """Of the output for one image."""
        return self.row.numel() * self.row.element_size()


class Suffix(nn.Module):
    """What follows a prefix, as a model of its activations; of images it is the whole model."""

    def __init__(self, model: nn.Module, prefix: Prefix) -> None:
        super().__init__()
        self.model = model
        self.prefix = prefix

    def forward(self, x: Activations | Tensor) -> Tensor:
        """The model's outputs (B, ...) for activations of B images, or for images (B, 3, S, S)."""
        if isinstance(x, Tensor):
            whole: Tensor = self.model(x)
            return whole
        if self.prefix.head is not None:
            made: Tensor = self.model.get_submodule(self.prefix.head)(x.values)
            return made
        given = {**self.prefix.constants, self.prefix.path: x.values}
        with surgery.standing_in(self.model, given):
            images = self.prefix.blank if x.images is None else x.images
            outputs: Tensor = self.model(images)
        return outputs


def activations_of(model: nn.Module, prefix: Prefix, images: Tensor) -> Tensor:
    """What the prefix gives for `images` (B, 3, S, S): (B, ...); what follows is not computed."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: object, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    watched = surgery.watched(model, [prefix.path], after=lambda path: stop)
    with watched, contextlib.suppress(_Reached):
        model(images)
    return found[0]


def find_prefix(
    model: nn.Module, set_mode: Callable[[], None], images: Tensor, compute: Compute
) -> Prefix | None:
    """The longest prefix of `model`; `None` where there is none that is worth its memory.

    Args:
        model: with exactly what trains requiring gradients; left as it was, in eval mode.
        set_mode: puts what trains in train mode.
        images: (2 or more, 3, S, S) normalised images.
        compute: the arithmetic in which the prefix will be used.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        set_mode()
        with seeded(0, compute), autocast(compute):
            root = _calls(model, images)
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)
        model.eval()
    frozen, total = _frozen(root), max(1, root.products)
    saved = [sum(call.products for call in frozen[: end + 1]) / total for end in range(len(frozen))]
    if not frozen or saved[-1] < LEAST_SHARE:
        return None
    paths = {call.path for call in frozen}
    blank = torch.zeros_like(images[:1])
    with torch.no_grad(), autocast(compute):
        expected = model(images)
        given, constants = _outputs(model, images, paths), _outputs(model, blank, paths)
    for end in reversed(range(len(frozen))[-ATTEMPTS:]):
        if saved[end] < LEAST_SHARE:
            return None
        cut = frozen[end].path
        earlier = {call.path: constants[call.path] for call in frozen[:end]}
        for needs_images in (False, True):
            prefix = Prefix(cut, earlier, blank, needs_images, saved[end], given[cut][:1])
            if _suffices(model, prefix, given[cut], images, expected, compute):
                return _with_head(model, prefix, root, (given[cut], expected), compute)
    return None


def digest_of(model: nn.Module, prefix: Prefix) -> str:
    """SHA-256 of all that decides what a prefix gives: its modules, their settings and tensors.

    Tensors that the code between the modules reads, such as position embeddings, are taken in as
    well: all that do not train and lie in no module behind the end.
    """
    digest = hashlib.sha256()
    inside = [*prefix.constants, prefix.path]
    roots = [model.get_submodule(path) for path in inside]
    for root in roots:
        digest.update(f"{type(root).__module__} {type(root).__qualname__} {root!r}\n".encode())
        for name, tensor in root.state_dict(keep_vars=True).items():
            take_in(digest, name, tensor)
    for path in sorted({parent for own in inside for parent in _parents(own)}):
        module = model.get_submodule(path)
        digest.update(f"{type(module).__module__} {type(module).__qualname__}\n".encode())
        direct = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in sorted(direct):
            if not tensor.requires_grad:
                take_in(digest, name, tensor)
    return digest.hexdigest()


def _parents(path: str) -> list[str]:
    """Paths of the modules around one, the model itself included."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


class _Reached(Exception):
    """The end of a prefix: nothing behind it is wanted."""


@dataclass
class _Call:
    """One call of a module in a forward pass."""

    path: str
    module: nn.Module
    draws: tuple[bytes, bytes] = (b"", b"")  # states of the random generators around it
    frozen: bool = False
    products: int = 0  # of linear layers and convolutions in it
    sees_batch: bool = False  # an image's output depends on the other images of its batch
    hands_on: bool = False  # a module in it tells a later one what it read, past its output
    children: list[_Call] = field(default_factory=list)


def _calls(model: nn.Module, images: Tensor) -> _Call:
    """The calls of one pass in train mode, by what called them."""
    root = _Call("", model)
    stack = [root]

    def begin(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object) -> None:
            call = _Call(path, module, (_drawn(images.device), b""))
            stack[-1].children.append(call)
            stack.append(call)

        return hook

    def end(path: str) -> Callable[..., None]:
        return ended

    def ended(module: nn.Module, args: object, output: object) -> None:
        call = stack.pop()
        call.draws = (call.draws[0], _drawn(images.device))
        call.frozen = isinstance(output, Tensor) and not output.requires_grad
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and isinstance(output, Tensor):
            call.products += output.numel() * weight[0].numel()
        stack[-1].products += call.products
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            call.sees_batch = True
        stack[-1].sees_batch |= call.sees_batch
        call.hands_on |= _hands_on(module)
        stack[-1].hands_on |= call.hands_on

    paths = [path for path, _ in model.named_modules() if path]
    with surgery.watched(model, paths, begin, end), torch.enable_grad():
        model(images)
    return root


def _drawn(device: torch.device) -> bytes:
    """What changes when a random number is drawn."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return b"".join(state.numpy().tobytes() for state in states)


def _hands_on(module: nn.Module) -> bool:
    """Whether later modules see what `module` read; `methods.layers.handing` says how."""
    return bool(getattr(module, "hands_on", False))


def _frozen(root: _Call) -> list[_Call]:
    """The largest calls whose outputs no trained tensor touches, each of a module called once.

    They end where a module hands on what it read: one that stands in for it reads nothing, which
    does not show while what is handed on is multiplied by zero.
    """
    counts: dict[int, int] = {}
    todo = [root]
    while todo:
        call = todo.pop()
        counts[id(call.module)] = counts.get(id(call.module), 0) + 1
        todo += call.children
    start = root.children[0].draws[0] if root.children else b""

    def walk(call: _Call) -> Iterator[_Call]:
        for child in call.children:
            once = counts[id(child.module)] == 1
            draws_nothing = child.draws[0] == child.draws[1] == start
            if _hands_on(child.module):
                yield child
            elif child.hands_on:
                yield from walk(child)
            elif child.frozen and once and draws_nothing and not child.sees_batch:
                yield child
            else:
                yield from walk(child)

    return list(itertools.takewhile(lambda call: not _hands_on(call.module), walk(root)))


def _outputs(model: nn.Module, images: Tensor, paths: set[str]) -> dict[str, Tensor]:
    """Outputs of the modules at `paths` for `images`."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, args, output: found.update({path: output})

    with surgery.watched(model, sorted(paths), after=keep):
        model(images)
    return {path: output.clone() for path, output in found.items()}


def _suffices(
    model: nn.Module,
    prefix: Prefix,
    values: Tensor,
    images: Tensor,
    expected: Tensor,
    compute: Compute,
) -> bool:
    """Whether what follows a prefix gives the model's own outputs from the activations alone.

    Bit for bit, although it is shown a blank image.
    """
    given = Activations(values, images if prefix.needs_images else None)
    try:
        with torch.no_grad(), autocast(compute):
            outputs = Suffix(model, prefix)(given)
    except Exception:  # of a network whose code asks more of what stands in than its type
        return False
    return outputs.shape == expected.shape and torch.equal(outputs, expected)


def _with_head(
    model: nn.Module,
    prefix: Prefix,
    root: _Call,
    known: tuple[Tensor, Tensor],
    compute: Compute,
) -> Prefix:
    """The prefix, with the one module that makes the outputs of its activation, if one does.

    known: activations (B, ...) and the model's outputs (B, ...) for them.
    """
    call, (given, expected) = root, known
    while not prefix.needs_images and any(not child.frozen for child in call.children):
        call = next(child for child in call.children if not child.frozen)
        head = dataclasses.replace(prefix, head=call.path)
        if _suffices(model, head, given, expected, expected, compute):
            return head
    return prefix
