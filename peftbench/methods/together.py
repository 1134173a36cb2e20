"""Several methods on one backbone: what each changes, in which order they go, where sites are then.

Registers no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.backbones.copies import weightless_copy
from peftbench.errors import Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Method, StepHook
from peftbench.methods.layers.stream import StreamBlock

# under which names a module that stands in the place of another holds it
INSIDE = ("base", "block", "base_layer")
Attach = Callable[[Method, nn.Module, Anatomy], Attachment]


@dataclass(frozen=True)
class Reach:
    """What one part alone does to a backbone."""

    part: Method
    weights: frozenset[str]  # tensors of the backbone that it trains, or adds a change to
    streams: frozenset[str]  # blocks along whose stream it carries changes
    in_weights: bool  # whether some of these are changes beside a frozen layer
    depth: int  # steps to the deepest module that it replaces; 0: it replaces none
    is_around: bool  # it gives another module than the backbone
    has_objective: bool  # it minimises something of its own


def reach(part: Method, backbone: nn.Module, anatomy: Anatomy) -> Reach:
    """What `part` does, tried on a copy without weights."""
    model = weightless_copy(backbone)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    before = {name: id(module) for name, module in model.named_modules()}
    attachment = part.attach(model, anatomy, torch.Generator().manual_seed(0))
    replaced = [n for n, m in model.named_modules() if n in before and before[n] != id(m)]
    weights = {names[id(p)] for p in attachment.trainable if id(p) in names}
    modules = dict(model.named_modules())
    changed = {
        f"{path}.weight"
        for path in attachment.touched
        if path in modules and _changes_its_weight(modules[path])
    }
    blocks = [site.path for site in anatomy.where(Role.BLOCK)]
    return Reach(
        part,
        frozenset(weights | changed),
        frozenset(b for b in blocks if isinstance(model.get_submodule(b), StreamBlock)),
        bool(changed),
        max((name.count(".") + 1 for name in replaced), default=0),
        attachment.model is not model,
        attachment.objective is not None or part.card.needs_classes,
    )


def _changes_its_weight(module: nn.Module) -> bool:
    changed = isinstance(module, surgery.DeltaLayer) or hasattr(module, "base_layer")
    return changed or parametrize.is_parametrized(module, "weight")


def ordered(parts: Sequence[Method], backbone: nn.Module, anatomy: Anatomy) -> list[Method]:
    """The parts as they are attached: changes of weights, then inner modules, then outer ones.

    Raises:
        Unsupported: two of them change one weight, or both ride on one block's stream.
    """
    reaches = [reach(part, backbone, anatomy) for part in parts]
    for i, one in enumerate(reaches):
        for other in reaches[:i]:
            _check_apart(other, one, anatomy)
    reaches.sort(
        key=lambda each: (each.is_around, each.depth > 0, not each.in_weights, -each.depth)
    )
    return [each.part for each in reaches]


def _check_apart(one: Reach, other: Reach, anatomy: Anatomy) -> None:
    pair = f"{one.part.name} and {other.part.name}"
    twice = sorted(one.weights & other.weights)
    if twice:
        raise Unsupported(
            f"compose: {pair} both change {twice[0]!r} of this {anatomy.family} backbone"
            f"{f' and {len(twice) - 1} weights more' if len(twice) > 1 else ''}. Choose other "
            "parts, or others of their targets or blocks in method.settings."
        )
    shared = sorted(one.streams & other.streams)
    if shared:
        raise Unsupported(
            f"compose: {pair} both carry changes along the stream of {shared[0]!r} of this "
            f"{anatomy.family} backbone. Choose other parts, or set blocks of them in "
            "method.settings."
        )
    if one.has_objective and other.has_objective:
        raise Unsupported(
            f"compose: {pair} both minimise an objective of their own on this {anatomy.family} "
            "backbone. Choose other parts."
        )
    if one.is_around and other.is_around:
        raise Unsupported(
            f"compose: {pair} both stand around the {anatomy.family} backbone. Choose other parts."
        )


def rehearse(parts: Sequence[Method], backbone: nn.Module, anatomy: Anatomy) -> None:
    """Attach all to a copy without weights and let one image through.

    Raises:
        Unsupported: they do not stand together.
    """
    order = ordered(parts, backbone, anatomy)
    model = weightless_copy(backbone)
    generator = torch.Generator().manual_seed(0)
    done = attach(order, model, anatomy, lambda part, m, left: part.attach(m, left, generator))
    side = anatomy.image_size
    image = torch.empty(1, anatomy.channels, side, side, device="meta")
    whole = done.model.to("meta").eval()
    try:
        with torch.no_grad():
            whole(image.to(next(whole.parameters()).dtype))
    except (RuntimeError, ValueError, AssertionError) as e:
        names = ", ".join(part.name for part in parts)
        why = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
        raise Unsupported(
            f"compose: {names} do not stand together on this {anatomy.family} backbone ({why}). "
            "Choose other parts."
        ) from e


def attach(
    order: Sequence[Method], backbone: nn.Module, anatomy: Anatomy, attach_one: Attach
) -> Attachment:
    """What `attach_one` makes of each part after another, as one attachment."""
    done: list[Attachment] = []
    model = backbone
    for part in order:
        left = present(anatomy, backbone) if done else anatomy
        done.append(attach_one(part, model, left))
        model = done[-1].model
    touched = _present_names(model, done)
    regularisers = [each.regulariser for each in done if each.regulariser is not None]
    hooks = [each.after_step for each in done if each.after_step is not None]
    return Attachment(
        model,
        tuple(p for each in done for p in each.trainable),
        touched,
        train_modules=tuple(m for each in done for m in each.train_modules),
        regulariser=(lambda: torch.stack([r() for r in regularisers]).sum())
        if regularisers
        else None,
        notes=tuple(note for each in done for note in each.notes),
        fixed=tuple(t for each in done for t in each.fixed),
        frozen_modules=tuple(m for each in done for m in each.frozen_modules),
        after_step=_Hooks(tuple(hooks)) if hooks else None,
        objective=next((each.objective for each in done if each.objective is not None), None),
    )


def present(anatomy: Anatomy, model: nn.Module) -> Anatomy:
    """The anatomy with the paths that its modules have now that others stand around some.

    Where a module was replaced by one that holds it, the path leads to the new one, as a part that
    comes later wraps what stands there.
    """
    sites = tuple(replace(site, path=present_path(model, site.path)) for site in anatomy.sites)
    norms = tuple(present_path(model, path) for path in anatomy.norms)
    return replace(anatomy, sites=sites, norms=norms)


def present_path(model: nn.Module, path: str) -> str:
    """Where the module is now that was at `path`, or what stands in its place."""
    found, module = [], model
    for step in filter(None, path.split(".")):
        children = dict(module.named_children())
        while step not in children:
            inside = next(name for name in INSIDE if name in children)
            found.append(inside)
            module = children[inside]
            children = dict(module.named_children())
        found.append(step)
        module = children[step]
    return ".".join(found)


def _present_names(model: nn.Module, done: Sequence[Attachment]) -> tuple[str, ...]:
    """What the parts touched, under the names of now."""
    names = {name for name, _ in model.named_modules()}
    tensors = {name for name, _ in model.named_parameters()}
    return tuple(
        touched if touched in names or touched in tensors else _present_name(done[0].model, touched)
        for each in done
        for touched in each.touched
    )


def _present_name(model: nn.Module, name: str) -> str:
    """Of a module, or of a tensor in one."""
    parent, _, last = name.rpartition(".")
    path = present_path(model, parent)
    while True:
        module = model.get_submodule(path)
        inside = next((n for n in INSIDE if n in dict(module.named_children())), None)
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_children())
        if inside is None or last in own:
            return f"{path}.{last}"
        path = f"{path}.{inside}"


class _Hooks:
    """The step hooks of several parts as one."""

    def __init__(self, hooks: tuple[StepHook, ...]) -> None:
        self.hooks = hooks

    def __call__(self, step: int, total: int) -> None:
        for hook in self.hooks:
            hook(step, total)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): hook.state_dict() for i, hook in enumerate(self.hooks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, hook in enumerate(self.hooks):
            hook.load_state_dict(state[str(i)])
