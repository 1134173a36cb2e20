"""Visual prompt tuning (Jia et al., 2022, §3.2, arXiv 2203.12119)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import STEM, Anatomy, Kind, Role, Site, Tokens
from peftbench.canonical import later
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.prompts import Prompts

_SWIN = "swin"  # the family whose blocks exchange maps and take prompts all the same

READS = ("class", "prompts", "patches", "all")
_REFERENCE = "KMnP/vpt@4410440 src/models/vit_prompt/vit.py, swin_transformer.py"
_DEVIATIONS = (
    "prompts follow all prefix tokens, registers included; location=append puts them behind the "
    "patch tokens, which a class-token read-out cannot tell apart",
    "a read-out that averages tokens leaves the prompts out; pool_prompts=true includes them, as "
    "the released code does",
    "the dropout mask differs between the images of a batch; in the released Swin code images "
    "share the mask of deep prompts",
    "all frozen layers are in eval mode, so drop-path is off while training, as in the released "
    "code",
)


@dataclass(frozen=True)
class VisualPrompts(Method):
    """What both depths of visual prompt tuning share."""

    num_tokens: int = 10  # p; the paper chooses among 1, 5, 10, 50, 100, 200 for each task
    dropout: float = 0.0  # on the prompts
    project_width: int | None = None  # d, width of the learned tokens; None: that of the stream
    pool_prompts: bool = False  # whether a read-out that averages tokens sees the prompts
    location: str = "prepend"  # in front of the patch tokens; "append" is behind them
    # in place of the class token, where the read-out is one: the mean of "prompts", of "patches",
    # or of "all" of both
    read: str = later("class")

    locations: ClassVar[tuple[str, ...]] = ("prepend", "append")
    takes_blocks: ClassVar[bool] = False

    def validate(self) -> None:
        self.require(
            self.location in self.locations,
            f"location={self.location!r}; use {' or '.join(map(repr, self.locations))}.",
        )
        if self.read not in READS:
            raise unknown_name(f"read of method={self.name}:", self.read, READS)
        self.require(self.num_tokens >= 1, f"num_tokens={self.num_tokens}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(
            self.project_width is None or self.project_width >= 1,
            f"project_width={self.project_width}; use 1 or more, or null for no projection.",
        )

    def check(self, anatomy: Anatomy) -> None:
        has_class = anatomy.tokens is not None and anatomy.tokens.pooled == "token"
        if self.read != "class" and not (has_class and _last_norm(anatomy)):
            raise Unsupported(
                f"{self.name} has read={self.read!r} in place of a class token, and this "
                f"{anatomy.family} backbone reads none. Set method.read=class, or pool_prompts."
            )
        if anatomy.family == _SWIN:
            self._check_swin(anatomy)
        elif anatomy.tokens is None:
            blocks = anatomy.where(Role.BLOCK)
            what = "exchange feature maps"
            if not blocks:
                what = "are not known"
            elif not all(block.is_map for block in blocks):
                what = "exchange tokens in some places and feature maps in others"
            raise Unsupported(
                f"{self.name} needs a token stream, but the blocks of {anatomy.family} backbones "
                f"{what}. {advice(self.name, anatomy)}"
            )
        elif not anatomy.tokens.accepts_more and not anatomy.tokens.counted:
            raise Unsupported(
                f"{self.name} adds tokens, but {anatomy.family} backbones take no more: "
                f"{anatomy.tokens.refusal}. {advice(self.name, anatomy)}"
            )
        elif anatomy.tokens.counted and self.location == "append":
            raise Unsupported(
                f"{self.name} has location=append, but the position code of {anatomy.family} "
                "backbones leaves only tokens in front alone. Set method.location=prepend."
            )

    def _check_swin(self, anatomy: Anatomy) -> None:
        if self.project_width is not None:
            raise Unsupported(
                f"{self.name} has project_width={self.project_width}, but one projection cannot "
                f"serve {anatomy.family} backbones, whose stages differ in width. Set "
                "method.project_width=null."
            )
        if self.location != "prepend":
            raise Unsupported(
                f"{self.name} has location={self.location}, but in the windows of {anatomy.family} "
                "backbones no order distinguishes prompts. Set method.location=prepend."
            )

    @abstractmethod
    def depths(self, anatomy: Anatomy) -> range:
        """Blocks in front of which new prompts enter."""

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers import swin_prompts

        prompts = self._prompts(anatomy, generator)
        if anatomy.family == _SWIN:
            touched = swin_prompts.insert(backbone, anatomy, prompts, self.pool_prompts)
        else:
            touched = self._insert(backbone, anatomy, prompts)
        return Attachment(
            backbone,
            parameters_of(*prompts.values()),
            touched,
            train_modules=tuple(p.dropout for p in prompts.values()),
        )

    def _prompts(self, anatomy: Anatomy, generator: torch.Generator) -> dict[int, Prompts]:
        """New prompts by depth, which share their projection if they have one.

        All are uniform with the bound of the first stage, sqrt(6 / (3 patch^2 + d)).
        """
        import torch
        from torch import nn

        from peftbench.methods.layers.prompts import Prompts

        blocks = self._prompted(anatomy)
        projection = None
        if self.project_width is not None:
            width = self.project_width
            projection = nn.Linear(width, blocks[0].width)
            nn.init.kaiming_normal_(projection.weight, mode="fan_out", generator=generator)
            bias_bound = 1 / math.sqrt(width)
            nn.init.uniform_(projection.bias, -bias_bound, bias_bound, generator=generator)
        patch = next(s.fan_in for s in anatomy.where(Role.EMBED) if s.fan_in is not None)
        bound = math.sqrt(6 / (patch + self._width(blocks[0])))  # patch = 3 x patch side squared
        prompts = {}
        for block in blocks:
            tokens = torch.empty(self.num_tokens, self._width(block))
            tokens.uniform_(-bound, bound, generator=generator)
            prompts[block.depth] = Prompts(tokens, projection, self.dropout)
        return prompts

    def _insert(
        self, backbone: nn.Module, anatomy: Anatomy, prompts: Mapping[int, Prompts]
    ) -> tuple[str, ...]:
        """Let `prompts` enter a token stream; returns the paths that were changed."""
        from peftbench.methods import surgery
        from peftbench.methods.layers.prompts import PromptedBlock

        last = anatomy.depth - 1
        touched = []
        for site in anatomy.where(Role.BLOCK):
            strips = site.depth == last and not self.pool_prompts and self.read == "class"
            if site.depth not in prompts and not strips:
                continue
            block = PromptedBlock(
                backbone.get_submodule(site.path),
                prompts.get(site.depth),
                _tokens(anatomy).num_prefix,
                appended=self.location == "append",
                removed=self.num_tokens if site.depth > 0 else 0,
                stripped=self.num_tokens if strips else 0,
            )
            surgery.replace(backbone, site.path, block)
            touched.append(site.path)
        counted = _tokens(anatomy).counted
        for site in anatomy.where(Role.BLOCK) if counted else ():
            if site.depth >= min(prompts):  # prompts have no position, as class tokens
                module = backbone.get_submodule(site.path)
                surgery.raise_counts(module, counted, self.num_tokens)
        if self.read != "class":
            self._read_a_mean(backbone, anatomy)
        return tuple(touched)

    def _read_a_mean(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        from peftbench.methods import surgery
        from peftbench.methods.layers.prompts import PooledTokens

        prefix, appended = _tokens(anatomy).num_prefix, self.location == "append"
        pooled = PooledTokens(self.read, prefix, self.num_tokens, appended)
        (norm,) = _last_norm(anatomy)
        base = backbone.get_submodule(norm.path)
        surgery.replace(backbone, norm.path, surgery.OutputAdapter(base, pooled))

    def expected_params(self, anatomy: Anatomy) -> int:
        blocks = self._prompted(anatomy)
        learned = sum(self.num_tokens * self._width(block) for block in blocks)
        projected = (self.project_width + 1) * blocks[0].width if self.project_width else 0
        return learned + projected

    def _prompted(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return anatomy.where(Role.BLOCK, depths=self.depths(anatomy))

    def _width(self, block: Site) -> int:
        """Width of the learned tokens of a block."""
        return self.project_width or block.width


def _last_norm(anatomy: Anatomy) -> tuple[Site, ...]:
    """The norm between the last block and the read-out."""
    return tuple(s for s in anatomy.where(Role.AFTER) if s.kind is Kind.NORM and s.called)[:1]


def _tokens(anatomy: Anatomy) -> Tokens:
    assert anatomy.tokens is not None  # `check` has refused feature maps
    return anatomy.tokens


@register_method("vpt_deep")
@dataclass(frozen=True)
class VPTDeep(VisualPrompts):
    """New prompts enter in front of every block; their outputs are thrown away (eq. 5-6)."""

    card: ClassVar[MethodCard] = MethodCard(
        title="VPT-deep",
        summary="p learned tokens P_i enter in front of each block B_i and leave behind it: "
        "[x_i, _] = B_i([x_(i-1), P_i]).",
        paper="arXiv:2203.12119",
        section="3.2, eq. 5-6",
        reference=_REFERENCE,
        identity_at_init=False,
        mergeable=False,
        deviations=_DEVIATIONS,
        look=("#E69F00", ">"),
    )

    def depths(self, anatomy: Anatomy) -> range:
        return range(anatomy.depth)


@register_method("vpt_shallow")
@dataclass(frozen=True)
class VPTShallow(VisualPrompts):
    """Prompts enter once, in front of the first block, and flow through the network (eq. 4).

    With location=below they are no tokens but channels of the image: the convolution that reads it
    takes 3 + num_tokens channels and trains, with the batch norm behind it if there is one.
    """

    card: ClassVar[MethodCard] = MethodCard(
        title="VPT-shallow",
        summary="p learned tokens P enter once, in front of the first block, and flow on: "
        "[x_1, Z_1] = B_1([x_0, P]), [x_i, Z_i] = B_i([x_(i-1), Z_(i-1)]).",
        paper="arXiv:2203.12119",
        section="3.2, eq. 4; 4.3, 'Prompt location'",
        reference=f"{_REFERENCE}, vit_ablations.py; src/models/resnet.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            *_DEVIATIONS,
            "the paper says that prompts are ignored when Swin merges patches; here, as in the "
            "released code, a prompt is repeated four times along the channels and passes the "
            "same norm and reduction as the patches",
            "the released Swin code lets the images of a batch attend to each other's prompts; "
            "here each image has its own copies, which equals the released code at batch size 1",
            "location=below follows the released ResNet code on all backbones: uniform [0, 1) "
            "channels, normalised, and a kernel with the pretrained planes; the released ViT code "
            "does not normalise them and draws them and the planes like token prompts",
        ),
        look=("#E69F00", "<"),
    )
    locations: ClassVar[tuple[str, ...]] = ("prepend", "append", "below")

    def validate(self) -> None:
        super().validate()
        if self.location != "below":
            return
        reason = "location=below learns channels of the image and no tokens"
        self.require(
            self.project_width is None,
            f"project_width={self.project_width}, but {reason}; use null.",
        )
        self.require(not self.pool_prompts, f"pool_prompts=true, but {reason}; use false.")
        self.require(self.dropout == 0, f"dropout={self.dropout}, but {reason}; use 0.")
        self.require(self.read == "class", f"read={self.read}, but {reason}; use class.")

    def depths(self, anatomy: Anatomy) -> range:
        return range(1)

    def check(self, anatomy: Anatomy) -> None:
        if self.location != "below":
            super().check(anatomy)
        elif anatomy.channels != 3:
            raise Unsupported(
                f"{self.name} with location=below learns channels below the 3 of an image, and the "
                f"images of this backbone have {anatomy.channels}. Use location=prepend."
            )
        elif not _image_convolutions(anatomy):
            raise Unsupported(
                f"{self.name} with location=below widens the convolution that reads the image, "
                f"and {anatomy.finds} none. {advice(self.name, anatomy)} "
                "Or tell where they are: backbone.anatomy=FILE."
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        if self.location != "below":
            return super().attach(backbone, anatomy, generator)
        from peftbench.methods import surgery
        from peftbench.methods.layers.pixels import DeepenedStem

        conv = _image_convolutions(anatomy)[0]
        norms = _stem_batch_norms(anatomy)
        stem = DeepenedStem(
            backbone.get_submodule(conv.path), self.num_tokens, anatomy.image_size, generator
        )
        surgery.replace(backbone, conv.path, stem)
        train_modules = (stem, *(backbone.get_submodule(norm.path) for norm in norms))
        return Attachment(
            backbone,
            parameters_of(*train_modules),
            touched=(conv.path, *(norm.path for norm in norms)),
            train_modules=train_modules,
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        if self.location != "below":
            return super().expected_params(anatomy)
        conv = _image_convolutions(anatomy)[0]
        planes = self.num_tokens * conv.width * (conv.fan_in or 0) // 3
        channels = self.num_tokens * anatomy.image_size**2
        norms = sum(norm.num_params for norm in _stem_batch_norms(anatomy))
        return channels + planes + conv.num_params + norms


def _image_convolutions(anatomy: Anatomy) -> tuple[Site, ...]:
    """Convolutions on the 3 channels of the image; others follow a network that reads it."""
    return tuple(
        site
        for site in anatomy.where(Role.EMBED)
        if site.kind is Kind.CONV and site.called and (site.fan_in or 0) % 3 == 0
    )


def _stem_batch_norms(anatomy: Anatomy) -> tuple[Site, ...]:
    norms = anatomy.where(Role.NORM, depths={STEM})
    return tuple(norm for norm in norms if norm.kind is Kind.BATCH_NORM)
