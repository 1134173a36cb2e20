"""The largest class of the training images, whatever the picture: what any method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.solvable import Solvable

LEAST_SHARE = 1e-6  # of a class without an image


@register_method("majority")
@dataclass(frozen=True)
class MajorityClass(Method):
    """logits = log of the share that each class has of the training images."""

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Majority class",
        summary="Always says the largest class: logits = log(n_c / n), whatever the image.",
        paper="none",
        section="none",
        reference="scikit-learn's DummyClassifier(strategy='prior')",
        identity_at_init=True,
        mergeable=True,
        head_only=True,
        solved=True,
        look=("#000000", "x"),
    )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, trainable=(), touched=())

    def solve(self, head: nn.Module, given: Solvable) -> None:
        """A linear head whose weights are zero."""
        import numpy as np
        import torch

        shares = np.bincount(given.labels, minlength=given.num_classes) / len(given.labels)
        with torch.no_grad():
            head.get_parameter("weight").zero_()
            logits = torch.from_numpy(np.log(np.maximum(shares, LEAST_SHARE)))
            head.get_parameter("bias").copy_(logits)

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return 0
