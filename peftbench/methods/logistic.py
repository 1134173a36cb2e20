"""Logistic regression on frozen features, solved to its optimum (CLIP: arXiv 2103.00020, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.solvable import Solvable


@register_method("logistic")
@dataclass(frozen=True)
class Logistic(Method):
    """min over W, b of C * sum of cross-entropies + |W|^2 / 2, on standardised features."""

    C: float | None = None  # as in scikit-learn; None: by cross-validation of the training images

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Logistic regression",
        summary="A linear classifier on frozen, standardised features, solved to its optimum: "
        "min C * sum of cross-entropies + |W|^2 / 2.",
        paper="arXiv:2103.00020",
        section="3.2",
        reference="scikit-learn's LogisticRegression",
        identity_at_init=True,
        mergeable=True,
        head_only=True,
        solved=True,
        deviations=(
            "features are standardised, which CLIP does not do",
            "C is chosen by cross-validation of the training images, not on val",
        ),
        look=("#000000", "+"),
    )

    def validate(self) -> None:
        self.require(self.C is None or self.C > 0, f"C={self.C} is not positive.")

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, trainable=(), touched=())

    def solve(self, head: nn.Module, given: Solvable) -> None:
        """The optimum as a linear head; the standardisation is folded into it."""
        import torch

        from peftbench.methods.layers.regression import logistic_regression

        solution = logistic_regression(given, self.C)
        with torch.no_grad():
            head.get_parameter("weight").copy_(torch.from_numpy(solution.weight))
            head.get_parameter("bias").copy_(torch.from_numpy(solution.bias))

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return 0
