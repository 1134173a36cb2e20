"""Whether what a method added took part in training."""

from __future__ import annotations

from peftbench.errors import NoEffect
from peftbench.methods.applied import Tuned


def check_executed(tuned: Tuned) -> None:
    """Refuse a method whose tensors are counted but took no part in any forward pass.

    Raises:
        NoEffect: it is one.
    """
    added = tuned.method_params
    dead = [name for name, parameter in added.items() if parameter.grad is None]
    if added and len(dead) == len(added):
        raise NoEffect(
            f"{tuned.method.name} added {len(added)} tensors and none of them got a "
            "gradient: the backbone never executes them."
        )
    if tuned.method.card.dead_at_init:
        return
    for place in tuned.touched:
        own = [p for n, p in added.items() if n.startswith(f"{place}.") and p.requires_grad]
        if own and all(parameter.grad is None for parameter in own):
            raise NoEffect(
                f"{tuned.method.name} added {len(own)} tensors to {place!r} and none of them got a "
                "gradient: the backbone never executes them."
            )
