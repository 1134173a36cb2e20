"""CVPT: cross attention to prompts (Huang et al., ICCV 2025, arXiv 2408.14961)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.attention_sites import attention_paths
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.attention import CrossAttention

# insert -> where, and the role of the modules at which it enters
INSERTS = {
    1: ("in front of attention", Role.BLOCK),
    2: ("beside attention", Role.ATTN_ENTRY),
    3: ("between attention and MLP", Role.MLP_ENTRY),
    4: ("on what the MLP reads", Role.MLP_ENTRY),
    5: ("behind the MLP", Role.BLOCK),
}


@register_method("cvpt")
@dataclass(frozen=True)
class CVPT(Method):
    """Tokens attend to prompts by the block's own frozen attention; prompts never join them."""

    num_tokens: int = 10  # p, of each block
    dropout: float = 0.1  # on the prompts
    insert: int = 3  # a key of `INSERTS`

    card: ClassVar[MethodCard] = MethodCard(
        title="CVPT",
        summary="y + CA(y, P) between attention and MLP: all tokens ask the block's own frozen "
        "attention for p learned tokens P, as keys and values; they are never in the sequence.",
        paper="arXiv:2408.14961",
        section="3.2",
        reference="Lingyun0419/CVPT@2fc98770 CVPT.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "neither queries nor prompts pass a layer norm, as in the released code",
            "the released code copies the weights of attention; here they are the block's own, "
            "which is the same while they are frozen",
            "outside plain ViTs it is ours: windows of Swin do not matter, since tokens meet "
            "prompts alone, and neither positions nor rotations enter",
        ),
        look=("#E69F00", "P"),
    )

    def validate(self) -> None:
        self.require(self.num_tokens >= 1, f"num_tokens={self.num_tokens}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(
            self.insert in INSERTS,
            f"insert={self.insert}; use "
            + ", ".join(f"{number} ({where})" for number, (where, _) in INSERTS.items())
            + ".",
        )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Where it enters, in each block with an attention."""
        depths = {site.depth for site in anatomy.where(Role.ATTN_OUT)}
        role = INSERTS[self.insert][1]
        sites = anatomy.where(role, depths=depths)
        return tuple(site for site in sites if site.called)

    def check(self, anatomy: Anatomy) -> None:
        if not anatomy.where(Role.ATTN_OUT) or not anatomy.where(Role.BLOCK):
            raise Unsupported(
                f"cvpt lets tokens attend to prompts, and {anatomy.finds} no attention. "
                f"{advice(self.name, anatomy)}"
            )
        if not self.sites(anatomy):
            raise Unsupported(
                f"cvpt with insert={self.insert} enters {INSERTS[self.insert][0]}, which "
                f"{anatomy.family} backbones do not show. Set method.insert=5."
            )
        if not all(block.channels_last for block in anatomy.where(Role.BLOCK)):
            raise Unsupported(
                f"cvpt needs tokens as rows, and the blocks of this {anatomy.family} backbone "
                f"have their channels first. {advice(self.name, anatomy)}"
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        from peftbench.methods.layers.attention import answers_alone

        paths = attention_paths(anatomy)
        for site in self.sites(anatomy):
            path = paths.get(site.depth)
            width = _block_of(anatomy, site).width
            if path and answers_alone(backbone.get_submodule(path), width, self.num_tokens + 1):
                continue
            raise Unsupported(
                f"cvpt asks the attention of each block, and that of block {site.depth} of this "
                f"{anatomy.family} backbone does not call scaled_dot_product_attention on rows of "
                f"tokens alone. {advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch

        from peftbench.methods import surgery
        from peftbench.methods.layers import stream
        from peftbench.methods.layers.attention import CrossAttention
        from peftbench.methods.layers.beside import Beside
        from peftbench.methods.layers.stream import ReadPoint

        device = next(backbone.parameters()).device
        sites = self.sites(anatomy)
        paths = attention_paths(anatomy)

        def make(site: Site) -> CrossAttention:
            width = _block_of(anatomy, site).width
            # Xavier on a tensor of all blocks, (L, p, D)
            bound = math.sqrt(6 / ((self.num_tokens + len(sites)) * width))
            tokens = torch.empty(self.num_tokens, width)
            tokens.uniform_(-bound, bound, generator=generator)
            attention = backbone.get_submodule(paths[site.depth])
            return CrossAttention(attention, tokens, self.dropout).to(device)

        added: dict[str, nn.Module] = {}
        if self.insert in (2, 3):
            role = INSERTS[self.insert][1]
            reads = ReadPoint.STREAM if self.insert == 2 else ReadPoint.BEFORE
            depths = {site.depth for site in sites}
            added = stream.add_to_stream(backbone, anatomy, (role,), reads, make, depths)
        else:
            kinds = {1: stream.StreamChange, 4: Beside, 5: surgery.ResidualAdapter}
            for site in sites:
                adapter = added[site.path] = make(site)
                base = backbone.get_submodule(site.path)
                surgery.replace(backbone, site.path, kinds[self.insert](base, adapter))
        return Attachment(
            backbone,
            parameters_of(*added.values()),
            touched=tuple(added),
            train_modules=tuple(added.values()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(self.num_tokens * _block_of(anatomy, site).width for site in self.sites(anatomy))


def _block_of(anatomy: Anatomy, site: Site) -> Site:
    (block,) = anatomy.where(Role.BLOCK, depths=(site.depth,))
    return block
