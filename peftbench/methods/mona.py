"""Mona: multi-cognitive visual adapters (Yin et al., CVPR 2025, arXiv 2408.08345)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.mona import MonaAdapter

KERNEL_AREAS = 3**2 + 5**2 + 7**2
# what exchanges positions in the first of two branches
_MIXERS = (Role.ATTN_OUT, Role.ATTN_ENTRY, Role.TOKEN_MIX_OUT)


@register_method("mona")
@dataclass(frozen=True)
class Mona(Method):
    """Convolutions of three sizes in a bottleneck, on the stream behind each branch of a block."""

    bottleneck: int = 64  # h, at every stage
    dropout: float = 0.1  # in front of the last layer

    card: ClassVar[MethodCard] = MethodCard(
        title="Mona",
        summary="x + W_up gelu(f(W_down m)) with m = gamma LN x + gamma_x x behind attention and "
        "behind the MLP; f: the mean of depthwise 3x3, 5x5 and 7x7 convolutions, then a 1x1 "
        "convolution, each with a residual.",
        paper="arXiv:2408.08345",
        section="3.2",
        reference="Leiyi-Hu/mona@5deeac9f mmcls/models/backbones/swin_transformer_mona.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the released module starts with PyTorch's defaults, so that the model does not start "
            "at the pretrained function; so does this one",
            "the released code keeps the frozen blocks in train mode, with drop-path",
            "on plain ViTs it acts on the patches and leaves class and register tokens as they "
            "are, so the last block gets none where the class token is read (ours)",
            "blocks that are one branch, as those of ConvNeXt and ResNet, get one module, behind "
            "them (ours)",
        ),
        look=("#009E73", "p"),
    )

    def validate(self) -> None:
        self.require(self.bottleneck >= 1, f"bottleneck={self.bottleneck}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def check(self, anatomy: Anatomy) -> None:
        if not anatomy.where(Role.BLOCK):
            raise Unsupported(
                f"mona stands behind the branches of blocks, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        if not self._has_rows(anatomy):
            raise Unsupported(
                f"mona needs to know the rows of patches, and the tokens of this {anatomy.family} "
                f"backbone are not known to be in rows. {advice(self.name, anatomy)}"
            )
        if not self.sites(anatomy):
            raise Unsupported(
                f"mona acts on patches, and no block of this {anatomy.family} backbone lets them "
                f"reach its class token behind it. {advice(self.name, anatomy)}"
            )

    @staticmethod
    def _has_rows(anatomy: Anatomy) -> bool:
        if anatomy.tokens is not None and anatomy.tokens.grid is not None:
            return True
        return all(site.is_map for site in anatomy.where(Role.BLOCK, Role.MLP_ENTRY))

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Where a module stands: in front of second branches, and behind blocks."""
        last = anatomy.depth - 1
        sees_all = anatomy.tokens is None or anatomy.tokens.pooled != "token"
        depths = range(anatomy.depth if sees_all else last)
        two = {site.depth for site in anatomy.where(*_MIXERS, depths=depths)}
        behind = [site for site in anatomy.where(Role.BLOCK, depths=depths) if site.called]
        return (*anatomy.where(Role.MLP_ENTRY, depths=two), *behind)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers import frozen_conv, stream
        from peftbench.methods.layers.mona import MonaAdapter

        device = next(backbone.parameters()).device

        def make(site: Site) -> MonaAdapter:
            block = next(b for b in anatomy.where(Role.BLOCK) if b.depth == site.depth)
            tokens = None if block.is_map else anatomy.tokens
            adapter = MonaAdapter(
                block.width, self.bottleneck, self.dropout, block.channels_last, tokens, generator
            )
            return adapter.to(device)

        sites = self.sites(anatomy)
        between = {site.depth for site in sites if site.role is Role.MLP_ENTRY}
        adapters = stream.add_to_stream(
            backbone, anatomy, (Role.MLP_ENTRY,), stream.ReadPoint.BEFORE, make, between
        )
        for site in sites:
            if site.role is Role.BLOCK:
                adapters[site.path] = make(site)
                block = backbone.get_submodule(site.path)
                surgery.replace(
                    backbone, site.path, surgery.ResidualAdapter(block, adapters[site.path])
                )
        if not all(site.channels_last for site in sites):
            frozen_conv.keep_no_inputs(backbone)  # an adapted map is no output of an activation
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        h = self.bottleneck
        widths = {block.depth: block.width for block in anatomy.where(Role.BLOCK)}
        filters = (KERNEL_AREAS + 3) * h + (h + 1) * h
        return sum(
            # norm, gamma and gamma_x; down; up
            4 * widths[site.depth] + 2 * widths[site.depth] * h + h + widths[site.depth] + filters
            for site in self.sites(anatomy)
        )
