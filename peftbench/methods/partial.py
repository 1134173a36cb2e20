"""Partial-k: the last k blocks train (Yosinski et al., 2014; Jia et al., 2022, §4.1)."""

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

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("partial")
@dataclass(frozen=True)
class Partial(Method):
    """The last k blocks, what lies between them and what follows them before the head."""

    num_blocks: int = 1  # k
    unit: str = "block"  # "stage" counts whole stages instead of blocks

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Partial fine-tuning",
        summary="The last k of L blocks B train, with what follows them: logits = "
        "W B_L(... B_(L-k+1)(f(x))) + b with f frozen.",
        paper="arXiv:2203.12119",
        section="4.1, baseline 'Partial-k'",
        reference="KMnP/vpt@4410440",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the released code numbers ConvNets otherwise: its partial-0 is one block here, its "
            "ResNet partial-1 is unit=stage",
            "trained blocks are in train mode on every backbone; the released ViT code keeps them "
            "in eval mode, which differs only where drop-path or dropout is set",
        ),
        layer_decay=True,
        look=("#000000", "^"),
    )

    def validate(self) -> None:
        self.require(self.num_blocks >= 1, f"num_blocks={self.num_blocks}; use 1 or more.")
        self.require(
            self.unit in ("block", "stage"), f"unit={self.unit!r}; use 'block' or 'stage'."
        )

    def check(self, anatomy: Anatomy) -> None:
        blocks = anatomy.where(Role.BLOCK)
        if not blocks:
            raise Unsupported(
                f"partial needs to know the blocks, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        have = anatomy.depth if self.unit == "block" else blocks[-1].stage + 1
        if self.num_blocks > have:
            raise Unsupported(
                f"partial asks for the last {self.num_blocks} {self.unit}s, but this "
                f"{anatomy.family} backbone has {have}. Use method=full for all of them."
            )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Blocks, final layers and transitions that train."""
        blocks = anatomy.where(Role.BLOCK)
        if self.unit == "block":
            first = blocks[-self.num_blocks].depth
        else:
            stage = blocks[-1].stage + 1 - self.num_blocks
            first = min(block.depth for block in blocks if block.stage == stage)
        # a transition in front of the first trained block stays frozen
        return (
            *(s for s in anatomy.where(Role.BLOCK, Role.AFTER) if s.depth >= first),
            *(s for s in anatomy.where(Role.TRANSITION) if s.depth > first),
        )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        paths = tuple(site.path for site in self.sites(anatomy))
        modules = tuple(backbone.get_submodule(path) for path in paths)
        return Attachment(backbone, parameters_of(*modules), touched=paths, train_modules=modules)

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(site.num_params for site in self.sites(anatomy))
