"""Salient channel tuning (Zhao et al., 2023, arXiv 2309.08513)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    parameters_of,
    register_method,
)
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.methods.layers.channels import Look

# mode -> role of the sites that are adapted
MODES: Mapping[str, Role] = {
    "attn": Role.MLP_ENTRY,  # the stream behind attention, as the MLP's entry sees it
    "mlp": Role.MLP_OUT,
    "qkv": Role.ATTN_IN,
}
PARTS = ("q", "v")  # that mode qkv adapts, each with channels of its own
STD = 0.02  # of the truncated normal at the start


@register_method("sct")
@dataclass(frozen=True)
class SalientChannels(Method):
    """A square linear layer on the K strongest channels of each block, which images choose."""

    channels: int = 96  # K
    mode: str = "attn"  # a key of `MODES`

    card: ClassVar[MethodCard] = MethodCard(
        title="SCT",
        summary="x[c] + W x[c] + b on the stream x behind each attention, where c are the K "
        "channels with the largest mean over classes of the L2 norm over training images.",
        paper="arXiv:2309.08513",
        section="3.2-3.3",
        reference="showlab/SCT@384cecb models/vision_transformer_sct.py, train_model_sct.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the released layer takes a factor that it never uses; here there is none",
            "mode=mlp adapts the output of the MLP and, as released, chooses by that of the block",
            "all channels where a block has fewer than K of them; outside plain ViTs the "
            "placement is ours",
            "the released code keeps the frozen blocks in train mode, with drop-path 0.1",
        ),
        look=("#D55E00", "P"),
        prepared=True,
    )

    def validate(self) -> None:
        self.require(self.channels >= 1, f"channels={self.channels}; use 1 or more.")
        if self.mode not in MODES:
            raise unknown_name("mode of method=sct:", self.mode, MODES)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """One site for each adapted module."""
        found = anatomy.where(MODES[self.mode])
        if self.mode == "qkv":
            return tuple(site for site in found if set(site.parts) & set(PARTS))
        return found

    def check(self, anatomy: Anatomy) -> None:
        sites = self.sites(anatomy)
        needs = {
            "attn": "blocks with an MLP that reads the stream",
            "mlp": "an MLP in each block",
            "qkv": "query and value projections",
        }[self.mode]
        if not sites:
            others = [mode for mode in MODES if SalientChannels(mode=mode).sites(anatomy)]
            hint = f"Set method.mode={others[0]}." if others else advice(self.name, anatomy)
            raise Unsupported(
                f"sct in mode {self.mode!r} needs {needs}, and {anatomy.finds} none. {hint}"
            )
        unseen = [site.path for site in sites if not site.called]
        if unseen:
            raise Unsupported(
                f"sct changes the output of {unseen[0]!r}, which {anatomy.family} backbones read "
                "as a weight and never call. Use method.mode=attn, or another method."
            )
        if self.mode == "mlp":
            self._check_blocks(anatomy)

    def _check_blocks(self, anatomy: Anatomy) -> None:
        """The output of each block has the channels that are adapted in it."""
        blocks = {block.depth: block for block in anatomy.where(Role.BLOCK)}
        for site in self.sites(anatomy):
            block = blocks.get(site.depth)
            if block is None or not block.called or block.width != site.width:
                raise Unsupported(
                    f"sct in mode 'mlp' chooses by the output of each block, and that of the block "
                    f"around {site.path!r} of this {anatomy.family} backbone has other channels. "
                    "Set method.mode=attn."
                )

    def count(self, site: Site) -> int:
        """How many channels of a site are adapted, of each part where it has parts."""
        return min(self.channels, site.width // max(1, len(site.parts)))

    def parts(self, site: Site) -> tuple[str, ...]:
        """The parts of a site that have channels of their own; one without a name elsewhere."""
        if self.mode != "qkv":
            return ("",)
        return tuple(part for part in PARTS if part in site.parts)

    def looks(self, anatomy: Anatomy) -> dict[str, Look]:
        """Which tensors of the plain model choose the channels, by path and part."""
        from peftbench.methods.layers.channels import Look

        blocks = {block.depth: block for block in anatomy.where(Role.BLOCK)}
        found = {}
        for site in self.sites(anatomy):
            shown = blocks[site.depth] if self.mode == "mlp" else site
            prefix = 0 if site.is_map or anatomy.tokens is None else anatomy.tokens.num_prefix
            for part in self.parts(site):
                size = shown.width // max(1, len(site.parts)) if part else shown.width
                start = site.parts.index(part) * size if part else 0
                found[_name(site, part)] = Look(
                    path=shown.path,
                    of_input=self.mode == "attn",
                    channels_last=shown.channels_last,
                    num_prefix=prefix,
                    start=start,
                    stop=start + size,
                )
        return found

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        from peftbench.methods.layers.channels import saliency, strongest

        found, classes = saliency(backbone, self.looks(anatomy), images)
        counts = {
            _name(site, part): self.count(site)
            for site in self.sites(anatomy)
            for part in self.parts(site)
        }
        chosen = {name: strongest(values, counts[name]) for name, values in found.items()}
        return Preparation(chosen, {"batches": len(images), "classes": classes})

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self._attach(backbone, anatomy, generator, {})

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        return self._attach(backbone, anatomy, generator, prepared.tensors)

    def _attach(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        chosen: Mapping[str, Tensor],
    ) -> Attachment:
        """As `attach`, on the channels (K,) that were chosen; on the first K where none were."""
        import torch

        from peftbench.methods import surgery
        from peftbench.methods.layers import frozen_conv, stream
        from peftbench.methods.layers.channels import ChannelLinear, InParts

        fixed: list[Tensor] = []

        def layer(site: Site, part: str) -> ChannelLinear:
            index = chosen.get(_name(site, part), torch.arange(self.count(site)))
            made = ChannelLinear(index, site.channels_last, STD, generator)
            fixed.append(made.get_buffer("index"))
            return made

        def make(site: Site) -> nn.Module:
            if self.mode != "qkv":
                return layer(site, "")
            return InParts({part: layer(site, part) for part in self.parts(site)}, site.parts)

        sites = self.sites(anatomy)
        adapters: dict[str, nn.Module] = {}
        if self.mode == "attn":
            adapters = stream.add_to_stream(
                backbone, anatomy, (Role.MLP_ENTRY,), stream.ReadPoint.BEFORE, make
            )
        else:
            for site in sites:
                adapters[site.path] = make(site)
                base = backbone.get_submodule(site.path)
                changed = surgery.ResidualAdapter(base, adapters[site.path])
                surgery.replace(backbone, site.path, changed)
            if not all(site.channels_last for site in sites):
                frozen_conv.keep_no_inputs(backbone)
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
            fixed=tuple(fixed),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(
            len(self.parts(site)) * (self.count(site) ** 2 + self.count(site))
            for site in self.sites(anatomy)
        )


def _name(site: Site, part: str) -> str:
    return f"{site.path}:{part}" if part else site.path
