"""MAM adapter: prefixes in attention, a parallel adapter at the MLP (arXiv 2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.parallel_adapter import ParallelAdapter
from peftbench.methods.prefix import PrefixTuning

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("mam")
@dataclass(frozen=True)
class MAM(PrefixTuning, ParallelAdapter):
    """A short prefix in each attention and a scaled parallel adapter beside each MLP."""

    num_tokens: int = 30  # of the prefix; its other fields and those of the adapter are theirs

    card: ClassVar[MethodCard] = MethodCard(
        title="MAM adapter",
        summary="A prefix of p = 30 in each attention, softmax(q [P_k; K]^T) [P_v; V], and "
        "s W_up relu(W_down n) beside each MLP with h = 512 and s = 4.",
        paper="arXiv:2110.04366",
        section="4.6",
        reference="jxhe/unify-parameter-efficient-tuning@3222ce2c petl/petl_factory.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "defined for language, where the norm stands behind the MLP; in vision the places are "
            "ours: those of method=prefix and method=parallel_adapter",
            "one dropout for both parts",
        ),
        look=("#CC79A7", "*"),
    )

    def validate(self) -> None:
        PrefixTuning.validate(self)
        ParallelAdapter.validate(self)

    def check(self, anatomy: Anatomy) -> None:
        PrefixTuning.check(self, anatomy)
        ParallelAdapter.check(self, anatomy)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        # attention first: the adapter wraps whole blocks
        prefix = PrefixTuning.attach(self, backbone, anatomy, generator)
        adapter = ParallelAdapter.attach(self, backbone, anatomy, generator)
        return Attachment(
            backbone,
            (*prefix.trainable, *adapter.trainable),
            touched=(*prefix.touched, *adapter.touched),
            train_modules=(*prefix.train_modules, *adapter.train_modules),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        prefix = PrefixTuning.expected_params(self, anatomy)
        return prefix + ParallelAdapter.expected_params(self, anatomy)
