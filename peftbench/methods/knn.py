"""Weighted k-nearest neighbours on frozen features (Wu et al., 2018, §3.4, arXiv 1805.01978)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.solvable import Solvable


@register_method("knn")
@dataclass(frozen=True)
class NearestNeighbour(Method):
    """The k most similar training images vote, each with exp(cosine similarity / temperature)."""

    k: int = 20  # of DINO (Caron et al., 2021, §4.1); fewer where there are fewer images
    temperature: float = 0.07

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="k-nearest neighbours",
        summary="The k training images of the most similar frozen features vote, each with "
        "exp(cosine similarity / temperature).",
        paper="arXiv:1805.01978",
        section="3.4",
        reference="facebookresearch/dino eval_knn.py",
        identity_at_init=True,
        mergeable=False,  # no plain timm model has such a head
        head_only=True,
        solved=True,
        look=("#000000", "1"),
    )

    def validate(self) -> None:
        self.require(self.k >= 1, f"k={self.k}; use 1 or more.")
        self.require(self.temperature > 0, f"temperature={self.temperature:g} is not positive.")

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return Attachment(backbone, trainable=(), touched=())

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """Holds the features of all training images once it is solved."""
        from peftbench.methods.layers.neighbours import NearestNeighbours

        return NearestNeighbours(width, num_classes, self.k, self.temperature, generator)

    def solve(self, head: nn.Module, given: Solvable) -> None:
        """Keep the features, each of length 1, with their classes."""
        import torch

        from peftbench.methods.layers.neighbours import NearestNeighbours

        assert isinstance(head, NearestNeighbours)
        head.fill(torch.tensor(given.features), torch.tensor(given.labels))

    def expected_params(self, anatomy: Anatomy) -> int:
        return 0
