"""Visual prompt tuning (Jia et al., 2022, §3.2, arXiv 2203.12119)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role, Tokens
from peftbench.errors import Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

_DEVIATIONS = (
    "prompts follow all prefix tokens, registers included",
    "a read-out that averages tokens leaves the prompts out; pool_prompts=true includes them, as "
    "the released code does",
)


class Prompts(nn.Module):
    """Learned tokens for one block: (p, d), projected to the width of the stream if d differs."""

    def __init__(self, tokens: Tensor, projection: nn.Linear | None, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.projection = projection  # shared by all blocks
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: int) -> Tensor:
        """(batch, p, D)."""
        tokens = self.tokens if self.projection is None else self.projection(self.tokens)
        return self.dropout(tokens.expand(batch, -1, -1))  # another mask for each sample


class PromptedBlock(nn.Module):
    """A block that takes prompts behind the prefix tokens.

    Removes `removed` earlier prompts in front of the block and `stripped` ones behind it.
    """

    def __init__(
        self,
        block: nn.Module,
        prompts: Prompts | None,
        num_prefix: int,
        removed: int,
        stripped: int,
    ) -> None:
        super().__init__()
        self.block = block
        self.prompts = prompts
        self.num_prefix = num_prefix
        self.removed = removed
        self.stripped = stripped

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, D) tokens, prefix tokens first, then prompts if there are any."""
        k = self.num_prefix
        if self.prompts is not None:
            prompts = self.prompts(x.shape[0]).to(x.dtype)
            x = torch.cat((x[:, :k], prompts, x[:, k + self.removed :]), dim=1)
        x = self.block(x, *args, **kwargs)
        if self.stripped:
            x = torch.cat((x[:, :k], x[:, k + self.stripped :]), dim=1)
        return x


@dataclass(frozen=True)
class VisualPrompts(Method):
    """What both depths of visual prompt tuning share."""

    num_tokens: int = 10  # p; the paper chooses among 1, 5, 10, 50, 100, 200 for each task
    dropout: float = 0.0  # on the prompts
    project_width: int | None = None  # d, width of the learned tokens; None: that of the stream
    pool_prompts: bool = False  # whether a read-out that averages tokens sees the prompts

    def validate(self) -> None:
        self.require(self.num_tokens >= 1, f"num_tokens={self.num_tokens}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(
            self.project_width is None or self.project_width >= 1,
            f"project_width={self.project_width}; use 1 or more, or null for no projection.",
        )

    def check(self, anatomy: Anatomy) -> None:
        if anatomy.tokens is None:
            raise Unsupported(
                f"{self.name} needs a token stream, but the blocks of {anatomy.family} backbones "
                "exchange feature maps. Use method=bias, partial or full."
            )
        if not anatomy.tokens.accepts_more:
            raise Unsupported(
                f"{self.name} adds tokens, but {anatomy.family} backbones take no more: "
                f"{anatomy.tokens.refusal}. Use method=bias, partial or full."
            )

    def depths(self, anatomy: Anatomy) -> range:
        """Blocks in front of which new prompts enter."""
        raise NotImplementedError

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        stream = _tokens(anatomy)
        width = self.project_width or stream.width
        projection = None
        if self.project_width is not None:
            projection = nn.Linear(width, stream.width)
            nn.init.kaiming_normal_(projection.weight, mode="fan_out", generator=generator)
            bias_bound = 1 / math.sqrt(width)
            nn.init.uniform_(projection.bias, -bias_bound, bias_bound, generator=generator)
        patch = next(s.fan_in for s in anatomy.where(Role.EMBED) if s.fan_in is not None)
        bound = math.sqrt(6 / (patch + width))  # patch = 3 x patch side squared
        prompted = self.depths(anatomy)
        prompts: dict[int, Prompts] = {}
        for depth in prompted:
            tokens = torch.empty(self.num_tokens, width)
            tokens.uniform_(-bound, bound, generator=generator)
            prompts[depth] = Prompts(tokens, projection, self.dropout)
        last = anatomy.depth - 1
        touched = []
        for site in anatomy.where(Role.BLOCK):
            strips = site.depth == last and not self.pool_prompts
            if site.depth not in prompts and not strips:
                continue
            block = PromptedBlock(
                backbone.get_submodule(site.path),
                prompts.get(site.depth),
                stream.num_prefix,
                removed=self.num_tokens if site.depth > 0 else 0,
                stripped=self.num_tokens if strips else 0,
            )
            surgery.replace(backbone, site.path, block)
            touched.append(site.path)
        trainable = [p.tokens for p in prompts.values()]
        if projection is not None:
            trainable += projection.parameters()
        return Attachment(
            backbone,
            tuple(trainable),
            touched=tuple(touched),
            train_modules=tuple(p.dropout for p in prompts.values()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        width = self.project_width or _tokens(anatomy).width
        learned = len(self.depths(anatomy)) * self.num_tokens * width
        projected = (width + 1) * _tokens(anatomy).width if self.project_width else 0
        return learned + projected


def _tokens(anatomy: Anatomy) -> Tokens:
    assert anatomy.tokens is not None  # `check` has refused feature maps
    return anatomy.tokens


@register_method("vpt_deep")
@dataclass(frozen=True)
class VPTDeep(VisualPrompts):
    """New prompts enter in front of every block; their outputs are thrown away (eq. 5-6)."""

    card: ClassVar[MethodCard] = MethodCard(
        title="VPT-deep",
        paper="arXiv:2203.12119",
        section="3.2, eq. 5-6",
        reference="KMnP/vpt@4410440 src/models/vit_prompt/vit.py",
        identity_at_init=False,
        mergeable=False,
        deviations=_DEVIATIONS,
    )

    def depths(self, anatomy: Anatomy) -> range:
        return range(anatomy.depth)


@register_method("vpt_shallow")
@dataclass(frozen=True)
class VPTShallow(VisualPrompts):
    """Prompts enter once, in front of the first block, and flow through the network (eq. 4)."""

    card: ClassVar[MethodCard] = MethodCard(
        title="VPT-shallow",
        paper="arXiv:2203.12119",
        section="3.2, eq. 4",
        reference="KMnP/vpt@4410440 src/models/vit_prompt/vit.py",
        identity_at_init=False,
        mergeable=False,
        deviations=_DEVIATIONS,
    )

    def depths(self, anatomy: Anatomy) -> range:
        return range(1)
