"""What adapters are made of and where they stand, by name; loading it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# where each one is defined, to be looked up when an adapter is built
ACTIVATIONS: Mapping[str, str] = {
    "gelu": "torch.nn:GELU",
    "relu": "torch.nn:ReLU",
    "quick_gelu": "peftbench.methods.layers.activations:QuickGELU",
    "silu": "torch.nn:SiLU",
}
# how the two matrices start; biases start at zero
INITS: Mapping[str, str] = {
    "lora": "peftbench.methods.layers.starts:lora",
    "houlsby": "peftbench.methods.layers.starts:houlsby",
    "noah": "peftbench.methods.layers.starts:noah",
    "bert": "peftbench.methods.layers.starts:bert",
    "zero": "peftbench.methods.layers.starts:zero",
}


class ReadPoint(StrEnum):
    """What an adapter at an entry reads, and who sees its change."""

    STREAM = "stream"  # the stream; the change is added behind the branch
    BEFORE = "before"  # the stream; the branch sees the change too
    BRANCH = "branch"  # what the branch reads, behind its norm; the change is added behind it
    OUTPUT = "output"  # what the branch adds to the stream, behind layer scale; added behind it


@dataclass(frozen=True)
class Design:
    """What adapters of all widths have in common: A(x) = scale · up(activation(down(x)))."""

    activation: str = "gelu"
    init: str = "lora"
    bias: bool = True
    dropout: float = 0.0  # on the bottleneck
    scale: float = 1.0
    learned_scale: str = "none"  # one scale that trains for each "channel", or a "scalar"
    drop_path: float = 0.0  # of the adapter's own branch
    own_norm: bool = False  # a layer norm in front that trains
    norm_behind: bool = False  # one behind the scaled change
    norm_eps: float = 1e-6  # of both, as in Adapter+ (Steitz and Roth, 2024)
