"""Gradient-based parameter selection (Zhang et al., 2024, CVPR, arXiv 2312.10136)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    MethodCard,
    Preparation,
    TrainingImages,
    register_method,
)
from peftbench.methods.in_weights import InWeights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.methods.surgery import Delta

LOSSES = ("contrastive", "cross_entropy")


@register_method("gps")
@dataclass(frozen=True)
class GPS(InWeights):
    """Of each output row of each weight the k entries of steepest gradient train, and biases."""

    per_row: int = 1  # k; the released scripts take 1 or 2 for each data set
    loss: str = "contrastive"  # whose gradients choose; "cross_entropy": of a random classifier
    temperature: float = 0.07  # of the contrastive loss

    card: ClassVar[MethodCard] = MethodCard(
        title="GPS",
        paper="arXiv:2312.10136",
        section="3.2-3.3",
        reference="FightingFighting/GPS@72e0c31 utils/pruning.py, loss_utils.py, cuda.py",
        identity_at_init=True,
        mergeable=True,
        prepared=True,
        deviations=(
            "the chosen entries are new tensors that are added to frozen weights, so that decay "
            "and momentum act on them alone; the released code masks gradients of all weights, "
            "which is the same without decay",
            "so decay pulls a chosen entry to its pretrained value and not to zero",
            "the two views of an image are random crops and flips, drawn from the seed; the "
            "released code also changes colours",
            "batches of the train split of 64 images at most, each image once, in eval mode",
            "entries are chosen at described sites alone, as linear layers and convolutions, and "
            "biases train whole there; those of norms do not",
            "without images, as for a stored task before it is loaded, the first entries of rows "
            "are taken",
        ),
        summary="In each output row of each weight matrix the k entries train whose gradients of a "
        "contrastive loss on the training images are the largest, and all biases of these layers.",
        look=("#117733", "X"),
    )

    def validate(self) -> None:
        self.require(self.per_row >= 1, f"per_row={self.per_row}; use 1 or more.")
        self.require(self.temperature > 0, f"temperature={self.temperature}; use more than 0.")
        self.require(
            self.loss in LOSSES, f"loss={self.loss!r}; use {' or '.join(map(repr, LOSSES))}."
        )

    def check(self, anatomy: Anatomy) -> None:
        if not _weights(anatomy):
            raise Unsupported(
                f"gps chooses entries of weight matrices, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        from peftbench.methods.layers import selection

        sites = _weights(anatomy)
        weights = [backbone.get_submodule(s.path).get_parameter("weight") for s in sites]
        summed: list[float] = []

        def losses() -> Iterator[Tensor]:
            for loss in self._losses(backbone, anatomy, images, generator):
                summed.append(float(loss.detach()))
                yield loss

        found = selection.total(selection.gradients(backbone, weights, losses))
        chosen = {
            site.path: selection.largest_in_rows(gradient, self.per_row).cpu()
            for site, gradient in zip(sites, found, strict=True)
        }
        facts = {"loss_sum": sum(summed), "batches": len(summed)}
        return Preparation(chosen, facts)

    def _losses(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Iterator[Tensor]:
        """The loss of each batch, whose gradients are summed."""
        import torch

        from peftbench.methods.layers import selection

        if self.loss == "cross_entropy":
            yield from selection.cross_entropies(backbone, anatomy, images, generator)
            return
        for batch, labels in images:
            views = (selection.crop_and_flip(batch, generator) for _ in range(2))
            features = [selection.features_of(backbone, anatomy.head, view) for view in views]
            rows, classes = torch.cat(features), torch.cat((labels, labels))
            yield selection.supervised_contrastive(rows, classes, self.temperature)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self.attach_prepared(backbone, anatomy, generator, Preparation({}))

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.selection import largest_in_rows
        from peftbench.methods.layers.sparse import SparseDelta

        sites = _weights(anatomy)
        biases = [
            backbone.get_submodule(site.path).get_parameter("bias")
            for site in sites
            if site.has_bias
        ]

        def delta(site: Site) -> Delta:
            weight = backbone.get_submodule(site.path).get_parameter("weight")
            index = prepared.tensors.get(site.path)
            if index is None:
                index = largest_in_rows(weight.new_zeros(weight.shape, device="cpu"), self.per_row)
            return SparseDelta(index, weight.shape)

        deltas, notes = surgery.add_deltas(backbone, sites, delta)
        values = tuple(p for each in deltas.values() for p in each.parameters())
        return Attachment(
            backbone,
            (*values, *biases),
            touched=tuple(deltas),
            train_modules=tuple(deltas.values()),
            notes=notes,
            fixed=tuple(b for each in deltas.values() for b in each.buffers()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(
            site.width * (min(self.per_row, site.fan_in or 0) + site.has_bias)
            for site in _weights(anatomy)
        )


def _weights(anatomy: Anatomy) -> tuple[Site, ...]:
    """Sites with a weight matrix or kernel, each module once, in depth order."""
    found = {
        site.path: site
        for site in anatomy.sites
        if site.kind in (Kind.LINEAR, Kind.CONV) and site.fan_in is not None
    }
    return tuple(found.values())
