"""Experiments that an inferred site must pass, on a copy of the backbone with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from peftbench.backbones.copies import full_copy
from peftbench.backbones.inference.flow import Flow, Through, flow_of
from peftbench.backbones.inference.roles import SeenAttention, feeding
from peftbench.backbones.inference.trace import Trace, Use

TOLERANCE = 1e-3  # of what a folded change and one on the path give, relative, in float32
NOISE = 1e-6  # of the largest value: what rounding leaves of nothing, in float32
MORE_TOKENS = (3, 5)  # how many are put in; with one of them their number is no square


def randomised(model: nn.Module, image: Tensor, seed: int = 0) -> nn.Module:
    """A copy of `model` on the CPU in float32 in which no weight is zero and no signal dies.

    Fresh models of timm are zero in places, and pretrained ones nearly so, which would hide what a
    site does. Magnitudes are uniform in [0.5, 1.5) with a random sign, times 1/sqrt(fan-in) for
    matrices; running statistics are those of `image` (B, C, H, W).

    Raises:
        whatever an attribute of somebody's class raises when it is copied.
    """
    twin = full_copy(model).to("cpu", torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            magnitude = torch.rand(parameter.shape, generator=generator) + 0.5
            sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(magnitude * sign * max(fan_in, 1) ** -0.5)
            parameter.requires_grad_(True)
        for module in twin.modules():
            weight = getattr(module, "weight", None)
            if "Norm" in type(module).__name__ and isinstance(weight, Tensor):
                weight.abs_().add_(0.5)  # near one, as norms are: half of the channels die else
        norms = [
            m for m in twin.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        ]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        if norms:
            twin(image)
        for norm in norms:
            norm.eval()
            assert norm.running_var is not None
            norm.running_var.clamp_(min=1e-3)
    return twin


def effects(model: nn.Module, trace: Trace, outputs: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whether a change of what each module at a path gives changes what the model gives.

    One backward pass speaks for all; where it gives zero, as behind an activation that saturates,
    noise is put there and the model runs again.
    """
    assert trace.output is not None and trace.image is not None
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(trace.output.shape, generator=generator)
    wanted = {path: tensor for path, tensor in outputs.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(
        (trace.output * weight).sum(), list(wanted.values()), allow_unused=True, retain_graph=True
    )
    known = dict.fromkeys(outputs, False)
    for path, gradient in zip(wanted, gradients, strict=True):
        known[path] = gradient is not None and bool((gradient.abs() > 0).any())
    for path in [path for path, changes in known.items() if not changes]:
        known[path] = _noise_matters(model, path, trace)
    return known


def idle_rows(model: nn.Module, trace: Trace, use: Use, channels_last: bool) -> int:
    """How many channels of what a layer gives change nothing in what the model gives.

    Queries and keys do so where attention sees equal tokens, as behind a norm of one channel.
    """
    assert trace.output is not None
    if not use.own or not use.result.requires_grad:
        return 0
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(trace.output.shape, generator=generator)
    (gradient,) = torch.autograd.grad(
        (trace.output * weight).sum(), [use.result], allow_unused=True, retain_graph=True
    )
    if gradient is None:
        return 0
    axis = -1 if channels_last else 1
    largest = gradient.abs().movedim(axis, -1).flatten(0, -2).amax(0)
    rows = largest <= NOISE * largest.max()
    if not bool(rows.any()) or _noise_matters(model, use.path, trace, rows, axis):
        return 0
    return int(rows.sum())


@torch.no_grad()
def _noise_matters(
    model: nn.Module, path: str, trace: Trace, rows: Tensor | None = None, axis: int = -1
) -> bool:
    """Whether noise in what a module gives changes the output; in some of its rows, if told."""
    assert trace.image is not None and trace.output is not None

    def disturb(module: nn.Module, args: object, output: object) -> object:
        if not isinstance(output, Tensor):
            return output
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(output.shape, generator=generator)
        if rows is not None:
            noise = (noise.movedim(axis, -1) * rows).movedim(-1, axis)
        return output + noise * output.std().clamp(min=1e-3)

    handle = model.get_submodule(path).register_forward_hook(disturb)
    try:
        changed = model(trace.image)
    finally:
        handle.remove()
    least = 0.0 if rows is None else NOISE * float(trace.output.abs().max())
    return bool((changed - trace.output).abs().max() > least)


@torch.no_grad()
def folds(module: nn.Module, use: Use) -> bool:
    """Whether a change of a weight gives what the same change gives beside the layer.

    So it is where a layer is linear in its weight; one that standardises its kernel is not.
    """
    weight = module.get_parameter("weight")
    bias = getattr(module, "bias", None)
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(weight.shape[0], 2, generator=generator)
    right = torch.randn(2, weight[0].numel(), generator=generator) / weight[0].numel() ** 0.5
    change = (left @ right).view_as(weight)
    given = use.given.detach()
    inside = functional_call(module, {"weight": weight + change}, (given,))
    alone = {"weight": change}
    if isinstance(bias, Tensor):
        alone["bias"] = torch.zeros_like(bias)
    beside = functional_call(module, {}, (given,)) + functional_call(module, alone, (given,))
    return bool((inside - beside).abs().max() <= TOLERANCE * inside.abs().max())


def parts(attention: SeenAttention, use: Use, channels_last: bool) -> tuple[str, ...]:
    """Names of the equal row blocks of a projection, by which rows queries, keys and values need.

    Empty where they are no such blocks, as where heads lie beside each other.
    """
    operands = _operands(attention)
    if operands is None or use.result.ndim < 2:
        return ()
    rows = {}
    for name, tensor in operands.items():
        if use.path in feeding(_flow(tensor), Through.PRODUCT | Through.SUM) or use.path in (
            _flow(tensor).near
        ):
            read = _rows(tensor, use.result, -1 if channels_last else 1)
            if read is not None and len(read):
                rows[name] = read
    width = use.result.shape[-1 if channels_last else 1]
    names = sorted(rows, key=lambda name: int(rows[name][0]))
    if not names or width % len(names):
        return ()
    size = width // len(names)
    for index, name in enumerate(names):
        if rows[name].tolist() != list(range(index * size, (index + 1) * size)):
            return ()
    return tuple(names)


def _operands(attention: SeenAttention) -> dict[str, Tensor] | None:
    """Queries, keys and values, where attention is softmax(q k) v."""
    first = attention.products[0]
    if len(first.operands) == 3:
        return dict(zip("qkv", first.operands, strict=True))
    if len(attention.products) < 2 or len(first.operands) != 2:
        return None
    if any(_is_mixed(source.dense.values()) for source in first.sources):
        return None
    paths = {use.path for use in attention.entering}
    for second in attention.products[1:]:
        feeds = [
            bool(paths & set(feeding(source, Through.PRODUCT | Through.SUM)))
            for source in second.sources
        ]
        if sorted(feeds) != [False, True]:
            continue
        passed = list(second.sources[feeds.index(False)].dense.values())
        if _is_mixed(passed) and not any(through & Through.ACTIVATION for through in passed):
            return None  # the products are not of attention weights: no softmax between
        values = second.operands[feeds.index(True)]
        return {"q": first.operands[0], "k": first.operands[1], "v": values}
    return None


def _is_mixed(passed: Iterable[Through]) -> bool:
    return any(through & Through.PRODUCT for through in passed)


def _flow(tensor: Tensor) -> Flow:
    return flow_of(tensor) or Flow(value=0)


def _rows(tensor: Tensor, result: Tensor, axis: int) -> Tensor | None:
    """Which channels, along `axis`, of a layer's result a tensor depends on."""
    if not tensor.requires_grad:
        return None
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(tensor.shape, generator=generator)
    (gradient,) = torch.autograd.grad(
        (tensor * weight).sum(), [result], allow_unused=True, retain_graph=True
    )
    if gradient is None:
        return None
    return gradient.abs().movedim(axis, -1).flatten(0, -2).amax(0).nonzero().flatten()


@dataclass(frozen=True)
class MoreTokens:
    """Whether the blocks of a token stream take more of them, and why not."""

    accepted: bool
    reason: str = ""


@torch.no_grad()
def more_tokens(
    model: nn.Module, blocks: Sequence[str], prefix: int, image: Tensor, counted: str = ""
) -> MoreTokens:
    """Put tokens behind the first `prefix` ones in front of each block, and take them out behind.

    Args:
        blocks: paths of the blocks, whose first argument and result are tokens (B, N, C).
        image: (B, C, H, W).
        counted: attribute of modules in blocks that is raised by as many; see `Tokens`.
    """
    counting = [
        part
        for path in blocks
        for part in model.get_submodule(path).modules()
        if counted and isinstance(vars(part).get(counted), int)
    ]
    if counted and not counting:
        return MoreTokens(False, f"no module in a block has {counted}")
    for more in MORE_TOKENS:
        handles: list[RemovableHandle | _Undo] = []
        try:
            for path in blocks:
                module = model.get_submodule(path)
                handles.append(module.register_forward_pre_hook(_insert(prefix, more)))
                handles.append(module.register_forward_hook(_remove(prefix, more)))
            for part in counting:
                setattr(part, counted, getattr(part, counted) + more)
                handles.append(_Undo(part, counted, more))
            output = model(image)
        except Exception as e:  # whatever a model does with a number of tokens it does not expect
            text = (str(e).strip() or type(e).__name__).splitlines()[0]
            return MoreTokens(False, f"with {more} more a block fails ({text[:90]})")
        finally:
            for handle in handles:
                handle.remove()
        if not bool(output.isfinite().all()):
            return MoreTokens(False, f"with {more} more the output is not finite")
    return MoreTokens(True)


@dataclass(frozen=True)
class _Undo:
    """Takes back what was added to an attribute, as handles of hooks take hooks away."""

    part: nn.Module
    name: str
    more: int

    def remove(self) -> None:
        setattr(self.part, self.name, getattr(self.part, self.name) - self.more)


def _insert(prefix: int, more: int) -> Callable[..., tuple[Tensor, ...]]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        new = x[:, :1].expand(-1, more, -1)
        return (torch.cat((x[:, :prefix], new, x[:, prefix:]), 1), *rest)

    return hook


def _remove(prefix: int, more: int) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return torch.cat((output[:, :prefix], output[:, prefix + more :]), 1)

    return hook


@torch.no_grad()
def row_major(
    model: nn.Module, first: str, prefix: int, grid: tuple[int, int], image: Tensor
) -> bool:
    """Whether the tokens behind the prefix are the patches of an image, row by row.

    Single patches of `image` (B, C, H, W) are changed; the token that changes most in front of the
    first block must be theirs. Patches may see their neighbours.
    """
    rows, columns = grid
    height, width = image.shape[-2] // rows, image.shape[-1] // columns
    places = {(0, 0), (0, columns - 1), (rows // 2, columns // 3), (rows - 1, columns - 1)}
    images = [image[:1]]
    for row, column in sorted(places):
        changed = image[:1].clone()
        window = changed[
            ..., row * height : (row + 1) * height, column * width : (column + 1) * width
        ]
        window.add_(torch.randn(window.shape, generator=torch.Generator().manual_seed(5)) * 3)
        images.append(changed)
    tokens = _reading(model, first, torch.cat(images))
    if tokens is None or tokens.ndim != 3 or tokens.shape[1] != prefix + rows * columns:
        return False
    for index, (row, column) in enumerate(sorted(places), 1):
        change = (tokens[index] - tokens[0]).abs().sum(-1)[prefix:]
        if int(change.argmax()) != row * columns + column:
            return False
    return True


class _Reached(Exception):
    """A forward pass came to the module that was asked for."""


def _reading(model: nn.Module, path: str, image: Tensor) -> Tensor | None:
    """What a module reads when the model sees `image`."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[object, ...]) -> None:
        seen.extend(a for a in args[:1] if isinstance(a, Tensor))
        raise _Reached

    handle = model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        model(image)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None
