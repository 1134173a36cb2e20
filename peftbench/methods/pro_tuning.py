"""Pro-tuning: a prompt block at each stage (Nie et al., 2022, arXiv 2207.14381)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("pro_tuning")
@dataclass(frozen=True)
class ProTuning(Method):
    """A 1 x 1, a depthwise 5 x 5 and a 1 x 1 convolution make a prompt of each stage's map."""

    reduction: int = 4  # the hidden channels are those of the stage by this
    kernel_size: int = 5
    stages: int = 4  # into which the blocks of a net of one stage are cut

    card: ClassVar[MethodCard] = MethodCard(
        title="Pro-tuning",
        summary="x + W_up g(D(g(W_down x))) at the end of each stage: 1x1, depthwise 5x5 and 1x1 "
        "convolutions make a prompt of the map, which the next stage reads with it.",
        paper="arXiv:2207.14381",
        section="3",
        reference="none: no official code was found",
        identity_at_init=True,
        mergeable=False,
        deviations=(
            "a re-implementation of which no detail could be verified: stages are said to get "
            "prompt blocks of three such convolutions, whose result is added to the map",
            "ours are the width of the bottleneck, the GELU between the convolutions, the zero "
            "start of the last one and the place behind the last block of a stage",
            "a net of one stage is cut into four runs of blocks; on tokens the prompt is of the "
            "patches, and the last run has none where the class token is read",
        ),
        look=("#E69F00", "D"),
    )

    def validate(self) -> None:
        for key in ("reduction", "stages"):
            value = getattr(self, key)
            self.require(value >= 1, f"{key}={value}; use 1 or more.")
        self.require(
            self.kernel_size >= 1 and self.kernel_size % 2 == 1,
            f"kernel_size={self.kernel_size}; use an odd number.",
        )

    def check(self, anatomy: Anatomy) -> None:
        blocks = anatomy.where(Role.BLOCK)
        if not blocks:
            raise Unsupported(
                f"pro_tuning stands behind the stages, and {anatomy.finds} no blocks. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        on_maps = all(block.is_map for block in blocks)
        if not on_maps and (anatomy.tokens is None or anatomy.tokens.grid is None):
            raise Unsupported(
                f"pro_tuning needs to know the rows of patches, and the tokens of this "
                f"{anatomy.family} backbone are not known to be in rows. "
                f"{advice(self.name, anatomy)}"
            )
        if not self.sites(anatomy):
            raise Unsupported(
                f"pro_tuning prompts patches, and no block of this {anatomy.family} backbone lets "
                f"them reach what is read behind it. {advice(self.name, anatomy)}"
            )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The blocks behind which a prompt is added."""
        blocks = anatomy.where(Role.BLOCK)
        if anatomy.tokens is None:
            ends = {block.stage: block for block in blocks if block.called}
            return tuple(ends.values())
        cuts = {anatomy.depth * (i + 1) // self.stages - 1 for i in range(self.stages)}
        if anatomy.tokens.pooled == "token":
            cuts.discard(anatomy.depth - 1)
        return tuple(block for block in blocks if block.depth in cuts and block.called)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers import frozen_conv
        from peftbench.methods.layers.stage_prompts import StagePrompt

        device = next(backbone.parameters()).device
        sites = self.sites(anatomy)
        if not all(site.channels_last for site in sites):
            frozen_conv.keep_no_inputs(backbone)  # a prompted map is no output of an activation
        prompts: dict[str, nn.Module] = {}
        for site in sites:
            tokens = None if site.is_map else anatomy.tokens
            prompts[site.path] = StagePrompt(
                site.width,
                self._hidden(site),
                self.kernel_size,
                site.channels_last,
                tokens,
                generator,
            ).to(device)
            block = backbone.get_submodule(site.path)
            surgery.replace(backbone, site.path, surgery.ResidualAdapter(block, prompts[site.path]))
        return Attachment(
            backbone,
            parameters_of(*prompts.values()),
            touched=tuple(prompts),
            train_modules=tuple(prompts.values()),
        )

    def _hidden(self, site: Site) -> int:
        return max(1, site.width // self.reduction)

    def expected_params(self, anatomy: Anatomy) -> int:
        area = self.kernel_size**2
        return sum(
            2 * site.width * self._hidden(site) + (area + 2) * self._hidden(site) + site.width
            for site in self.sites(anatomy)
        )
