"""Where things are in a backbone: sites with roles, declared by family, confirmed by a probe.

Methods address roles, never module names, so methods x backbones is a sum and not a product.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

STEM = -1  # depth of sites in front of the first block


class Role(StrEnum):
    """What a site does in its backbone."""

    EMBED = "embed"  # patch embedding or stem convolution
    BLOCK = "block"  # one residual block
    NORM = "norm"
    ATTN_IN = "attn_in"  # query, key and value projections, fused or apart
    ATTN_OUT = "attn_out"
    MLP_IN = "mlp_in"
    MLP_OUT = "mlp_out"
    TOKEN_MIX_IN = "token_mix_in"  # an MLP over positions
    TOKEN_MIX_OUT = "token_mix_out"
    SPATIAL_CONV = "spatial_conv"
    POINT_CONV = "point_conv"  # 1 x 1
    TRANSITION = "transition"  # downsampling between two stages
    TRANSITION_NORM = "transition_norm"  # the norm inside it
    TRANSITION_CONV = "transition_conv"  # the convolution inside it
    # the modules through which the two branches of a block read the stream: a norm in pre-norm
    # blocks, so that its input is the stream and its output what the branch sees
    ATTN_ENTRY = "attn_entry"
    MLP_ENTRY = "mlp_entry"
    AFTER = "after"  # what lies between the last block and the classifier


class Kind(StrEnum):
    """What the module of a site computes."""

    LINEAR = "linear"
    CONV = "conv"
    NORM = "norm"  # of each sample
    BATCH_NORM = "batch_norm"  # with running statistics
    OTHER = "other"


@dataclass(frozen=True)
class Site:
    """One place in a backbone that a method may adapt. A module may be a site of two roles."""

    path: str  # dotted path from the backbone root
    role: Role
    depth: int  # index of the residual block, `STEM` before the first one
    stage: int  # blocks of one resolution share a stage
    width: int  # channels the site outputs
    fan_in: int | None  # inputs of one output channel, None where the site has no weight matrix
    channels_last: bool  # (B, ..., C) if True, (B, C, H, W) if False
    called: bool  # False where the parent reads `.weight` and never calls the module
    parts: tuple[str, ...]  # names of the equal row blocks of the output, e.g. q, k, v
    num_params: int
    kind: Kind = Kind.OTHER
    has_bias: bool = False
    is_map: bool = True  # whether its block, or it, reads (B, C, H, W) or (B, H, W, C)
    evidence: str = ""  # of a site that was inferred: what shows and what confirms it
    in_channels: int | None = None  # that a convolution reads, in all its groups together
    kernel_size: tuple[int, int] | None = None  # of a convolution


COUNTED = "num_prefix_tokens"  # timm's name for what `Tokens.counted` names


@dataclass(frozen=True)
class Tokens:
    """The token stream of a backbone without a spatial layout between its blocks."""

    num_prefix: int  # class and register tokens, always first
    width: int
    pooled: str  # timm's name for the read-out: "token", "avg", "map", ...
    accepts_more: bool  # whether blocks take a longer sequence
    refusal: str  # why not, where they do not
    grid: tuple[int, int] | None = None  # rows and columns of patches, in row-major order
    # attribute of modules in blocks: how many tokens in front their position code leaves alone;
    # where that is raised, blocks take tokens behind the prefix all the same
    counted: str = ""


@dataclass(frozen=True)
class Head:
    """One layer that makes logits of features."""

    path: str
    width: int  # features that it receives; 0 of a layer of another kind, which can only be kept
    on_maps: bool = False  # a 1 x 1 convolution of (B, C, H, W)
    auxiliary: bool = False  # beside the classifier that timm names; zero where that is replaced


@dataclass(frozen=True)
class Anatomy:
    """The described backbone."""

    family: str
    sites: tuple[Site, ...]
    depth: int  # number of residual blocks
    head: str  # path of the classifier
    head_width: int  # features the classifier receives; 0 where it can only be kept
    tokens: Tokens | None  # None where the blocks exchange feature maps
    num_params: int  # the backbone without its classifier
    bias_attributes: tuple[str, ...]  # names under which modules hold true biases
    position_biases: tuple[str, ...]  # names under which modules hold relative position tables
    num_biases: int  # true biases outside the classifier
    num_position_biases: int
    image_size: int  # side of the images that it was described for
    norms: tuple[str, ...] = ()  # paths of all norms with scales or shifts, described or not
    num_norm_params: int = 0
    channels: int = 3  # of the images
    head_on_maps: bool = False  # the classifier is a 1 x 1 convolution
    more_heads: tuple[Head, ...] = ()  # of models with several classifiers, those behind the first
    size_refusal: str = ""  # why it takes no larger images, where it does not
    inferred: bool = False  # by looking at the backbone, whose class nobody described
    uncovered: tuple[str, ...] = ()  # layers in the blocks that are no sites
    left_out: tuple[tuple[str, str, str], ...] = ()  # path, role, why it is not confirmed

    @property
    def known_by(self) -> str:
        """How the sites are known: "described", "inferred", or "" where there are none."""
        return "inferred" if self.inferred else "described" if self.sites else ""

    @property
    def finds(self) -> str:
        """What says where things are, for a sentence that ends in what it does not name."""
        if self.inferred:
            return f"looking at this {self.family} backbone shows"
        return f"the family {self.family!r} describes"

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every layer that makes logits."""
        return (Head(self.head, self.head_width, self.head_on_maps), *self.more_heads)

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of the classifier's tensors begin with."""
        return tuple(f"{head.path}." for head in self.heads)

    def where(self, *roles: Role, depths: Container[int] | None = None) -> tuple[Site, ...]:
        """Sites whose role is among `roles`, in depth order, optionally at `depths` only."""
        return tuple(
            s for s in self.sites if s.role in roles and (depths is None or s.depth in depths)
        )


@dataclass(frozen=True)
class Example:
    """An architecture of timm by which readers know a family."""

    title: str
    architecture: str


@dataclass(frozen=True)
class Family:
    """One description of a timm model class. Paths are patterns in which * is one name."""

    name: str
    classes: tuple[str, ...]  # names of timm's classes, and ours; subclasses match too
    blocks: str  # each match is a residual block, in order of definition
    inside: Mapping[Role, tuple[str, ...]]  # relative to a block
    stem: Mapping[Role, tuple[str, ...]]
    example: Example | None = None  # of which the pages of methods count parameters
    more_blocks: tuple[str, ...] = ()  # further patterns of blocks
    after: tuple[str, ...] = ()
    transitions: tuple[str, ...] = ()  # matched beside the stage of a block
    # or, wherever they lie: the first stands in front of the second stage, and so on
    transitions_in_order: bool = False
    in_transition: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # relative to it
    channels_last: bool = True  # layout of the stream between blocks
    tokens: bool = False  # blocks exchange (B, N, C)
    token_refusal: str = ""  # why blocks refuse a longer token sequence
    token_count: str = ""  # see `Tokens.counted`
    size_refusal: str = ""  # why they refuse a larger map
    parts: Mapping[str, tuple[str, ...]] | None = None  # path in a block -> row blocks
    bias_attributes: tuple[str, ...] = ("bias",)
    position_biases: tuple[str, ...] = ()
    optional: frozenset[Role] = frozenset()  # roles that some variants lack


GENERIC = Family(
    name="generic",
    classes=(),
    blocks="",
    inside={},
    stem={},
    example=Example("RegNetX-200MF", "regnetx_002"),
)
