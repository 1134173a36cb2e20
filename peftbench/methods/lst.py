"""Ladder side-tuning (Sung, Cho and Bansal, 2022, §3, arXiv 2206.06522)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

GATES = ("learned", "none")
NORMS = ("pre", "post")
PRE_NORM_EPS = 1e-6  # of ViT
POST_NORM_EPS = 1e-12  # of the released code's BERT layers


@register_method("lst")
@dataclass(frozen=True)
class LST(Method):
    """s_i = Layer_i(g_i s_(i-1) + (1 - g_i) D_i b_i) on frozen outputs b_i; up s is read."""

    reduction: int = 8  # side width is D / reduction
    gate: str = "learned"  # g = sigmoid(a / temperature) with a = 0 at the start; none: s + D b
    temperature: float = 0.1
    mix: str = "before"  # b joins in front of a side layer; "after": behind it
    side_layers: tuple[int, ...] = ()  # blocks with a side layer; empty: all
    norm: str = "pre"  # of side layers: x + f(LN x) as in ViTs; "post": LN(x + f(x)) as released

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="LST",
        paper="arXiv:2206.06522",
        section="3.1-3.3",
        reference="ylsung/Ladder-Side-Tuning@1798e82 CLIP-ViL/src/lxrt/modeling.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "on a ViT the side layers are pre-norm blocks of attention and MLP at reduced width, "
            "with the backbone's number of heads where that divides it; this is ours, as the "
            "released code has post-norm layers of language models: norm=post",
            "what climbed takes the place of the last block's output, so the backbone's own final "
            "norm and read-out follow",
            "side layers start random; the paper prunes those of the backbone",
            "keys have no bias, which the softmax cancels; with norm=post they have the released "
            "one, and it stays where it starts",
            "a block without a side layer has no gate; in the released code it keeps one that "
            "nothing reads",
        ),
        summary="A side network of width D / 8 climbs the frozen outputs b_i: s_i = Layer_i(g s + "
        "(1 - g) D_i b_i), and up s replaces the last output, so that no gradient enters the "
        "backbone.",
        look=("#332288", "v"),
    )

    def validate(self) -> None:
        self.require(self.reduction >= 1, f"reduction={self.reduction}; use 1 or more.")
        self.require(self.temperature > 0, f"temperature={self.temperature}; use more than 0.")
        for key, known in (("gate", GATES), ("mix", ("before", "after")), ("norm", NORMS)):
            value = getattr(self, key)
            self.require(value in known, f"{key}={value!r}; use {' or '.join(map(repr, known))}.")
        layers = self.side_layers
        self.require(
            len(set(layers)) == len(layers) and all(layer >= 0 for layer in layers),
            f"side_layers={list(layers)}; give numbers of blocks from 0, each once.",
        )

    def check(self, anatomy: Anatomy) -> None:
        if anatomy.tokens is None or not anatomy.where(Role.ATTN_OUT):
            raise Unsupported(
                f"lst climbs the tokens of blocks with attention, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        if len({(block.stage, block.width) for block in anatomy.where(Role.BLOCK)}) > 1:
            raise Unsupported(
                "lst climbs tokens of one number and width, and those of this "
                f"{anatomy.family} backbone change between blocks. {advice(self.name, anatomy)}"
            )
        width = anatomy.tokens.width
        if width % self.reduction:
            raise Unsupported(
                f"lst has reduction={self.reduction}, which does not divide the width {width} of "
                f"this {anatomy.family} backbone. Set method.reduction."
            )
        absent = [layer for layer in self.side_layers if layer >= anatomy.depth]
        if absent:
            raise Unsupported(
                f"lst has side_layers={list(self.side_layers)}, and this {anatomy.family} backbone "
                f"has {anatomy.depth} blocks from 0. Set method.side_layers."
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        """Refuse blocks that hand on more than tokens, as those of TNT do."""
        from peftbench.methods.layers.behind import passed

        blocks = [block.path for block in anatomy.where(Role.BLOCK)]
        seen = passed(backbone, anatomy, (), blocks)
        if any(path not in seen.reads or path not in seen.gives for path in blocks):
            raise Unsupported(
                f"lst reads the tokens between blocks, and those of this {anatomy.family} backbone "
                f"hand on several tensors. {advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.ladder import (
            Ladder,
            LadderBlock,
            LadderDesign,
            LadderState,
        )

        assert anatomy.tokens is not None
        blocks = anatomy.where(Role.BLOCK)
        side_width = anatomy.tokens.width // self.reduction
        pre_norm = self.norm == "pre"
        design = LadderDesign(
            width=anatomy.tokens.width,
            side_width=side_width,
            num_heads=math.gcd(side_width, _num_heads(backbone, blocks[0])),
            hidden=self._hidden(anatomy),
            pre_norm=pre_norm,
            eps=PRE_NORM_EPS if pre_norm else POST_NORM_EPS,
            gate=self.gate == "learned",
            temperature=self.temperature,
            mixes_after=self.mix == "after",
        )
        with_layer = self._with_layer(anatomy)
        ladder = Ladder(design, [index in with_layer for index in range(len(blocks))])
        ladder.draw(generator)
        ladder.to(next(backbone.parameters()).device)
        state = LadderState()
        for index, block in enumerate(blocks):
            base = backbone.get_submodule(block.path)
            surgery.replace(backbone, block.path, LadderBlock(base, ladder, state, index))
        return Attachment(
            backbone,
            tuple(ladder.parameters()),
            touched=tuple(block.path for block in blocks),
            train_modules=(ladder,),
        )

    def unmoved(self) -> tuple[str, ...]:
        return ("*.attn.k.bias",) if self.norm == "post" else ()

    def expected_params(self, anatomy: Anatomy) -> int:
        assert anatomy.tokens is not None
        width, hidden = anatomy.tokens.width, self._hidden(anatomy)
        side = width // self.reduction
        biases = (3 if self.norm == "pre" else 4) * side  # keys have one in the released code alone
        layer = 4 * side * side + biases + 2 * side * hidden + hidden + side + 4 * side
        rung = layer + width * side + (self.gate == "learned")
        return len(self._with_layer(anatomy)) * rung + 2 * width * side

    def _with_layer(self, anatomy: Anatomy) -> tuple[int, ...]:
        return self.side_layers or tuple(range(anatomy.depth))

    def _hidden(self, anatomy: Anatomy) -> int:
        """Width of the MLP of a side layer: that of the backbone, reduced as well."""
        outputs = anatomy.where(Role.MLP_OUT)
        inputs = outputs[0].fan_in if outputs else None
        assert anatomy.tokens is not None
        return max(1, (inputs or 4 * anatomy.tokens.width) // self.reduction)


def _num_heads(backbone: nn.Module, block: Site) -> int:
    """Heads of the attention in a block, by timm's name for it; 1 where it has no such name."""
    for module in backbone.get_submodule(block.path).modules():
        number = getattr(module, "num_heads", None)
        if isinstance(number, int):
            return number
    return 1
