"""Disentangled transfer learning (Fu, Zhu and Wu, 2024, AAAI, arXiv 2312.07856)."""

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

    from peftbench.methods.layers.trace import TracePlace

READ_OUTS = ("patches", "backbone")


@register_method("dtl")
@dataclass(frozen=True)
class DTL(Method):
    """h_i = h_(i-1) + B_i A_i x_i beside the blocks; later blocks add h · sigmoid(β h)."""

    rank: int = 2  # r
    beta: float = 100.0  # with 100, swish is nearly a ReLU
    fusion_size: int = 0  # side of the depthwise kernel of DTL+, 3 or 5; 0 is DTL
    gather_blocks: tuple[int, ...] = ()  # in front of which h grows; empty: all that can matter
    add_blocks: tuple[int, ...] = ()  # behind which h is added; empty: the second half
    read_out: str = "patches"  # in place of a class token; "backbone" leaves its own

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="DTL",
        paper="arXiv:2312.07856",
        section="3.2-3.3; DTL+ with the convolution of the released code",
        reference="heekhero/DTL@bf6c51e models/vision_transformer.py, swin_transformer.py",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "as released, a class token is not read: the mean of the patch tokens takes its place "
            "in front of the final norm, so that such a backbone does not start as it was; "
            "read_out=backbone keeps the class token",
            "DTL+ is this method with fusion_size=3, or 5 as on some data sets",
            "a block that gathers and has no adding block behind it in its stage is left out, "
            "since what it learns could not matter; the released Swin code always gathers",
            "on other token backbones the grid and the prefix tokens are those of the backbone; "
            "in stages of maps h starts at zero in each stage, as in the released Swin code",
        ),
        summary="h_i = h_(i-1) + B_i A_i x_i is gathered beside the frozen blocks, and from half "
        "of the depth on each block adds h_i · sigmoid(100 h_i) to its output, so that the first "
        "half needs no gradients.",
        look=("#44AA99", "P"),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(self.beta > 0, f"beta={self.beta}; use a number above 0.")
        self.require(
            self.fusion_size == 0 or self.fusion_size % 2 == 1,
            f"fusion_size={self.fusion_size}; use 3 or 5, or 0 for no convolution.",
        )
        self.require(
            self.read_out in READ_OUTS,
            f"read_out={self.read_out!r}; use {' or '.join(map(repr, READ_OUTS))}.",
        )
        for key in ("gather_blocks", "add_blocks"):
            blocks = getattr(self, key)
            unique = len(set(blocks)) == len(blocks) and all(block >= 0 for block in blocks)
            self.require(unique, f"{key}={list(blocks)}; give numbers of blocks from 0, each once.")

    def check(self, anatomy: Anatomy) -> None:
        keeping = _keeping(anatomy)
        if not keeping:
            raise Unsupported(
                f"dtl adds to the stream between blocks that keep its size, and {anatomy.finds} "
                f"none. {advice(self.name, anatomy)}"
            )
        known = {block.depth for block in keeping}
        for key in ("gather_blocks", "add_blocks"):
            absent = [number for number in getattr(self, key) if number not in known]
            if absent:
                raise Unsupported(
                    f"dtl has {key}={list(getattr(self, key))}, but block {absent[0]} is none of "
                    f"this {anatomy.family} backbone that keeps the size of the stream. Set "
                    f"method.{key}."
                )
        if self.fusion_size and anatomy.tokens is not None and anatomy.tokens.grid is None:
            raise Unsupported(
                f"dtl with fusion_size={self.fusion_size} convolves on the grid of the patches, "
                f"which {anatomy.finds} not. Set method.fusion_size=0."
            )
        gathering, adding = self._gathering(anatomy), self._adding(anatomy)
        alone = [
            block.depth
            for block in adding
            if not any(g.stage == block.stage and g.depth <= block.depth for g in gathering)
        ]
        if alone:
            raise Unsupported(
                f"dtl adds behind block {alone[0]} of this {anatomy.family} backbone, in front of "
                "which no block of its stage gathers. Set method.gather_blocks."
            )

    def not_identity(self, anatomy: Anatomy) -> str:
        if self._averages(anatomy):
            return "the mean of the patch tokens is read in place of the class token"
        return ""

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.trace import FusionKernel, Gather, TracedBlock, TraceState

        gathering = {block.depth for block in self._gathering(anatomy)}
        made: list[nn.Module] = []
        touched = []
        device = next(backbone.parameters()).device
        for blocks in _stages(self._used(anatomy)):
            state = TraceState()
            fusion = None
            if self.fusion_size:
                fusion = FusionKernel(blocks[0].width, self.fusion_size, generator).to(device)
                made.append(fusion)
            for block in blocks:
                gather = None
                if block.depth in gathering:
                    gather = Gather(block.width, self.rank, generator).to(device)
                    made.append(gather)
                base = backbone.get_submodule(block.path)
                place = self._place(block, blocks, anatomy)
                traced = TracedBlock(base, state, place, gather, fusion, self.beta)
                surgery.replace(backbone, block.path, traced)
                touched.append(block.path)
        return Attachment(
            backbone, parameters_of(*made), touched=tuple(touched), train_modules=tuple(made)
        )

    def _place(self, block: Site, stage: tuple[Site, ...], anatomy: Anatomy) -> TracePlace:
        """What is to be known of a block among those of its stage."""
        from peftbench.methods.layers.trace import TracePlace

        tokens, last = anatomy.tokens, anatomy.where(Role.BLOCK)[-1]
        first = min(b.depth for b in self._gathering(anatomy) if b.stage == block.stage)
        return TracePlace(
            gives=block in self._adding(anatomy),
            hands_on=block.depth >= first,
            is_first=block is stage[0],
            is_last=block is stage[-1],
            channels_last=block.channels_last,
            num_prefix=tokens.num_prefix if tokens else 0,
            grid=tokens.grid if tokens else None,
            averages=block == last and self._averages(anatomy),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        factors = sum(2 * self.rank * block.width for block in self._gathering(anatomy))
        kernels = sum(b[0].width * self.fusion_size**2 for b in _stages(self._used(anatomy)))
        return factors + kernels

    def _adding(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Blocks that add h to their output."""
        if self.add_blocks:
            return tuple(b for b in _keeping(anatomy) if b.depth in self.add_blocks)
        return tuple(b for b in _keeping(anatomy) if b.depth >= anatomy.depth // 2)

    def _gathering(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Blocks that add to h, for a block of their stage that reads it."""
        wanted = self.gather_blocks or [block.depth for block in _keeping(anatomy)]
        last = {block.stage: block.depth for block in self._adding(anatomy)}
        return tuple(
            block
            for block in _keeping(anatomy)
            if block.depth in wanted and block.depth <= last.get(block.stage, -1)
        )

    def _used(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Blocks of the stages in which something is added, and the last of all."""
        stages = {block.stage for block in self._adding(anatomy)}
        return tuple(block for block in _keeping(anatomy) if block.stage in stages)

    def _averages(self, anatomy: Anatomy) -> bool:
        """Whether the mean of the patches takes the place of the class token."""
        tokens = anatomy.tokens
        if tokens is None or tokens.pooled != "token" or not tokens.num_prefix:
            return False
        return self.read_out == "patches"


def _keeping(anatomy: Anatomy) -> tuple[Site, ...]:
    """Blocks that give what they get another value and not another size, in depth order."""
    entered = {site.depth for site in anatomy.where(Role.ATTN_ENTRY, Role.MLP_ENTRY)}
    blocks = anatomy.where(Role.BLOCK)
    return tuple(block for block in blocks if block.called and block.depth in entered)


def _stages(blocks: tuple[Site, ...]) -> list[tuple[Site, ...]]:
    """The blocks of each stage."""
    stages: dict[int, list[Site]] = {}
    for block in blocks:
        stages.setdefault(block.stage, []).append(block)
    return [tuple(each) for each in stages.values()]
