"""SNELL: sparse changes made of distances between points (Shen et al., 2024, NeurIPS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Site
from peftbench.methods.base import Attachment, MethodCard, parameters_of, register_method
from peftbench.methods.targets import AUTO, EveryMatrix
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.kernelised import KernelChange

_FORMS = ("klora", "snell", "snella")
_KERNELS = 2


@register_method("snell")
@dataclass(frozen=True)
class SNELL(EveryMatrix):
    """W + ΔW with ΔW[b, a] = 0.1 ‖in_1[a] - out_1[b]‖ - 0.1 ‖in_2[a] - out_2[b]‖, sparse."""

    rank: int = 32  # numbers of a point, half of them for each kernel
    form: str = "snell"  # "klora": not sparse; "snella": mixed over the outputs, and sparse
    threshold: float = 0.9  # the quantile of sizes up to which entries are dropped; 0 to 0.995
    class_token: bool = True  # trains too, where the read-out is the class token
    # auto: q, k, v, proj, fc1 and fc2 apart where there is attention, fc1 and fc2 in other nets
    # with an MLP in each block, all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)

    card: ClassVar[MethodCard] = MethodCard(
        title="SNELL",
        summary="W + K * |K| where |K| is above a quantile, with K = 0.1 (distances of points for "
        "inputs and outputs) - 0.1 (such distances): a change of full rank, sparse by competition.",
        paper="arXiv:2411.01800",
        section="3.2-3.3",
        reference="ssfgunner/SNELL@e9d5185 model/vision_transformer_timm.py",
        identity_at_init=False,  # the distances of random points are not zero
        mergeable=True,
        deviations=(
            "kept entries are multiplied by their own size, which counts as a constant in the "
            "backward pass, as released: the change starts at about 1e-6",
            "the quantile is released for each task, 0 to 0.995; its schedule for SNELLA, which "
            "gives each weight a share of its own while training, is left out",
            "the class token trains as released; it is left frozen where the read-out is another",
            "outside attention and MLP the targets are ours; a convolution is changed as a matrix",
        ),
    )

    def validate(self) -> None:
        self.validate_targets()
        if self.form not in _FORMS:
            raise unknown_name("form of method=snell:", self.form, _FORMS)
        even = self.rank >= _KERNELS and self.rank % _KERNELS == 0
        self.require(even, f"rank={self.rank} is no positive even number.")
        self.require(0 <= self.threshold < 1, f"threshold={self.threshold} is not in [0, 1).")

    @property
    def quantile(self) -> float | None:
        """Up to which quantile entries are dropped, `None` where none are."""
        dense = self.form == "klora" or (self.form == "snell" and self.threshold == 0)
        return None if dense else self.threshold

    def trains_token(self, anatomy: Anatomy) -> bool:
        """Whether there is a class token that is read out, under timm's name."""
        tokens = anatomy.tokens
        read = tokens is not None and tokens.pooled == "token" and tokens.num_prefix > 0
        return self.class_token and read and not anatomy.inferred

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.kernelised import KernelChange

        targets = self.resolved(anatomy)

        def change(site: Site) -> KernelChange:
            shape = (site.width, site.fan_in or 1)
            rows = self.rows(site, targets)
            mixes = self.form == "snella"
            return KernelChange(rows, shape, self.rank, self.quantile, mixes, generator)

        changes, notes = surgery.add_deltas(backbone, self.sites(anatomy), change)
        token = (backbone.get_parameter("cls_token"),) if self.trains_token(anatomy) else ()
        return Attachment(
            backbone,
            (*token, *parameters_of(*changes.values())),
            touched=tuple(changes),
            notes=notes,
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        total = anatomy.tokens.width if anatomy.tokens and self.trains_token(anatomy) else 0
        for site, rows in self.row_blocks(anatomy):
            for start, stop in rows.values():
                total += self.rank * (stop - start + (site.fan_in or 0))
                total += 3 * (self.form == "snella")
        return total
