"""Some residual blocks of a backbone, as the anatomy that a method sees. Registers no method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peftbench.backbones.anatomy import Anatomy, Kind, Role
from peftbench.errors import Unsupported

# between blocks, or behind them
OUTSIDE = (
    *(Role.EMBED, Role.TRANSITION, Role.TRANSITION_NORM, Role.TRANSITION_CONV),
    Role.AFTER,
)
# functions of a method that read an anatomy
READERS = (
    *("check", "rehearse", "prepare", "attach", "attach_prepared", "unmergeable"),
    *("expected_params", "stored_as", "not_identity"),
)


def within(anatomy: Anatomy, blocks: tuple[int, ...], method: str) -> Anatomy:
    """The anatomy with the sites in some blocks alone, counted from 0, or from the end with -1.

    Nothing before the first block, between blocks or behind the last is in a block. Of the norms
    those stay that are sites.

    Raises:
        Unsupported: the backbone has no such block.
    """
    depth = anatomy.depth
    absent = [block for block in blocks if not -depth <= block < depth]
    if absent:
        have = f"blocks 0 to {depth - 1}" if depth else "no known blocks"
        raise Unsupported(
            f"{method} asks for block {absent[0]}, and this {anatomy.family} backbone has {have}. "
            "Set method.blocks."
        )
    chosen = {block % depth for block in blocks}
    sites = tuple(s for s in anatomy.sites if s.depth in chosen and s.role not in OUTSIDE)
    paths = {s.path: s.num_params for s in sites if s.kind in (Kind.NORM, Kind.BATCH_NORM)}
    norms = {path: paths[path] for path in anatomy.norms if path in paths}
    return replace(
        anatomy, sites=sites, norms=tuple(norms), num_norm_params=sum(norms.values()), uncovered=()
    )


def of_chosen_blocks(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a method, with its argument `anatomy` cut down to the method's blocks.

    So a method is written for all blocks, and asks nowhere which of them were chosen. An anatomy
    that was cut before stays as it is.
    """
    place = list(inspect.signature(function).parameters).index("anatomy")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        method = args[0]
        if not method.blocks:
            return function(*args, **kwargs)
        if "anatomy" in kwargs:
            kwargs["anatomy"] = within(kwargs["anatomy"], method.blocks, method.name)
        else:
            cut = within(args[place], method.blocks, method.name)
            args = (*args[:place], cut, *args[place + 1 :])
        return function(*args, **kwargs)

    return call
