"""E2VPT: prompts among tokens, and among keys and values (Han et al., 2023, arXiv 2307.13770)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.attention_sites import attention_paths, attention_widths, require_heads
from peftbench.methods.base import Attachment, MethodCard, parameters_of, register_method
from peftbench.methods.vpt import VisualPrompts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.prompts import Prompts


@register_method("e2vpt")
@dataclass(frozen=True)
class E2VPT(VisualPrompts):
    """Deep prompts under shared masks, and learned keys and values in each attention."""

    num_kv_tokens: int = 5  # t, in each attention
    masks: bool = True  # one for each prompt and one for each piece of it, which all blocks share
    pieces: int = 16  # m
    share_kv: bool = True  # one tensor for keys and values
    deep_kv: bool = True  # in every block; else in the first one

    card: ClassVar[MethodCard] = MethodCard(
        title="E2VPT",
        summary="VPT-deep with prompts P_i * rho * phi under masks of tokens and of pieces, and "
        "softmax(q [P_k; K]^T) [P_v; V] with learned keys and values in each attention.",
        paper="arXiv:2307.13770",
        section="3.2-3.3",
        reference="ChengHan111/E2VPT@7a66e75e src/models/vit_prompt/vit_prompt_VK.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the masks train as weights, as in the released code in front of its pruning; pruning "
            "by them and the second training are left out",
            "one tensor serves as keys and as values, as released: share_kv=false for two",
            "learned keys stand behind the projection and any norm of keys, and have neither "
            "position nor mask",
            "numbers of prompts are chosen for each task in the released code",
            "prompts follow all prefix tokens, registers included",
            "a read-out that averages tokens leaves the prompts out; pool_prompts=true includes "
            "them",
        ),
        look=("#E69F00", "h"),
    )

    def validate(self) -> None:
        super().validate()
        for key in ("num_kv_tokens", "pieces"):
            value = getattr(self, key)
            self.require(value >= 1, f"{key}={value}; use 1 or more.")

    def depths(self, anatomy: Anatomy) -> range:
        return range(anatomy.depth)

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        if not self._kv_widths(anatomy):
            raise Unsupported(
                f"e2vpt puts keys and values into attention, and {anatomy.finds} no such "
                f"attention in each block. {advice(self.name, anatomy)}"
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        require_heads(self.name, backbone, anatomy, self._kv_widths(anatomy))

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.attention import extend, heads_of
        from peftbench.methods.layers.prompts import KeyValuePrompts

        heads = heads_of(backbone, anatomy, attention_paths(anatomy))
        widths = self._kv_widths(anatomy)
        added = {}
        for depth in widths:
            keys, values = self._keys_and_values(heads[depth].count, heads[depth].width, generator)
            added[depth] = KeyValuePrompts(keys, values)
        extend(backbone, {heads[depth].path: module for depth, module in added.items()})
        attachment = super().attach(backbone, anatomy, generator)
        return replace(
            attachment,
            trainable=(*attachment.trainable, *parameters_of(*added.values())),
            touched=(*attachment.touched, *(heads[depth].path for depth in widths)),
            train_modules=(*attachment.train_modules, *added.values()),
        )

    def _prompts(self, anatomy: Anatomy, generator: torch.Generator) -> dict[int, Prompts]:
        plain = super()._prompts(anatomy, generator)
        if not self.masks:
            return plain
        import torch
        from torch import nn

        from peftbench.methods.layers.prompts import MaskedPrompts

        token_mask = nn.Parameter(torch.ones(self.num_tokens))
        piece_mask = nn.Parameter(torch.ones(self.num_tokens, self.pieces))
        return {
            depth: MaskedPrompts(prompts, token_mask, piece_mask)
            for depth, prompts in plain.items()
        }

    def _keys_and_values(
        self, heads: int, width: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Kaiming-uniform on tensors (heads, t, d), whose fan-in is t d."""
        import torch

        bound = math.sqrt(6 / (self.num_kv_tokens * width))

        def draw() -> torch.Tensor:
            tensor = torch.empty(heads, self.num_kv_tokens, width)
            return tensor.uniform_(-bound, bound, generator=generator)

        return draw(), None if self.share_kv else draw()

    def _kv_widths(self, anatomy: Anatomy) -> dict[int, int]:
        """Channels of the attentions with learned keys, by depth; none unless all have one."""
        depths = range(anatomy.depth if self.deep_kv else 1)
        widths = {d: w for d, w in attention_widths(anatomy).items() if d in depths}
        return widths if len(widths) == len(depths) else {}

    def expected_params(self, anatomy: Anatomy) -> int:
        tensors = 1 if self.share_kv else 2
        learned = tensors * self.num_kv_tokens * sum(self._kv_widths(anatomy).values())
        masks = self.num_tokens * (1 + self.pieces) if self.masks else 0
        return super().expected_params(anatomy) + learned + masks
