"""Convpass: convolutions beside attention and MLP (Jie and Deng, 2022, arXiv 2207.07039)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
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

    from peftbench.methods.layers.bypass import Bypass


@register_method("convpass")
@dataclass(frozen=True)
class Convpass(Method):
    """A 3 x 3 convolution in a bottleneck beside each branch, on what the branch reads."""

    bottleneck: int = 8  # h
    scale: float = 1.0  # s; the released configurations take 0.01 to 100 by task
    dropout: float = 0.1  # in front of the last layer
    branches: str = "both"  # "attention": only beside attention (Convpass-attn)
    conv_init: str = "identity"  # the centre of the kernel is the identity; or "xavier"

    card: ClassVar[MethodCard] = MethodCard(
        title="Convpass",
        summary="x + Attn(n) + s C(n) with n = LN x, and the same beside the MLP; C(n) = W_up "
        "g(conv3x3(g(W_down n))) on the grid of the patches.",
        paper="arXiv:2207.07039",
        section="3.2",
        reference="JieShibo/PETL-ViT@026e4f1 convpass",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "every prefix token, registers included, is convolved alone as the class token is",
            "the released code chooses between the two starts of the convolution for each task",
            "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
            "on Swin the bypass sees the whole map and not one window",
        ),
        look=("#009E73", "s"),
    )

    def validate(self) -> None:
        self.require(self.bottleneck >= 1, f"bottleneck={self.bottleneck}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        for key, value, known in (
            ("branches", self.branches, ("both", "attention")),
            ("conv_init", self.conv_init, ("identity", "xavier")),
        ):
            if value not in known:
                raise unknown_name(f"{key} of method=convpass:", value, known)

    def check(self, anatomy: Anatomy) -> None:
        roles = {site.role for site in anatomy.where(Role.ATTN_ENTRY, Role.MLP_ENTRY)}
        if Role.ATTN_ENTRY not in roles:
            raise Unsupported(
                "convpass needs blocks that read the stream through a norm in front of attention, "
                f"and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        rowless = anatomy.tokens is None or anatomy.tokens.grid is None
        if rowless and not all(site.is_map for site in anatomy.where(*self.roles())):
            raise Unsupported(
                f"convpass needs to know the rows of patches, and the tokens of this "
                f"{anatomy.family} backbone are not known to be in rows. "
                f"{advice(self.name, anatomy)}"
            )

    def roles(self) -> tuple[Role, ...]:
        if self.branches == "attention":
            return (Role.ATTN_ENTRY,)
        return (Role.ATTN_ENTRY, Role.MLP_ENTRY)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers import stream
        from peftbench.methods.layers.bypass import Bypass, initialise

        def make(site: Site) -> Bypass:
            tokens = None if site.is_map else anatomy.tokens
            bypass = Bypass(site, self.bottleneck, self.scale, self.dropout, tokens)
            initialise(bypass, self.conv_init, generator)
            return bypass

        bypasses = stream.add_to_stream(
            backbone, anatomy, self.roles(), stream.ReadPoint.BRANCH, make
        )
        return Attachment(
            backbone,
            parameters_of(*bypasses.values()),
            touched=tuple(bypasses),
            train_modules=tuple(bypasses.values()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        h = self.bottleneck
        return sum(
            2 * h * site.width + 9 * h * h + 2 * h + site.width
            for site in anatomy.where(*self.roles())
        )
