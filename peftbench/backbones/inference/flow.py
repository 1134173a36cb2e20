"""Where the tensors of a forward pass came from: the layers behind each, and what lay between.

Every tensor carries a `Flow`. A function gives its results the flows of what it was given, so that
at each layer one can read which layers feed it, through activations, norms or attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

from torch import Tensor


class Through(IntFlag):
    """What lay between a layer and a tensor that depends on it."""

    NOTHING = 0
    ACTIVATION = 1
    NORM = 2
    PRODUCT = 4  # of two tensors that both depend on the image, as in attention
    SUM = 8  # of two tensors that both depend on the image


@dataclass(frozen=True)
class Flow:
    """What is known of one tensor."""

    value: int  # equal for tensors that hold the same numbers in another shape or order
    image: bool = False  # depends on the image
    near: Mapping[str, Through] = field(default_factory=dict)  # nearest layers with a matrix
    dense: Mapping[str, Through] = field(default_factory=dict)  # the same, beyond depthwise ones
    weights: frozenset[str] = frozenset()  # names of the parameters it was computed of


_numbers = itertools.count(1)

LAYOUT = {
    "reshape",
    "view",
    "permute",
    "transpose",
    "flatten",
    "unflatten",
    "contiguous",
    "movedim",
    "moveaxis",
    "swapaxes",
    "squeeze",
    "unsqueeze",
    "to",
    "type",
    "float",
    "double",
    "clone",
    "dropout",
    "dropout_",
    "feature_dropout",
    "view_as",
    "reshape_as",
    "detach",
    "type_as",
    "swapdims",
    "T",
    "mT",
}
SUMS = {
    "add",
    "add_",
    "__add__",
    "__iadd__",
    "__radd__",
    "addcmul",
    "addcmul_",
}
PRODUCTS = {
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "bmm",
    "baddbmm",
    "einsum",
    "mm",
    "scaled_dot_product_attention",
}
ACTIVATIONS = {
    "relu",
    "relu_",
    "relu6",
    "gelu",
    "silu",
    "silu_",
    "mish",
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "hardsigmoid",
    "hardsigmoid_",
    "leaky_relu",
    "leaky_relu_",
    "elu",
    "elu_",
    "selu",
    "celu",
    "prelu",
    "sigmoid",
    "sigmoid_",
    "tanh",
    "tanh_",
    "softplus",
    "softmax",
    "log_softmax",
    "clamp",
    "clamp_",
    "clamp_min",
    "relu6_",
    "exp",
    "square",
    "glu",
    "threshold",
    "logsigmoid",
}
NORMS = {
    "layer_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "normalize",
}


def tensors_in(held: Any) -> Iterator[Tensor]:
    """The tensors (...) among arguments or results, in order."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, list | tuple):
        for one in held:
            yield from tensors_in(one)
    elif isinstance(held, dict):
        for one in held.values():
            yield from tensors_in(one)


def fresh_value() -> int:
    """A number that no value has yet."""
    return next(_numbers)


def flow_of(tensor: Tensor) -> Flow | None:
    """What is known of a tensor (...), `None` if nothing."""
    return getattr(tensor, "_peftbench_flow", None)


def mark(tensor: Tensor, flow: Flow) -> None:
    """Note what is known of a tensor (...)."""
    tensor._peftbench_flow = flow  # type: ignore[attr-defined]


def joined(flows: list[Flow], passed: Through = Through.NOTHING) -> Flow:
    """The flow of what was computed of tensors with these, by what `passed` says.

    What lies behind a second sum of the stream is left out: it is of an earlier branch.
    """
    near: dict[str, Through] = {}
    dense: dict[str, Through] = {}
    for flow in flows:
        for found, known in ((near, flow.near), (dense, flow.dense)):
            for path, through in known.items():
                if not through & passed & Through.SUM:
                    found[path] = found.get(path, Through.NOTHING) | through | passed
    return Flow(
        value=fresh_value(),
        image=any(flow.image for flow in flows),
        near=near,
        dense=dense,
        weights=frozenset().union(*(flow.weights for flow in flows)),
    )
