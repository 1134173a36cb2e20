"""KronA: a Kronecker product for each weight (Edalati et al., 2022, arXiv 2212.10650)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import Unsupported
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.methods.layers.slices import RowBlock
from peftbench.methods.targets import AUTO, Targeted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.backbones.anatomy import Site
    from peftbench.methods.layers.kronecker import KroneckerChange


@register_method("krona")
@dataclass(frozen=True)
class KronA(Targeted):
    """W + s (A ⊗ B) on the weight of each target."""

    a_rows: int = 0  # of A, must divide the outputs; 0: the divisor nearest below their root
    a_columns: int = 0  # of A, must divide the inputs; 0: likewise
    scale: float = 1.0  # s
    # auto: q and v where there is attention, fc1 and fc2 in other nets with an MLP in each block,
    # all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)

    card: ClassVar[MethodCard] = MethodCard(
        title="KronA",
        summary="W + s (A kron B) in place of the weight W of each target, with A random and B "
        "zero at the start: a change of full rank from few numbers.",
        paper="arXiv:2212.10650",
        section="3, the form without a bottleneck",
        reference="none",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the paper is about language models, and has no released code; targets and the start "
            "(A Kaiming uniform, B zero, as in LoRA) are ours, and s has no published value",
            "of the shapes that multiply to that of the weight the most square A is taken, as "
            "LoKr without its own decomposition does; a_rows and a_columns give others",
            "the two forms beside the feed-forward layer (KronA-B and KronA-B-res) are left out",
            "a convolution gets the product on its kernel, read as a matrix",
        ),
    )

    def validate(self) -> None:
        self.validate_targets()
        for name in ("a_rows", "a_columns"):
            value = getattr(self, name)
            self.require(value >= 0, f"{name}={value} is negative; use 0 for a divisor.")

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        for site, rows in self.row_blocks(anatomy):
            for start, stop in rows.values():
                for name, sides in (("a_rows", stop - start), ("a_columns", site.fan_in or 1)):
                    given = getattr(self, name)
                    if given and sides % given:
                        raise Unsupported(
                            f"krona with {name}={given} cannot divide the {sides} of {site.path!r} "
                            f"in this {anatomy.family} backbone. Set method.{name}."
                        )

    def shapes(self, site: Site, rows: RowBlock) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of A and B for a row block of a weight."""
        outputs, inputs = rows[1] - rows[0], site.fan_in or 1
        above = self.a_rows or divisor_near_root(outputs)
        beside = self.a_columns or divisor_near_root(inputs)
        return (above, beside), (outputs // above, inputs // beside)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.kronecker import KroneckerChange

        targets = self.resolved(anatomy)

        def change(site: Site) -> KroneckerChange:
            rows = self.rows(site, targets)
            shapes = {name: self.shapes(site, block) for name, block in rows.items()}
            return KroneckerChange(rows, site.width, shapes, self.scale, generator)

        return changed(backbone, self.sites(anatomy), change)

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(
            math.prod(shape)
            for site, rows in self.row_blocks(anatomy)
            for block in rows.values()
            for shape in self.shapes(site, block)
        )


def divisor_near_root(number: int) -> int:
    """The largest divisor of a positive `number` that is not above its square root."""
    return next(d for d in range(math.isqrt(number), 0, -1) if number % d == 0)
