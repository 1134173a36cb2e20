"""The skeleton of a traced backbone: its residual blocks, their order, stages and layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from peftbench.backbones.inference.trace import Call, Trace, Use

LEAST_SHARE = 0.02  # of the parameters of all blocks that a kind of block has, else it is a detail
LARGEST_SHARE = 0.4  # of the backbone that a block may have which holds other blocks


@dataclass(frozen=True)
class SeenBlock:
    """One residual block of the stream, or one of a series that some have no sum of."""

    path: str
    call: Call
    depth: int
    stage: int
    stream: frozenset[int]  # values of the stream that its branches read
    sums: bool  # whether what it gives is a sum of the stream and a branch


@dataclass(frozen=True)
class Structure:
    """What a trace shows of a backbone as a whole."""

    blocks: tuple[SeenBlock, ...]
    heads: tuple[str, ...]  # paths of the classifiers

    def of(self, call: Call) -> SeenBlock | None:
        """The block in which a call lies."""
        paths = {id(block.call): block for block in self.blocks}
        return next((paths[id(c)] for c in call.inside() if id(c) in paths), None)


def structure(model: nn.Module, trace: Trace, heads: tuple[str, ...]) -> Structure:
    """The blocks of a traced model, in the order in which they are called."""
    chosen = _chosen(model, trace, heads)
    calls = [call for call in _first_calls(trace) if call.path in chosen]
    blocks: list[SeenBlock] = []
    stage, last = -1, None
    for depth, call in enumerate(calls):
        key = (_resolution(call), _stage_of(call.path))
        if key != last:
            stage, last = stage + 1, key
        sums = [s for s in trace.sums if s.call is call or _directly_in(s.call, call)]
        stream = {call.reads, *(s.gives for s in sums)} - {0}
        gives = call.gives in {s.gives for s in sums}
        blocks.append(SeenBlock(call.path, call, depth, stage, frozenset(stream), gives))
    return Structure(tuple(blocks), heads)


def pattern(path: str) -> str:
    """A path with * for each number in it: blocks of one series have the same."""
    return ".".join(re.sub(r"\d+$", "*", name) for name in path.split("."))


def is_inside(path: str, outer: str) -> bool:
    """Whether a module lies inside another one, or is it."""
    return f"{path}.".startswith(f"{outer}.") if outer else True


def in_any(path: str, outer: Iterable[str]) -> bool:
    """Whether a module lies inside one of others, or is one of them."""
    return any(is_inside(path, one) for one in outer)


def layers_in(trace: Trace, call: Call) -> list[Use]:
    """The first application of each matrix of weights inside a call, in order."""
    seen: dict[str, Use] = {}
    for use in trace.uses:
        if any(c is call for c in use.call.inside()):
            seen.setdefault(use.path, use)
    return list(seen.values())


def _first_calls(trace: Trace) -> Iterator[Call]:
    seen: set[str] = set()
    for call in trace.calls:
        if call.path not in seen:
            seen.add(call.path)
            yield call


def _chosen(model: nn.Module, trace: Trace, heads: tuple[str, ...]) -> set[str]:
    """Paths of the blocks."""
    called = {call.path for call in trace.calls}
    candidates = _outermost(model, _summing(model, trace, heads))
    if not candidates:
        return _repeated(model, called, heads)
    numbered = {path for path in candidates if "*" in pattern(path)}
    candidates = _with_siblings(model, numbered or candidates, called, heads)
    candidates = _promoted(model, candidates, called)
    return _without_details(model, candidates)


def _summing(model: nn.Module, trace: Trace, heads: tuple[str, ...]) -> set[str]:
    """Modules in whose own code the stream and a branch are summed."""
    found = set()
    for one in trace.sums:
        if len(one.shape) < 3:
            continue
        for call in one.call.inside():
            module = model.get_submodule(call.path)
            if not call.path or in_any(call.path, heads):
                break
            if _matrices(module):  # else a helper that sums for another one
                found.add(call.path)
                break
    return found


def _outermost(model: nn.Module, paths: set[str]) -> set[str]:
    """Of modules inside each other the outer one, unless it is a good part of the backbone."""
    total = _size(model)
    for path in sorted(paths, key=len):
        nested = [p for p in paths if p != path and is_inside(p, path)]
        if nested and _size(model.get_submodule(path)) > LARGEST_SHARE * total:
            paths = paths - {path}
    return {p for p in paths if not any(o != p and is_inside(p, o) for o in paths)}


def _with_siblings(
    model: nn.Module, paths: set[str], called: set[str], heads: tuple[str, ...]
) -> set[str]:
    """Also modules in the same numbered places that sum nothing, as where a stage begins."""
    patterns = {pattern(p) for p in paths if "*" in pattern(p)}
    more = set()
    for path, module in model.named_modules():
        if (
            pattern(path) in patterns
            and path in called
            and any(True for _ in module.children())
            and _matrices(module)
            and not in_any(path, heads)
            and not any(is_inside(p, path) or is_inside(path, p) for p in paths)
        ):
            more.add(path)
    return paths | more


def _promoted(model: nn.Module, paths: set[str], called: set[str]) -> set[str]:
    """Blocks that are one link of a sequence with layers behind them stand for the sequence."""
    parents = {p: p.rpartition(".")[0] for p in paths}
    held = Counter(parents.values())
    series = {parent for parent in held if type(model.get_submodule(parent)) is nn.Sequential}
    lone = {
        parent
        for parent in series & called
        if held[parent] == 1 and re.search(r"\d$", parent) and "." in parent
    }
    if len(lone) < 2 or lone != set(parents.values()):
        return paths
    longer = [
        p
        for p in lone
        if _matrices(model.get_submodule(p))
        > sum(_matrices(model.get_submodule(c)) for c in paths if is_inside(c, p))
    ]
    return lone if len(longer) == len(lone) else paths


def _without_details(model: nn.Module, paths: set[str]) -> set[str]:
    """Without kinds of blocks that are a small part of all, as sums of positions are."""
    sizes: Counter[str] = Counter()
    for path in paths:
        sizes[pattern(path)] += _size(model.get_submodule(path))
    total = sum(sizes.values())
    kept = {p for p in paths if sizes[pattern(p)] >= LEAST_SHARE * total}
    return kept


def _repeated(model: nn.Module, called: set[str], heads: tuple[str, ...]) -> set[str]:
    """In a net without sums: the outermost modules of classes that come three times or more."""
    modules = {
        path: module
        for path, module in model.named_modules()
        if path in called
        and not in_any(path, heads)
        and any(True for _ in module.children())
        and type(module) is not nn.Sequential
        and _matrices(module) > 1
    }
    kinds = Counter(type(module) for module in modules.values())
    often = {path for path, module in modules.items() if kinds[type(module)] >= 3}
    return {p for p in often if not any(o != p and is_inside(p, o) for o in often)}


def _directly_in(call: Call, block: Call) -> bool:
    """Whether a call is of a helper without layers right inside that of a block."""
    return call.parent is block


def _resolution(call: Call) -> tuple[int, ...]:
    """Sizes of what a block gives, without the batch and the channels."""
    shape = () if call.result is None else tuple(call.result.shape)
    if len(shape) == 3:
        return shape[1:2]
    return shape[2:] if len(shape) == 4 and shape[2] == shape[3] else shape[1:3]


def _stage_of(path: str) -> str:
    """What a path says of the stage: the name up to its first number, where it has two."""
    names = path.split(".")
    numbered = [i for i, name in enumerate(names) if re.search(r"\d$", name)]
    return ".".join(names[: numbered[0] + 1]) if len(numbered) > 1 else ""


def _matrices(module: nn.Module) -> int:
    return sum(p.ndim >= 2 for p in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
