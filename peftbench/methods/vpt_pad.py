"""Visual prompts as a border of the image (Jia et al., 2022, §5, arXiv 2203.12119)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn


@register_method("vpt_pad")
@dataclass(frozen=True)
class VPTPad(Method):
    """Learned pixels around the image, which stays as large as it was."""

    num_tokens: int = 5  # N, width of the border in pixels; the paper chooses among 1, 3 ... 11

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="VPT-pad",
        summary="A learned border P of N pixels surrounds the image x: logits = f([P, x, P]).",
        paper="arXiv:2203.12119",
        section="5, 'Apply VPT to ConvNets'",
        reference="KMnP/vpt@4410440 src/models/resnet.py, convnext.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the border is normalised with the ImageNet statistics on every backbone, as in the "
            "released code, even where the checkpoint has others",
            "defined for all described convolutional families; the released code has ResNet and "
            "ConvNeXt",
        ),
        look=("#E69F00", "s"),
    )

    def validate(self) -> None:
        self.require(self.num_tokens >= 1, f"num_tokens={self.num_tokens}; use 1 or more.")

    def check(self, anatomy: Anatomy) -> None:
        if anatomy.channels != 3:
            raise Unsupported(
                f"{self.name} learns a border of 3 channels, and the images of this backbone have "
                f"{anatomy.channels}."
            )
        if anatomy.size_refusal:
            raise Unsupported(
                f"{self.name} enlarges the image, but {anatomy.family} backbones take no larger "
                f"one: {anatomy.size_refusal}. {advice(self.name, anatomy)}"
            )
        if not (anatomy.where(Role.EMBED) and anatomy.where(Role.SPATIAL_CONV)):
            raise Unsupported(
                f"{self.name} enlarges the image, which needs convolutional blocks, and "
                f"{anatomy.finds} none. {advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.pixels import BorderedStem

        path = anatomy.where(Role.EMBED)[0].path
        stem = BorderedStem(
            backbone.get_submodule(path), self.num_tokens, anatomy.image_size, generator
        )
        surgery.replace(backbone, path, stem)
        return Attachment(backbone, (stem.top_bottom, stem.left_right), touched=(path,))

    def expected_params(self, anatomy: Anatomy) -> int:
        both, side = 2 * self.num_tokens, anatomy.image_size
        return 3 * both * (side + both) + 3 * side * both
