"""RepAdapter: linear adapters that fold into the layer behind (Luo et al., arXiv 2302.08106)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.canonical import later
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn


BRANCHES: Mapping[str, tuple[Role, ...]] = {
    "both": (Role.ATTN_IN, Role.MLP_IN),
    "attention": (Role.ATTN_IN,),
    "mlp": (Role.MLP_IN,),
}


@register_method("repadapter")
@dataclass(frozen=True)
class RepAdapter(Method):
    """A linear adapter with a grouped second layer in front of attention and of the MLP."""

    bottleneck: int = 8  # h
    groups: int = 2
    scale: float = 1.0  # s; the released configurations choose it for each task
    dropout: float = 0.1  # on the bottleneck
    # "attention" alone is `repattn` of the released code, "both" its `repblock`; or "mlp" alone
    branches: str = later("both")

    card: ClassVar[MethodCard] = MethodCard(
        title="RepAdapter",
        summary="n + s W_up(W_down n + b) on what attention and MLP read, linear, W_up in two "
        "groups; folds into qkv and fc1.",
        paper="arXiv:2302.08106",
        section="3.2-3.3",
        reference="luogen1996/RepAdapter@360992f repadapter.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
            "where attention pads its windows (Swin), the padding is adapted too, so that merging "
            "is exact",
            "on ConvNeXt and Mixer it stands in front of the channel MLP only, which is ours",
        ),
        look=("#0072B2", "D"),
    )

    def validate(self) -> None:
        if self.branches not in BRANCHES:
            raise unknown_name(f"branches of method={self.name}:", self.branches, BRANCHES)
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(
            self.groups >= 1 and self.bottleneck >= 1 and self.bottleneck % self.groups == 0,
            f"bottleneck={self.bottleneck} is not a positive multiple of groups={self.groups}.",
        )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return anatomy.where(*BRANCHES[self.branches])

    def check(self, anatomy: Anatomy) -> None:
        sites = self.sites(anatomy)
        places = [(site.depth, site.role) for site in sites]
        if not sites or len(set(places)) < len(places):
            problem = "no such layer" if not sites else "several side by side"
            raise Unsupported(
                "repadapter stands in front of one projection for attention and one for the MLP, "
                f"and {anatomy.finds} {problem}. "
                f"{advice(self.name, anatomy)}"
            )
        for site in sites:
            if not site.called or site.kind is not Kind.LINEAR:
                why = "is read as a weight and never called" if not site.called else "is no linear"
                raise Unsupported(
                    f"repadapter changes the input of {site.path!r}, which in this "
                    f"{anatomy.family} backbone {why}. {advice(self.name, anatomy)}"
                )
            assert site.fan_in is not None
            if site.fan_in % self.groups:
                raise Unsupported(
                    f"repadapter cannot cut the {site.fan_in} channels of this {anatomy.family} "
                    f"backbone into {self.groups} groups. Set method.groups."
                )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from torch import nn

        from peftbench.methods import surgery
        from peftbench.methods.layers.linear_adapter import LinearAdapter

        adapters: dict[str, LinearAdapter] = {}
        for site in self.sites(anatomy):
            assert site.fan_in is not None
            adapter = LinearAdapter(
                site.fan_in, self.bottleneck, self.groups, self.scale, self.dropout
            )
            nn.init.xavier_uniform_(adapter.down.weight, generator=generator)
            for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
                nn.init.zeros_(tensor)
            adapters[site.path] = adapter
            base = backbone.get_submodule(site.path)
            surgery.replace(backbone, site.path, surgery.InputAdapter(base, adapter))
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
        )

    def unmergeable(self, anatomy: Anatomy) -> str:
        rigid = next((site for site in self.sites(anatomy) if not site.has_bias), None)
        if rigid is None:
            return ""
        return (
            f"repadapter adds a constant to the output of {rigid.path!r}, which has no bias to "
            "take it"
        )

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods.layers.linear_adapter import fold

        fold(model, self.name)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        h = self.bottleneck
        return sum(
            (site.fan_in or 0) * (h + h // self.groups + 1) + h for site in self.sites(anatomy)
        )
