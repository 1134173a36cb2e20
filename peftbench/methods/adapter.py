"""Bottleneck adapters: Houlsby et al., arXiv 1902.00751; Pfeiffer et al., arXiv 2005.00247."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
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
from peftbench.methods.layers.design import ACTIVATIONS, INITS, Design, ReadPoint
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn


# position -> what it computes, with y the stream behind attention and u the output of the MLP
POSITIONS: Mapping[str, str] = {
    "sequential": "y + u + A(u): on the MLP's output, inside the residual branch",
    "intermediate": "z = y + u, then z + A(z - y): sequential, but behind layer scale",
    "houlsby": "sequential on both branches",
    "parallel": "y + u + A(y): beside the MLP, reads the stream",
    "parallel_norm": "y + u + A(LN2 y): beside the MLP, reads what the MLP reads",
    "pre": "y' = y + A(y), then y' + u(y'): on the stream in front of the MLP",
    "post": "z = y + u, then z + A(z): on the stream behind the block",
    "pfeiffer": "post, with a layer norm that trains in front of the adapter",
}
_ON_BRANCHES: Mapping[str, tuple[Role, ...]] = {
    "sequential": (Role.MLP_OUT,),
    "houlsby": (Role.ATTN_OUT, Role.MLP_OUT),
}
_AT_ENTRIES: Mapping[str, ReadPoint] = {
    "parallel": ReadPoint.STREAM,
    "parallel_norm": ReadPoint.BRANCH,
    "pre": ReadPoint.BEFORE,
    "intermediate": ReadPoint.OUTPUT,
}

# what a backbone lacks where there is no place for an adapter
_NEEDS: Mapping[str, str] = {
    "houlsby": "attention and an MLP in each block",
    "post": "to know the blocks",
    "pfeiffer": "to know the blocks",
}


@dataclass(frozen=True)
class BottleneckAdapter(Method):
    """What the presets share; each one has its own hyper-parameters and gives a `Design`."""

    @property
    @abstractmethod
    def position(self) -> str:
        """Where the adapters stand: a key of `POSITIONS`."""

    @property
    @abstractmethod
    def design(self) -> Design:
        """What the adapters have in common."""

    @abstractmethod
    def bottleneck_for(self, width: int) -> int:
        """Width of the bottleneck of an adapter on `width` channels."""

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """One site for each adapter; none where a block gives several tensors."""
        return tuple(site for site in anatomy.where(*_roles(self.position)) if site.called)

    def check(self, anatomy: Anatomy) -> None:
        roles = {site.role for site in self.sites(anatomy)}
        if roles == set(_roles(self.position)):
            return
        hint = advice(self.name, anatomy)
        if not anatomy.where(Role.BLOCK):
            hint += " Or tell where they are: backbone.anatomy=FILE."
        need = _NEEDS.get(self.position, "an MLP in each block")
        raise Unsupported(
            f"{self.name} (position {self.position!r}) needs {need}, and "
            f"{anatomy.finds} none. {hint}"
        )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers import frozen_conv, stream

        def make(site: Site) -> nn.Module:
            return self.adapter(site, generator)

        adapters: dict[str, nn.Module] = {}
        if self.position in _AT_ENTRIES:
            reads = _AT_ENTRIES[self.position]
            adapters = stream.add_to_stream(backbone, anatomy, (Role.MLP_ENTRY,), reads, make)
        else:
            for site in self.sites(anatomy):
                adapters[site.path] = make(site)
                plus = surgery.ResidualAdapter(
                    backbone.get_submodule(site.path), adapters[site.path]
                )
                surgery.replace(backbone, site.path, plus)
            if not all(site.channels_last for site in self.sites(anatomy)):
                frozen_conv.keep_no_inputs(backbone)  # an adapted map is no output of an activation
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
        )

    def adapter(self, site: Site, generator: torch.Generator) -> nn.Module:
        """The adapter of one site, without a residual."""
        from peftbench.methods.layers.bottleneck import Bottleneck

        bottleneck = self.bottleneck_for(site.width)
        return Bottleneck(self.design, site.width, bottleneck, site.channels_last, generator)

    def expected_params(self, anatomy: Anatomy) -> int:
        widths = [site.width for site in self.sites(anatomy)]
        return sum(_count(self.design, width, self.bottleneck_for(width)) for width in widths)


@dataclass(frozen=True)
class FixedBottleneck(BottleneckAdapter):
    """The presets with one width of the bottleneck for all adapters."""

    bottleneck: int = 8  # h

    def validate(self) -> None:
        if self.position not in POSITIONS:
            raise unknown_name(f"position of method={self.name}:", self.position, POSITIONS)
        design = self.design
        for key, known in (
            ("activation", ACTIVATIONS),
            ("init", INITS),
            ("learned_scale", ("none", "scalar", "channel")),
        ):
            value = getattr(design, key)
            if value not in known:
                raise unknown_name(f"{key} of method={self.name}:", value, known)
        self.require(design.init != "zero", "init=zero never trains; it is method=adapter_vpt.")
        self.require(self.bottleneck >= 1, f"bottleneck={self.bottleneck}; use 1 or more.")
        for key in ("dropout", "drop_path"):
            value = getattr(design, key)
            self.require(0 <= value < 1, f"{key}={value} is not in [0, 1).")

    def bottleneck_for(self, width: int) -> int:
        return self.bottleneck


def _roles(position: str) -> tuple[Role, ...]:
    if position in _ON_BRANCHES:
        return _ON_BRANCHES[position]
    return (Role.MLP_ENTRY,) if position in _AT_ENTRIES else (Role.BLOCK,)


def _count(design: Design, width: int, bottleneck: int) -> int:
    matrices = 2 * width * bottleneck
    biases = design.bias * (bottleneck + width)
    scales = {"none": 0, "scalar": 1, "channel": width}[design.learned_scale]
    norms = design.own_norm + design.norm_behind
    return matrices + biases + scales + 2 * width * norms


@register_method("adapter")
@dataclass(frozen=True)
class Adapter(FixedBottleneck):
    """A bottleneck at a chosen position; by default behind the MLP, inside its residual branch."""

    position: str = "sequential"  # a key of `POSITIONS`
    activation: str = "gelu"  # gelu, relu, quick_gelu, silu
    init: str = "lora"  # lora, houlsby, noah, bert
    dropout: float = 0.0
    scale: float = 1.0
    learned_scale: str = "none"  # none, scalar, channel
    train_norms: bool = False  # also every norm of the backbone, as Houlsby et al. do
    bias: bool = later(True)  # of both layers

    card: ClassVar[MethodCard] = MethodCard(
        title="Adapter",
        summary="z = y + u + W_up act(W_down u) with u = MLP(LN y): a bottleneck of width h behind "
        "each MLP, or at another position.",
        paper="arXiv:2005.00247",
        section="3.2; Houlsby arXiv:1902.00751 section 2; for vision arXiv:2206.04673",
        reference="ZhangYuanhan-AI/NOAH@e9c55f3; visinf/adapter_plus@191c4ab for the positions",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "the second matrix starts at zero (init=lora); NOAH's released code ends with both "
            "random and so not at the pretrained function: init=noah activation=quick_gelu "
            "dropout=0.1",
            "an adapter on a branch acts in front of layer scale and drop-path; Adapter+ puts it "
            "behind layer scale: position=intermediate",
            "the released codes keep the frozen blocks in train mode, with drop-path 0.1",
            "outside plain ViTs (Swin, ConvNeXt, Mixer, ...) the placement is ours",
        ),
        look=("#009E73", "o"),
    )

    @property
    def design(self) -> Design:
        return Design(
            activation=self.activation,
            init=self.init,
            dropout=self.dropout,
            scale=self.scale,
            learned_scale=self.learned_scale,
            bias=self.bias,
            own_norm=self.position == "pfeiffer",
        )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        norms = [backbone.get_submodule(path) for path in anatomy.norms if self.train_norms]
        attachment = super().attach(backbone, anatomy, generator)
        scales = [p for norm in norms for p in norm.parameters(recurse=False)]
        return replace(
            attachment,
            trainable=(*attachment.trainable, *scales),
            touched=(*attachment.touched, *(anatomy.norms if self.train_norms else ())),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        norms = anatomy.num_norm_params if self.train_norms else 0
        return super().expected_params(anatomy) + norms


@register_method("adapter_vpt")
@dataclass(frozen=True)
class AdapterVPT(BottleneckAdapter):
    """The adapter baseline as VPT released it; all its matrices start, and stay, at zero."""

    reduction: int = 8  # h = D // reduction; the paper's rows are 8, 64 and 256

    position: ClassVar[str] = "sequential"
    design: ClassVar[Design] = Design(init="zero")

    card: ClassVar[MethodCard] = MethodCard(
        title="Adapter (VPT, as released)",
        summary="z = y + u + W_up gelu(W_down u) with both matrices at zero, where they stay: only "
        "one bias of each adapter ever trains. For chasing published numbers.",
        paper="arXiv:2203.12119",
        section="4.1, baseline 'Adapter'",
        reference="KMnP/vpt@4410440 src/models/vit_adapter",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "dead initialisation, kept on purpose: with W_down = W_up = 0 and gelu(0) = 0 the "
            "gradients of both matrices and of the first bias are exactly zero; method=adapter "
            "works",
            "counts all its parameters, as the paper does, though only D of each adapter move",
        ),
        dead_at_init=True,
        look=("#009E73", "X"),
    )

    def validate(self) -> None:
        self.require(self.reduction >= 1, f"reduction={self.reduction}; use 1 or more.")

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        narrow = [site.width for site in self.sites(anatomy) if site.width < self.reduction]
        if narrow:
            raise Unsupported(
                f"adapter_vpt with reduction={self.reduction} leaves no bottleneck on the "
                f"{narrow[0]} channels of this {anatomy.family} backbone. Set a lower "
                "method.reduction."
            )

    def bottleneck_for(self, width: int) -> int:
        return width // self.reduction

    def unmoved(self) -> tuple[str, ...]:
        return ("*.adapter.down.*", "*.adapter.up.weight")
