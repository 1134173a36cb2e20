"""Which other methods a backbone takes: advice of a refusal must not be refused itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import NoEffect, Unsupported
from peftbench.methods.base import METHODS

MOST = 3  # methods that a refusal names
# methods that do the same kind of thing, and the kinds in the order in which they are offered
KINDS = (
    ("lora", "fact_tt", "fact_tk"),
    ("adapter_plus", "adapter", "adaptformer", "repadapter", "convpass", "adapter_vpt"),
    ("vpt_deep", "vpt_shallow", "vpt_pad"),
    ("ssf", "bias", "norm"),
    ("partial", "full"),
)
_asking: ContextVar[bool] = ContextVar("_asking", default=False)


def advice(name: str, anatomy: Anatomy) -> str:
    """What to use on this backbone in place of the method `name`, as a sentence.

    Every method in it is accepted with its default hyper-parameters, the nearest in kind first.
    """
    if _asking.get():  # whoever asks wants to know whether, and not what else
        return ""
    token = _asking.set(True)
    try:
        found = [other for other in _nearest(name) if _is_accepted(other, anatomy)][:MOST]
    finally:
        _asking.reset(token)
    if not found:
        return "Use method=linear."
    *others, last = found
    return f"Use method={', '.join(others)} or {last}." if others else f"Use method={last}."


def _nearest(name: str) -> Iterator[str]:
    """Other methods, those of the same kind first, then one of each kind, then the rest."""
    own = next((kind for kind in KINDS if name in kind), ())
    yield from (other for other in own if other != name)
    others = [kind for kind in KINDS if kind is not own]
    for place in range(max(map(len, others))):
        yield from (kind[place] for kind in others if place < len(kind))


def _is_accepted(name: str, anatomy: Anatomy) -> bool:
    if name not in METHODS:
        return False
    method = METHODS[name]()
    try:
        method.check(anatomy)
    except (Unsupported, NoEffect):
        return False
    return method.expected_params(anatomy) > 0
