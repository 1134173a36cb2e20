"""Tensors through timm's own converters, and which of them reached nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints import leftovers
from peftbench.backbones.classifier import prefixes_of

MOST_STRANGE = 20  # parts of a file at which a converter may stop


@dataclass(frozen=True)
class Needs:
    """What a model needs from a file."""

    tensors: Mapping[str, Tensor]  # without the classifier
    required: tuple[str, ...]  # of them, those that nothing makes anew
    head: tuple[str, ...]  # the classifier's names begin with one of them
    architecture: str

    @classmethod
    def of(cls, model: nn.Module) -> Needs:
        """Of a model whose classifier stays its own."""
        head = prefixes_of(model)
        tensors = {n: t for n, t in model.state_dict().items() if not n.startswith(head)}
        # relative position indices and attention masks are rebuilt by timm
        required = tuple(
            n for n, t in tensors.items() if t.is_floating_point() and "attn_mask" not in n
        )
        cfg = getattr(model, "pretrained_cfg", None) or {}
        name = str(cfg.get("architecture") or type(model).__name__)
        return cls(tensors, required, head, name)

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name, be it the classifier's."""
        return name in self.tensors or name.startswith(self.head)

    def filled_by(self, state: Mapping[str, Tensor]) -> bool:
        """Whether each tensor that the model needs is there in its shape."""
        return all(
            n in state and state[n].shape == self.tensors[n].shape for n in self.required
        ) and all(state[n].shape == t.shape for n, t in self.tensors.items() if n in state)


Convert = Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]]


def convert(
    state: Mapping[str, Tensor], model: nn.Module, needs: Needs | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """`state` as timm's converter renames and resizes it, and the names that reached nothing.

    A converter says nothing of what it drops. A tensor was used if what came out shares its memory
    or bears its name, or if a NaN in its place comes out somewhere.
    """
    needs = needs or Needs.of(model)
    converter = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if converter is None:
        return dict(state), [n for n in state if not needs.has(n)]
    converted, state, strange = _converted(converter, model, state, needs)
    if converted is None:
        return dict(state), [n for n in state if not needs.has(n)]
    run = functools.partial(_run, converter, model)
    places = {_place(t) for n, t in converted.items() if needs.has(n)}
    suspects = [
        n
        for n, t in state.items()
        if not (n in converted and needs.has(n) and _same_source(t, converted[n]))
        and _place(t) not in places
    ]
    strangers = {_place(t) for n, t in converted.items() if not needs.has(n)}
    plain = [n for n in suspects if _place(state[n]) in strangers or leftovers.part(n)]
    doubtful = [n for n in suspects if n not in set(plain)]
    return converted, [*strange, *plain, *_unused(run, state, doubtful, needs)]


def _converted(
    converter: Convert, model: nn.Module, state: Mapping[str, Tensor], needs: Needs
) -> tuple[dict[str, Tensor] | None, Mapping[str, Tensor], list[str]]:
    """The converter's result, what of `state` it read, and the names at which it stopped.

    A converter that looks up in the model what it finds in the file stops at the first name that
    the model lacks, such as that of a decoder, whose other tensors it would stop at too.
    """
    left, strange = dict(state), list[str]()
    for _ in range(MOST_STRANGE):
        try:
            return _tensors_of(converter(dict(left), model)), left, strange
        except KeyError as e:
            group = _strangers(e.args[0] if e.args else None, left, needs)
        except FAILURES:
            break
        if not group:
            break
        strange += group
        left = {name: tensor for name, tensor in left.items() if name not in set(group)}
    return None, state, []


def _strangers(name: object, state: Mapping[str, Tensor], needs: Needs) -> list[str]:
    """What of the file is in the part of `name`, which the model lacks; a converter may have
    renamed what follows the first dot.
    """
    if not isinstance(name, str) or needs.has(name):
        return []
    top = name.partition(".")[0]
    if any(own.partition(".")[0] == top for own in (*needs.tensors, *needs.head)):
        return [name] if name in state else []
    return [each for each in state if each.partition(".")[0] == top]


def _same_source(given: Tensor, converted: Tensor) -> bool:
    """Whether a tensor of the same name is this one, or made from it, and not another's."""
    return (
        given.shape != converted.shape
        or given.data_ptr() == converted.data_ptr()
        or not given.numel()
    )


# what a converter ends in that cannot read a file; the comparison with the model names what does
# not fit
FAILURES = (
    *(KeyError, RuntimeError, AttributeError, ValueError, IndexError, AssertionError),
    *(TypeError, ZeroDivisionError),
)


def _run(
    converter: Convert, model: nn.Module, state: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The converter's result, or None where it cannot read `state`."""
    try:
        return _tensors_of(converter(state, model))
    except FAILURES:
        return None


def _tensors_of(converted: Mapping[str, object]) -> dict[str, Tensor]:
    return {n: t for n, t in converted.items() if isinstance(t, Tensor)}


def _place(tensor: Tensor) -> tuple[int, int]:
    return (tensor.data_ptr(), tensor.numel())


def _unused(
    run: Callable[[dict[str, Tensor]], dict[str, Tensor] | None],
    state: Mapping[str, Tensor],
    suspects: Collection[str],
    needs: Needs,
) -> list[str]:
    """Those of `suspects` that change nothing of what the model takes."""

    def reached(names: Iterable[str]) -> int:
        poisoned = {n: torch.full_like(state[n], torch.nan) for n in names}
        converted = run({**state, **poisoned})
        if converted is None:
            return len(state)
        return sum(
            bool(t.isnan().any())
            for n, t in converted.items()
            if needs.has(n) and t.is_floating_point()
        )

    unused: list[str] = []
    groups: dict[str, list[str]] = {}
    for name in suspects:
        if state[name].is_floating_point():
            groups.setdefault(checkpoint.template(name), []).append(name)
        else:
            unused.append(name)
    for names in groups.values():  # a converter treats the blocks of a network alike
        count = reached(names)
        if count == 0:
            unused += names
        elif count < len(names):
            unused += [n for n in names if reached([n]) == 0]
    return unused
