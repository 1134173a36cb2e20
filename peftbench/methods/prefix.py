"""Prefix tuning: learned keys and values in each attention (Li and Liang, arXiv 2101.00190)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.attention_sites import attention_paths, attention_widths, require_heads
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STD = 0.02  # of keys and values that no encoder makes


@register_method("prefix")
@dataclass(frozen=True)
class PrefixTuning(Method):
    """softmax(q [P_k; K]^T) [P_v; V] in each attention; a small network makes the prefixes."""

    num_tokens: int = 200  # p
    mid_dim: int | None = 800  # width of the network that makes them; null: learned as they are
    dropout: float = 0.0  # on keys and values

    card: ClassVar[MethodCard] = MethodCard(
        title="Prefix tuning",
        summary="softmax(q [P_k; K]^T) [P_v; V]: p learned keys and values in front of those of "
        "each attention, made by W_2 tanh(W_1 e) of p learned rows e.",
        paper="arXiv:2101.00190",
        section="4.2-4.3; for comparison arXiv:2110.04366, 2.2",
        reference="jxhe/unify-parameter-efficient-tuning@3222ce2c petl/petl_factory.py Prefix",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "a finished task stores the prefixes without the network, where that is less",
            "defined for language; in vision the place is ours",
            "prefixes stand behind any norm and rotation of keys, and have no relative position "
            "and no mask: in Swin each window has all of them",
            "where stages differ in width the learned rows have the width of the first one",
        ),
        look=("#E69F00", "*"),
    )

    def validate(self) -> None:
        self.require(self.num_tokens >= 1, f"num_tokens={self.num_tokens}; use 1 or more.")
        self.require(
            self.mid_dim is None or self.mid_dim >= 1,
            f"mid_dim={self.mid_dim}; use 1 or more, or null for prefixes without a network.",
        )
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")

    def check(self, anatomy: Anatomy) -> None:
        if not attention_widths(anatomy):
            raise Unsupported(
                f"{self.name} puts keys and values into attention, and {anatomy.finds} no "
                f"attention with a module of its own. {advice(self.name, anatomy)}"
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        require_heads(self.name, backbone, anatomy, attention_widths(anatomy))

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch

        from peftbench.methods.layers.attention import extend, heads_of
        from peftbench.methods.layers.prefix import DirectPrefix, EncodedPrefix, PrefixEncoder

        heads = heads_of(backbone, anatomy, attention_paths(anatomy))
        widths = attention_widths(anatomy)
        added: dict[str, nn.Module] = {}
        encoder = None
        if self.mid_dim is not None:
            first = next(iter(widths.values()))
            encoder = PrefixEncoder(self.num_tokens, first, self.mid_dim, generator)
        for depth in widths:
            found = heads[depth]
            size = (found.count, found.width)
            if encoder is not None:
                added[found.path] = EncodedPrefix(encoder, size, self.dropout, generator)
                continue
            both = torch.randn(2, size[0], self.num_tokens, size[1], generator=generator)
            added[found.path] = DirectPrefix(STD * both[0], STD * both[1], self.dropout)
        extend(backbone, added)
        return Attachment(
            backbone,
            parameters_of(*added.values()),
            touched=tuple(added),
            train_modules=tuple(added.values()),
        )

    def stored_as(self, anatomy: Anatomy) -> Method:
        """Prefixes as they are, without the network that made them, where that is less."""
        folded = replace(self, mid_dim=None)
        fewer = folded.expected_params(anatomy) < self.expected_params(anatomy)
        return folded if fewer else self

    def stored_state(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        from peftbench.methods.layers.prefix import folded

        return folded(model, state)

    def expected_params(self, anatomy: Anatomy) -> int:
        widths = tuple(attention_widths(anatomy).values())
        if self.mid_dim is None:
            return 2 * self.num_tokens * sum(widths)
        shared = widths[0] * (self.num_tokens + self.mid_dim) + self.mid_dim
        return shared + 2 * sum(widths) * (self.mid_dim + 1)
