"""Adapter+: an adapter behind the whole block (Steitz and Roth, 2024, arXiv 2406.06820)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods.adapter import FixedBottleneck
from peftbench.methods.base import MethodCard, register_method
from peftbench.methods.layers.design import Design


@register_method("adapter_plus")
@dataclass(frozen=True)
class AdapterPlus(FixedBottleneck):
    """z + s · A(z) behind each block, with one learned scale for each channel."""

    init: str = "houlsby"  # N(0, 0.01^2) cut at two deviations; or lora, noah, bert
    dropout: float = 0.0
    drop_path: float = 0.1  # of the adapter's branch

    position: ClassVar[str] = "post"

    card: ClassVar[MethodCard] = MethodCard(
        title="Adapter+",
        summary="z + s * W_up gelu(W_down z) behind each block, with a learned scale s for each "
        "channel.",
        paper="arXiv:2406.06820",
        section="3",
        reference="visinf/adapter_plus@191c4ab adapter_plus/vit_adapter.py",
        identity_at_init=False,  # both matrices start small, neither at zero
        mergeable=False,
        deviations=(
            "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
            "on Swin, on convolutional nets (as 1 x 1 convolutions) and on MLP nets it is ours",
        ),
        look=("#009E73", "P"),
    )

    @property
    def design(self) -> Design:
        return Design(
            init=self.init,
            dropout=self.dropout,
            learned_scale="channel",
            drop_path=self.drop_path,
        )
