"""The scaled parallel adapter of the unified view (He et al., 2022, arXiv 2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.parallel import ParallelBottleneck

NORMS = ("none", "in", "out")


@register_method("parallel_adapter")
@dataclass(frozen=True)
class ParallelAdapter(Method):
    """A scaled bottleneck beside each MLP, on what the MLP reads."""

    bottleneck: int = 512  # h
    scale: float = 4.0  # s; where it trains, its start
    learned_scale: bool = False  # one for each adapter; the released one starts at 1
    norm: str = "none"  # a layer norm that trains: "in" front, or "out" behind the scale
    dropout: float = 0.0  # on the bottleneck

    card: ClassVar[MethodCard] = MethodCard(
        title="Parallel adapter",
        summary="z = y + MLP(n) + s W_up relu(W_down n) with n = LN y: a bottleneck of width h "
        "beside each MLP that reads what the MLP reads, scaled by s = 4.",
        paper="arXiv:2110.04366",
        section="4.4-4.6",
        reference="jxhe/unify-parameter-efficient-tuning@3222ce2c petl/petl_factory.py "
        "Adapter_Layer",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "defined for language, where the norm stands behind the MLP; in vision the place is "
            "ours",
            "its change is added behind layer scale and drop-path of the block",
            "norm=out cancels a scale but for its epsilon, as released: learned_scale hardly moves "
            "there",
            "a ConvNeXt block is one branch, beside which it stands",
        ),
        look=("#009E73", "1"),
    )

    def validate(self) -> None:
        self.require(self.bottleneck >= 1, f"bottleneck={self.bottleneck}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        if self.norm not in NORMS:
            raise unknown_name(f"norm of method={self.name}:", self.norm, NORMS)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return tuple(site for site in anatomy.where(Role.MLP_ENTRY) if site.called)

    def check(self, anatomy: Anatomy) -> None:
        if not self.sites(anatomy):
            raise Unsupported(
                f"{self.name} stands beside the MLP of each block, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch
        from torch import nn

        from peftbench.methods.layers import stream
        from peftbench.methods.layers.parallel import ParallelBottleneck

        def make(site: Site) -> ParallelBottleneck:
            scale = nn.Parameter(torch.tensor([self.scale])) if self.learned_scale else self.scale
            adapter = ParallelBottleneck(
                site.width, self.bottleneck, scale, self.norm, self.dropout, site.channels_last
            )
            adapter.start(generator)
            return adapter

        adapters = stream.add_to_stream(
            backbone, anatomy, (Role.MLP_ENTRY,), stream.ReadPoint.BRANCH, make
        )
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        h, scale, norms = self.bottleneck, int(self.learned_scale), 2 * (self.norm != "none")
        return sum((2 * h + 1 + norms) * site.width + h + scale for site in self.sites(anatomy))
