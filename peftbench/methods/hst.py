"""Hierarchical side-tuning (Lin et al., 2023, arXiv 2310.05393)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site, Tokens
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.hierarchy import Hierarchy

HEAD_EPS = 1e-6  # of the batch norm in front of the classifier


@register_method("hst")
@dataclass(frozen=True)
class HST(Method):
    """A network of four shrinking maps reads meta tokens and patches behind each frozen block."""

    side_widths: tuple[int, ...] = (32, 48, 64, 72)  # of its stages
    side_heads: tuple[int, ...] = (2, 4, 8, 12)
    meta_tokens: int = 1  # G, in front of each frozen block
    stage_ends: tuple[int, ...] = ()  # last frozen block of each stage; empty: equal shares
    train_norms: bool = True  # the layer norms in the frozen blocks, as released

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="HST",
        paper="arXiv:2310.05393",
        section="3.2-3.3",
        reference="AFeng-x/HST@ee89571 models/vit_hsn.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "as released, the layer norms of the frozen blocks train: train_norms=false",
            "a batch norm without affine stands in front of the classifier, as released; the "
            "feature is as wide as the last stage",
            "meta tokens and linear layers start truncated normal (0.02), convolutions as "
            "PyTorch's; the released starts were not checked",
            "the bias of the keys is counted as released, cancels in the softmax and stays where "
            "it starts",
            "images of any size are taken; stages without frozen blocks only shrink the map",
        ),
        summary="Beside frozen blocks with G meta tokens each, four stages of shrinking maps "
        "attend to what meta tokens and patches became, and the classifier reads the mean of the "
        "last map.",
        look=("#882255", "D"),
    )

    def validate(self) -> None:
        widths, heads = self.side_widths, self.side_heads
        self.require(
            len(widths) == len(heads) > 0 and all(n >= 1 for n in (*widths, *heads)),
            f"side_widths={list(widths)} and side_heads={list(heads)}; give one of each a stage.",
        )
        for width, number in zip(widths, heads, strict=True):
            self.require(
                width % number == 0, f"{number} side_heads do not divide side_widths of {width}."
            )
        self.require(self.meta_tokens >= 1, f"meta_tokens={self.meta_tokens}; use 1 or more.")
        ends = self.stage_ends
        self.require(
            not ends or (len(ends) == len(widths) and list(ends) == sorted(ends) and ends[0] >= 0),
            f"stage_ends={list(ends)}; give the last block of each of {len(widths)} stages.",
        )

    def check(self, anatomy: Anatomy) -> None:
        tokens = anatomy.tokens
        if tokens is None or tokens.grid is None:
            raise Unsupported(
                f"hst reads patch tokens on their grid, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        if not tokens.accepts_more:
            raise Unsupported(
                f"hst adds tokens, but {anatomy.family} backbones take no more: {tokens.refusal}. "
                f"{advice(self.name, anatomy)}"
            )
        if len(anatomy.heads) > 1:
            raise Unsupported(
                f"hst gives one feature, and this {anatomy.family} backbone has "
                f"{len(anatomy.heads)} classifiers. {advice(self.name, anatomy)}"
            )
        if self.stage_ends and self.stage_ends[-1] != anatomy.depth - 1:
            raise Unsupported(
                f"hst has stage_ends={list(self.stage_ends)}, and the last block of this "
                f"{anatomy.family} backbone is {anatomy.depth - 1}. Set method.stage_ends."
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        if not hasattr(backbone, "forward_features"):
            raise Unsupported(
                f"hst runs the blocks without the classifier, and {type(backbone).__name__} "
                f"(family {anatomy.family}) has no forward_features. {advice(self.name, anatomy)}"
            )

    def unmoved(self) -> tuple[str, ...]:
        return ("*.attn.k.bias",)

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        from torch import nn

        side_width = self.side_widths[-1]
        norm = nn.BatchNorm1d(side_width, affine=False, eps=HEAD_EPS)
        last = super().head(side_width, num_classes, generator)
        return nn.Sequential(OrderedDict(bn=norm, last=last))

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch
        from torch import nn

        from peftbench.methods import surgery
        from peftbench.methods.layers import hierarchy

        tokens, state = _tokens(anatomy), hierarchy.HierarchyState()
        device = next(backbone.parameters()).device
        norms = [backbone.get_submodule(site.path) for site in self._norms(anatomy)]
        new: list[nn.Module] = []
        blocks = anatomy.where(Role.BLOCK)
        for block, width in zip(blocks, self._width_of_blocks(anatomy), strict=True):
            meta = torch.empty(self.meta_tokens, tokens.width)
            nn.init.trunc_normal_(meta, std=0.02, generator=generator)
            base = backbone.get_submodule(block.path)
            wrapped = hierarchy.MetaBlock(base, meta.to(device), width, tokens.num_prefix, state)
            wrapped.meta_norm.to(device)
            surgery.replace(backbone, block.path, wrapped)
            new.append(wrapped)
        side = self._side(anatomy, generator).to(device)
        model = hierarchy.HierarchyTuned(backbone, anatomy.head, side, state)
        metas = [m.get_parameter("meta") for m in new]
        meta_norms = [m.get_submodule("meta_norm") for m in new]
        return Attachment(
            model,
            (*metas, *parameters_of(side, *meta_norms, *norms)),
            touched=(*(b.path for b in blocks), *(s.path for s in self._norms(anatomy))),
            train_modules=(side, *meta_norms, *norms),
        )

    def _side(self, anatomy: Anatomy, generator: torch.Generator) -> Hierarchy:
        """The side network as it starts."""
        from torch import nn

        from peftbench.methods.layers import hierarchy
        from peftbench.methods.layers.side import draw

        tokens, widths = _tokens(anatomy), self.side_widths
        stages = [
            hierarchy.SideStage(tokens.width, width, heads, number, before)
            for width, heads, number, before in zip(
                widths, self.side_heads, self._sizes(anatomy), (None, *widths), strict=False
            )
        ]
        assert tokens.grid is not None
        side = hierarchy.Hierarchy(
            hierarchy.QuarterStem(anatomy.channels, widths[0]), stages, tokens.grid
        )
        for module in side.modules():
            if isinstance(module, nn.Conv2d):
                draw(module, generator)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        return side

    def expected_params(self, anatomy: Anatomy) -> int:
        frozen, widths = _tokens(anatomy).width, self.side_widths
        total = sum(site.num_params for site in self._norms(anatomy))
        total += widths[0] * (9 * anatomy.channels + 2 + 4 * widths[0] + 1 + 2)  # the stem
        total += sum(b * w * 9 + 3 * w for b, w in pairwise(widths))
        for width, number in zip(widths, self._sizes(anatomy), strict=True):
            block = 4 * width * (width + 1) + 8 * width**2 + 5 * width + 4 * width
            meta = self.meta_tokens * frozen + 2 * width
            total += number * (block + meta) + 2 * width
            total += (frozen + 1) * width if number else 0  # the bridge
        return total

    def _sizes(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Numbers of frozen blocks of the stages."""
        number, depth = len(self.side_widths), anatomy.depth
        ends = self.stage_ends or [depth * (stage + 1) // number - 1 for stage in range(number)]
        return tuple(end - before for before, end in zip((-1, *ends), ends, strict=False))

    def _width_of_blocks(self, anatomy: Anatomy) -> list[int]:
        """Width of the stage that reads each frozen block, in depth order."""
        sizes = zip(self.side_widths, self._sizes(anatomy), strict=True)
        return [width for width, number in sizes for _ in range(number)]

    def _norms(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Layer norms in front of the branches of the frozen blocks, if they train."""
        if not self.train_norms:
            return ()
        entries = anatomy.where(Role.ATTN_ENTRY, Role.MLP_ENTRY)
        return tuple(site for site in entries if site.kind is Kind.NORM)


def _tokens(anatomy: Anatomy) -> Tokens:
    assert anatomy.tokens is not None  # `check` has refused feature maps
    return anatomy.tokens
