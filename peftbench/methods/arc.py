"""ARC: adapters re-composed of one shared projection (Dong et al., 2023, arXiv 2310.06234)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import NotMergeable, Unsupported
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

    from peftbench.methods.layers.linear_adapter import ComposedAdapter

Place = tuple[int, Role]  # depth of a block, and which of its branches


@register_method("arc")
@dataclass(frozen=True)
class ARC(Method):
    """n + ((n U) ⊙ c) Uᵀ + β in front of attention and of the MLP, with U shared by all blocks."""

    rank: int = 50  # columns of U
    dropout: float = 0.0  # on the r numbers between U and its transpose
    branches: str = "both"  # "attention": only in front of attention (ARC_att)
    start: str = "zero"  # of c; "xavier": the MLP's is drawn, as in the released code
    variant: str = "default"  # "released": on Swin the MLP's adapter changes the stream

    card: ClassVar[MethodCard] = MethodCard(
        title="ARC",
        summary="n + ((n U) * c) U^T + b on what attention and MLP read: one D x r matrix U for "
        "all blocks and r + D numbers for each; folds into qkv and fc1.",
        paper="arXiv:2310.06234",
        section="3.2-3.3",
        reference="DavidYanAnDe/ARC@8227d57 Model",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "every c starts at zero; the released code draws that of the MLP, so that the tuned "
            "model is not the pretrained one at the start: start=xavier",
            "on Swin the adapter of the MLP stands behind the norm, where it folds; the released "
            "file for Swin puts it in front of the norm and of the shortcut: variant=released",
            "blocks of one stage and width share U; where q, k and v are projections of their own, "
            "they share the adapter",
            "where attention pads its windows (Swin), the padding is adapted too, so that merging "
            "is exact",
            "on ConvNeXt and Mixer it stands in front of the channel MLP only, which is ours",
        ),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require_variant(self.variant)
        for key, value, known in (
            ("branches", self.branches, ("both", "attention")),
            ("start", self.start, ("zero", "xavier")),
        ):
            if value not in known:
                raise unknown_name(f"{key} of method=arc:", value, known)

    def places(self, anatomy: Anatomy) -> Mapping[Place, tuple[Site, ...]]:
        """The layers that read through one adapter: one, or q, k and v apart."""
        roles = (Role.ATTN_IN,) if self.branches == "attention" else (Role.ATTN_IN, Role.MLP_IN)
        places: dict[Place, tuple[Site, ...]] = {}
        for site in anatomy.where(*roles):
            place = (site.depth, site.role)
            places[place] = (*places.get(place, ()), site)
        return places

    def check(self, anatomy: Anatomy) -> None:
        places = self.places(anatomy)
        if not places:
            raise Unsupported(
                f"arc stands in front of a projection for attention or for an MLP, and "
                f"{anatomy.finds} none. {advice(self.name, anatomy)}"
            )
        for sites in places.values():
            parts = [part for site in sites for part in site.parts]
            apart = len(set(parts)) == len(parts) == len(sites)
            if len(sites) > 1 and not apart:
                raise Unsupported(
                    f"arc stands in front of one projection, and {anatomy.finds} several side by "
                    f"side ({sites[0].path!r}, {sites[1].path!r}). {advice(self.name, anatomy)}"
                )
            for site in sites:
                if not site.called or site.kind is not Kind.LINEAR:
                    why = "is no linear" if site.called else "is read as a weight and never called"
                    raise Unsupported(
                        f"arc changes the input of {site.path!r}, which in this {anatomy.family} "
                        f"backbone {why}. {advice(self.name, anatomy)}"
                    )

    def on_stream(self, anatomy: Anatomy, role: Role) -> bool:
        """Whether an adapter changes the stream, shortcut included."""
        return self.variant == "released" and anatomy.family == "swin" and role is Role.MLP_IN

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        import torch
        from torch import nn

        from peftbench.methods import surgery
        from peftbench.methods.layers import stream
        from peftbench.methods.layers.linear_adapter import ComposedAdapter, ComposedChange
        from peftbench.methods.layers.shared import SharedTensor

        shared: dict[tuple[object, ...], SharedTensor] = {}
        adapters: dict[Place, ComposedAdapter] = {}
        for (depth, role), sites in self.places(anatomy).items():
            fan_in = sites[0].fan_in or 1
            key = (sites[0].stage, fan_in, role)
            if key not in shared:
                bound = math.sqrt(6 / (fan_in + self.rank))  # Xavier uniform
                u = torch.empty(fan_in, self.rank).uniform_(-bound, bound, generator=generator)
                shared[key] = SharedTensor(u)
            kind = ComposedChange if self.on_stream(anatomy, role) else ComposedAdapter
            adapter = adapters[depth, role] = kind(shared[key], self.dropout)
            if self.start == "xavier" and role is Role.MLP_IN:
                bound = math.sqrt(6 / (1 + self.rank))
                nn.init.uniform_(adapter.rescale, -bound, bound, generator=generator)
            for site in sites if kind is ComposedAdapter else ():
                base = backbone.get_submodule(site.path)
                surgery.replace(backbone, site.path, surgery.InputAdapter(base, adapter))
        touched = [site.path for sites in self.places(anatomy).values() for site in sites]
        if self.on_stream(anatomy, Role.MLP_IN):

            def of_block(entry: Site) -> nn.Module:
                return adapters[entry.depth, Role.MLP_IN]

            before = stream.ReadPoint.BEFORE
            stream.add_to_stream(backbone, anatomy, (Role.MLP_ENTRY,), before, of_block)
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(touched),
            train_modules=tuple(adapters.values()),
        )

    def unmergeable(self, anatomy: Anatomy) -> str:
        if self.branches == "both" and self.on_stream(anatomy, Role.MLP_IN):
            return "arc changes the stream in front of the MLP, which no weight does"
        for sites in self.places(anatomy).values():
            for site in sites:
                if not site.has_bias:
                    return (
                        f"arc adds a constant to the output of {site.path!r}, which has no bias to "
                        "take it"
                    )
        return ""

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods.layers.linear_adapter import ComposedChange, fold

        if any(isinstance(module, ComposedChange) for module in model.modules()):
            raise NotMergeable("arc changes the stream in front of the MLP, which no weight does.")
        fold(model, self.name)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        places = self.places(anatomy)
        shared = {(s[0].stage, s[0].fan_in or 1, role) for (_, role), s in places.items()}
        of_blocks = sum(self.rank + (sites[0].fan_in or 1) for sites in places.values())
        return of_blocks + sum(self.rank * fan_in for _, fan_in, _ in shared)
