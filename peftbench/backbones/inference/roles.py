"""What each layer of a traced backbone does: attention, MLP, norm, convolution, stem, ..."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from peftbench.backbones.anatomy import STEM, Kind, Role
from peftbench.backbones.inference.flow import Flow, Through
from peftbench.backbones.inference.structure import (
    SeenBlock,
    Structure,
    in_any,
    is_inside,
    layers_in,
)
from peftbench.backbones.inference.trace import Call, SeenProduct, Trace, Use
from peftbench.backbones.kinds import kind_of


@dataclass(frozen=True)
class SeenSite:
    """A site as the trace shows it, before it is confirmed."""

    path: str
    role: Role
    depth: int
    stage: int
    why: str  # what in the trace says so


@dataclass(frozen=True)
class SeenAttention:
    """The projections of one attention, and which operands of its products each one feeds."""

    block: SeenBlock
    entering: tuple[Use, ...]
    leaving: Use | None
    products: tuple[SeenProduct, ...]


def found(model: nn.Module, trace: Trace, skeleton: Structure) -> list[SeenSite]:
    """All sites that the trace shows, in the order of depth."""
    sites = list(_stem(model, trace, skeleton))
    attentions = [a for block in skeleton.blocks if (a := attention(model, trace, block))]
    by_block = {a.block.path: a for a in attentions}
    pairs = {block.path: _pairs(model, trace, block, by_block) for block in skeleton.blocks}
    # a few pairs of 1 x 1 convolutions in a convolutional net are no MLPs of its blocks
    often = 2 * sum(bool(p) for p in pairs.values()) >= len(skeleton.blocks)
    for block in skeleton.blocks:
        kept = [p for p in pairs[block.path] if often or _is_linear(model, p[0].path)]
        sites += _between(model, trace, skeleton, block)
        sites.append(SeenSite(block.path, Role.BLOCK, block.depth, block.stage, "residual sum"))
        sites += _inside(model, trace, block, by_block.get(block.path), kept)
    if not skeleton.blocks:
        sites += _without_blocks(model, trace, skeleton)
    sites += _after(model, trace, skeleton)
    unique: dict[tuple[str, Role], SeenSite] = {}
    for one in sites:  # several blocks may share a module
        unique.setdefault((one.path, one.role), one)
    return list(unique.values())


def attention(model: nn.Module, trace: Trace, block: SeenBlock) -> SeenAttention | None:
    """The attention of a block: products of two tensors that layers of the block made."""
    uses = layers_in(trace, block.call)
    own = {use.path: use for use in uses if _is_dense(model, use)}
    products = [p for p in trace.products if any(c is block.call for c in p.call.inside())]
    entering: dict[str, Use] = {}
    for product in products:
        for source in product.sources:
            for path in feeding(source, Through.PRODUCT | Through.SUM):
                if path in own and not _is_mixed(own[path]):  # as layers that mix heads
                    entering[path] = own[path]
    if not entering:
        return None
    leaving = next(
        (
            use
            for use in own.values()
            if use.order > products[0].order
            and use.path not in entering
            and any(
                path in entering and through & Through.PRODUCT and not through & Through.SUM
                for path, through in use.source.dense.items()
            )
        ),
        None,
    )
    return SeenAttention(block, tuple(entering.values()), leaving, tuple(products))


def _is_mixed(use: Use) -> bool:
    """Whether a layer reads a product of its own branch."""
    passed = use.source.dense.values()
    return any(t & Through.PRODUCT and not t & Through.SUM for t in passed)


def feeding(source: Flow, without: Through) -> list[str]:
    """Layers that a tensor depends on, through nothing that `without` names."""
    return [path for path, through in source.dense.items() if not through & without]


def _pairs(
    model: nn.Module, trace: Trace, block: SeenBlock, attentions: dict[str, SeenAttention]
) -> list[tuple[Use, Use]]:
    """Two layers with an activation between, the first of which widens and the second returns."""
    uses = [use for use in layers_in(trace, block.call) if _is_dense(model, use)]
    known = attentions.get(block.path)
    taken = set()
    if known is not None:
        taken = {use.path for use in known.entering}
        taken |= {known.leaving.path} if known.leaving else set()
    by_path = {use.path: use for use in uses if use.path not in taken}
    pairs = []
    for second in by_path.values():
        linear = _is_linear(model, second.path)
        sources = second.source.dense if linear else second.source.near
        first = {
            path: through
            for path, through in sources.items()
            if path in by_path
            and not through & (Through.PRODUCT | Through.SUM)
            and _is_linear(model, path) == linear
        }
        if not any(through & Through.ACTIVATION for through in first.values()):
            continue
        pooled = second.given.shape[2:] != block.call.shape[2:] and 1 in second.given.shape[2:]
        if not linear and pooled:  # a gate, not an MLP
            continue
        for path in first:
            one = by_path[path]
            returns = _fan_in(model, path) == _width(model, second.path)
            widens = _fan_in(model, second.path) >= _fan_in(model, path)
            if returns and (widens or _mixes_tokens(one, block)):
                pairs.append((one, second))
    return pairs


def _inside(
    model: nn.Module,
    trace: Trace,
    block: SeenBlock,
    attention: SeenAttention | None,
    pairs: list[tuple[Use, Use]],
) -> Iterator[SeenSite]:
    """The sites inside one block."""

    def site(path: str, role: Role, why: str) -> SeenSite:
        return SeenSite(path, role, block.depth, block.stage, why)

    entering = attention.entering if attention is not None else ()
    taken = {use.path for use in entering}
    heads = set(taken)
    for use in entering:
        yield site(use.path, Role.ATTN_IN, "feeds a product of activations")
    if attention is not None and attention.leaving is not None:
        taken.add(attention.leaving.path)
        yield site(attention.leaving.path, Role.ATTN_OUT, "reads what attention mixed")
    of_tokens = {first.path for first, _ in pairs if _mixes_tokens(first, block)}
    for first, second in pairs:
        roles = (Role.MLP_IN, Role.MLP_OUT)
        if first.path in of_tokens:
            roles = (Role.TOKEN_MIX_IN, Role.TOKEN_MIX_OUT)
        for use, role in zip((first, second), roles, strict=True):
            if use.path not in taken:
                taken.add(use.path)
                yield site(use.path, role, "widens, activates and returns")
    for use in layers_in(trace, block.call):
        module = model.get_submodule(use.path)
        if use.path not in taken and isinstance(module, nn.Conv2d):
            yield site(use.path, _role_of(module), "convolution")
    for call in _norms(model, trace, block.call):
        if not _is_of_heads(model, call, heads):
            yield site(call.path, Role.NORM, "norm")
    of_channels = [pair for pair in pairs if pair[0].path not in of_tokens]
    yield from _entries(model, trace, block, entering, of_channels)


def _role_of(conv: nn.Conv2d) -> Role:
    return Role.POINT_CONV if conv.kernel_size == (1, 1) else Role.SPATIAL_CONV


def _entries(
    model: nn.Module,
    trace: Trace,
    block: SeenBlock,
    entering: Iterable[Use],
    pairs: list[tuple[Use, Use]],
) -> Iterator[SeenSite]:
    """The modules through which the branches of a block read the stream."""
    result = block.call.result
    if not block.sums or not block.call.single or result is None:
        return
    if tuple(result.shape) != block.call.shape:
        return  # it changes the size of the stream, which no change can be carried through
    taken: set[str] = set()
    for role, uses in (
        (Role.ATTN_ENTRY, list(entering)),
        (Role.MLP_ENTRY, [first for first, _ in pairs]),
    ):
        if not uses:
            continue
        call = _entry(model, trace, block, min(uses, key=lambda use: use.order), role)
        if call is not None and call.path not in taken and _same_layout(call, block.call):
            taken.add(call.path)
            yield SeenSite(call.path, role, block.depth, block.stage, "reads the stream")


def _entry(model: nn.Module, trace: Trace, block: SeenBlock, use: Use, role: Role) -> Call | None:
    """What reads the stream for the branch of a layer: a norm, else (MLP) what holds the layer."""
    readers = [
        call
        for call in trace.calls
        if call.reads in block.stream
        and call.start < use.order
        and call.first
        and call.single
        and call is not block.call
        and any(c is block.call for c in call.inside())
    ]
    if not readers:
        return None
    latest = readers[-1].reads  # the stream as it was last read in front of the layer
    readers = [call for call in readers if call.reads == latest]
    norms = [c for c in readers if kind_of(model.get_submodule(c.path)) is Kind.NORM]
    if norms:
        return norms[-1] if _leads_to(norms[-1], use) else None
    if role is Role.ATTN_ENTRY:
        return None
    holding = [c for c in readers if any(around is c for around in use.call.inside())]
    if holding:
        return holding[0]
    layers = [c for c in readers if c.path in use.source.near]
    return layers[0] if len(layers) == 1 else None


def _leads_to(norm: Call, use: Use) -> bool:
    """Whether a layer reads no branch that began before a norm was called."""
    return norm.end < use.order


def _same_layout(call: Call, block: Call) -> bool:
    """Whether an entry sees the stream as its block does, or with its positions in one row."""
    if call.shape == block.shape:
        return True
    one, other = call.given, block.given
    assert one is not None and other is not None
    return (
        one.numel() == other.numel()
        and len(call.shape) == 3
        and (call.shape[-1] == block.shape[-1] and call.shape[0] == block.shape[0])
    )


def _stem(model: nn.Module, trace: Trace, skeleton: Structure) -> Iterator[SeenSite]:
    """What reads the image, and the norms in front of the first block."""
    first = skeleton.blocks[0].call.start if skeleton.blocks else None
    uses = [use for use in trace.uses if first is None or use.order < first]
    reading = [use for use in uses if not use.source.near and not in_any(use.path, skeleton.heads)]
    for path in dict.fromkeys(use.path for use in reading[:1]):
        yield SeenSite(path, Role.EMBED, STEM, 0, "reads the image")
    if first is None:
        return
    seen = set()
    for call in trace.calls:
        if call.start < first and call.path not in seen and _is_norm(model, call):
            seen.add(call.path)
            yield SeenSite(call.path, Role.NORM, STEM, 0, "norm in front of the blocks")


def _between(
    model: nn.Module, trace: Trace, skeleton: Structure, block: SeenBlock
) -> Iterator[SeenSite]:
    """Modules called since the block before that change the size of the stream."""
    if not block.depth:
        return
    before = skeleton.blocks[block.depth - 1].call
    yield from (
        SeenSite(path, role, block.depth, block.stage, why)
        for call in _loose(model, trace, skeleton, before.end, block.call.start)
        if call.result is not None and tuple(call.result.shape) != call.shape
        for path, role, why in _transition(model, trace, call)
    )


def _transition(model: nn.Module, trace: Trace, call: Call) -> Iterator[tuple[str, Role, str]]:
    yield call.path, Role.TRANSITION, "changes the size between blocks"
    for norm in _norms(model, trace, call):
        yield norm.path, Role.TRANSITION_NORM, "norm between stages"
    for use in layers_in(trace, call):
        if isinstance(model.get_submodule(use.path), nn.Conv2d):
            yield use.path, Role.TRANSITION_CONV, "convolution between stages"


def _after(model: nn.Module, trace: Trace, skeleton: Structure) -> Iterator[SeenSite]:
    """What lies between the last block and the classifier."""
    if not skeleton.blocks:
        return
    last = skeleton.blocks[-1]
    for call in _loose(model, trace, skeleton, last.call.end, None):
        yield SeenSite(call.path, Role.AFTER, last.depth + 1, last.stage, "behind the last block")


def _without_blocks(model: nn.Module, trace: Trace, skeleton: Structure) -> Iterator[SeenSite]:
    """Of a plain chain of layers: its convolutions, numbered as they are called."""
    seen = {use.path for use in trace.uses if not use.source.near}
    depth = 0
    for use in trace.uses:
        module = model.get_submodule(use.path)
        if use.path in seen or in_any(use.path, skeleton.heads):
            continue
        seen.add(use.path)
        if isinstance(module, nn.Conv2d):
            yield SeenSite(use.path, _role_of(module), depth, 0, "convolution")
            depth += 1


def _loose(
    model: nn.Module, trace: Trace, skeleton: Structure, start: int, stop: int | None
) -> list[Call]:
    """The outermost calls in a span of time with parameters, that hold no block and are in none."""
    paths = [block.path for block in skeleton.blocks] + list(skeleton.heads)
    calls: list[Call] = []
    seen: set[str] = set()
    for call in trace.calls:
        if call.start < start or (stop is not None and call.end > stop) or not call.path:
            continue
        if any(is_inside(p, call.path) or is_inside(call.path, p) for p in paths):
            continue
        if any(c in calls for c in call.inside()):
            continue
        has_parameters = any(True for _ in model.get_submodule(call.path).parameters())
        if has_parameters and call.path not in seen:
            seen.add(call.path)
            calls.append(call)
    return calls


def _norms(model: nn.Module, trace: Trace, inside: Call) -> Iterator[Call]:
    """The first call of each norm with scales or shifts inside a call, on the way of the image."""
    seen = set()
    for call in trace.calls:
        within = any(c is inside for c in call.inside())
        if within and call.path not in seen and _is_norm(model, call):
            seen.add(call.path)
            yield call


def _is_norm(model: nn.Module, call: Call) -> bool:
    module = model.get_submodule(call.path)
    own = any(True for _ in module.parameters(recurse=False))
    return call.reads > 0 and own and kind_of(module) in (Kind.NORM, Kind.BATCH_NORM)


def _is_of_heads(model: nn.Module, call: Call, entering: set[str]) -> bool:
    """Whether a norm acts on each head of queries or keys, behind their projection."""
    from peftbench.backbones.inference.flow import flow_of

    flow = flow_of(call.given) if call.given is not None else None
    weight = getattr(model.get_submodule(call.path), "weight", None)
    if flow is None or weight is None or not flow.near or not set(flow.near) <= entering:
        return False
    return all(_width(model, path) != weight.shape[0] for path in flow.near)


def _mixes_tokens(first: Use, block: SeenBlock) -> bool:
    """Whether a layer reads positions and not channels."""
    shape = block.call.shape
    if len(shape) != 3 or first.given.ndim != 3:
        return False
    if shape[1] == shape[2]:  # as many positions as channels: only a transposed view tells
        return first.given.stride(-1) != 1
    return first.given.shape[-1] == shape[1]


def _is_dense(model: nn.Module, use: Use) -> bool:
    """Whether a layer mixes all channels at one place: linear, or a 1 x 1 convolution."""
    module = model.get_submodule(use.path)
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _is_linear(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path), nn.Linear)


def _width(model: nn.Module, path: str) -> int:
    return int(model.get_submodule(path).get_parameter("weight").shape[0])


def _fan_in(model: nn.Module, path: str) -> int:
    return int(model.get_submodule(path).get_parameter("weight")[0].numel())
