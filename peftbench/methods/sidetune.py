"""Side-tuning (Zhang et al., 2020, §3, arXiv 1912.13503) in the form of Jia et al., 2022, §4.1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

if TYPE_CHECKING:
    import torch
    from torch import nn

ALEXNET_PARAMS = 2_469_696  # five convolutions with biases
ALEXNET_WIDTH = 256 * 6 * 6


@register_method("sidetune")
@dataclass(frozen=True)
class SideTune(Method):
    """a B(x) + (1 - a) P S(x), a = sigmoid(alpha); S, P, alpha and the head train."""

    side: str = "alexnet"  # S; "backbone" is a copy of the backbone's own first layers
    weights: str = "random"  # of AlexNet; "imagenet" downloads torchvision's file once
    alpha: float = 0.0  # at the start; 0 weighs both features alike
    side_depth: int = 1  # blocks of the copy where blocks exchange tokens; else its first stage

    takes_blocks: ClassVar[bool] = False

    card: ClassVar[MethodCard] = MethodCard(
        title="Side-tuning",
        paper="arXiv:1912.13503",
        section="3; AlexNet as the side network: arXiv:2203.12119, 4.1, baseline 'Sidetune'",
        reference="KMnP/vpt@4410440 src/models/vit_models.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "AlexNet starts from random weights, so that runs need no network; the released code "
            "takes torchvision's pretrained ones: weights=imagenet",
            "images below 64 pixels are enlarged for AlexNet; the released code takes 224",
        ),
        summary="A small network S trains beside the frozen backbone B, and the head sees "
        "a B(x) + (1 - a) P S(x) with a = sigmoid(alpha).",
        look=("#CC79A7", "v"),
    )

    def validate(self) -> None:
        self.require(
            self.side in ("alexnet", "backbone"),
            f"side={self.side!r}; use 'alexnet' or 'backbone'.",
        )
        self.require(
            self.weights in ("random", "imagenet"),
            f"weights={self.weights!r}; use 'random' or 'imagenet'.",
        )
        self.require(
            self.weights == "random" or self.side == "alexnet",
            "weights=imagenet are those of AlexNet; with side=backbone leave weights=random.",
        )
        self.require(self.side_depth >= 1, f"side_depth={self.side_depth}; use 1 or more.")

    def check(self, anatomy: Anatomy) -> None:
        if len([head for head in anatomy.heads if not head.auxiliary]) > 1:
            raise Unsupported(
                "sidetune blends the one feature of the classifier, and this "
                f"{anatomy.family} backbone has {len(anatomy.heads)} classifiers with features of "
                f"their own. {advice(self.name, anatomy)}"
            )
        if self.side == "alexnet":
            if anatomy.channels != 3:
                raise Unsupported(
                    f"sidetune with side=alexnet reads 3 channels, and the images of this backbone "
                    f"have {anatomy.channels}. Use method.side=backbone."
                )
            return
        if not anatomy.depth:
            raise Unsupported(
                f"sidetune with side=backbone needs to know the blocks, and "
                f"{anatomy.finds} none. Use method.side=alexnet."
            )
        if anatomy.tokens is not None and self.side_depth > anatomy.depth:
            raise Unsupported(
                f"sidetune asks for the first {self.side_depth} blocks, but this {anatomy.family} "
                f"backbone has {anatomy.depth}. Set method.side_depth."
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from torch import nn

        from peftbench.methods.layers import side as networks

        if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
            raise Unsupported(
                f"sidetune needs the feature in front of the classifier, and "
                f"{type(backbone).__name__} (family {anatomy.family}) has no forward_features and "
                f"forward_head. {advice(self.name, anatomy)}"
            )
        side: nn.Module
        if self.side == "backbone":
            side = networks.first_layers(backbone, anatomy, self._left_out(anatomy))
        else:
            pretrained = self.weights == "imagenet"
            features = networks.imagenet_trunk() if pretrained else networks.random_trunk(generator)
            side = networks.AlexNetTrunk(features)
        projection = nn.utils.skip_init(
            nn.Linear, self._side_width(anatomy), anatomy.head_width, bias=False
        )
        networks.draw(projection, generator)
        at_head = anatomy.head_on_maps or not networks.is_feature_before_head(backbone, anatomy)
        model = networks.SideTuned(backbone, anatomy.head, side, projection, self.alpha, at_head)
        notes = []
        if self.side == "alexnet" and anatomy.image_size < networks.ALEXNET_SIDE:
            notes.append(
                f"images of {anatomy.image_size} pixels are enlarged to {networks.ALEXNET_SIDE} "
                "(bilinear) for the side network"
            )
        return Attachment(
            model,
            (model.alpha, *parameters_of(side, projection)),
            touched=(anatomy.head,),  # it reads the blended feature
            train_modules=(side, projection),
            notes=tuple(notes),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        side = ALEXNET_PARAMS
        if self.side == "backbone":
            side = anatomy.num_params - sum(s.num_params for s in self._left_out(anatomy))
        return side + self._side_width(anatomy) * anatomy.head_width + 1

    def offline(self) -> SideTune:
        return dataclasses.replace(self, weights="random")

    def _kept(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Blocks of the backbone that are copied into the side network."""
        blocks = anatomy.where(Role.BLOCK)
        if anatomy.tokens is not None:
            return blocks[: self.side_depth]
        return tuple(block for block in blocks if block.stage == blocks[0].stage)

    def _left_out(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Later blocks, and what lies between and behind them."""
        kept = self._kept(anatomy)
        return (
            *(s for s in anatomy.where(Role.BLOCK) if s not in kept),
            *(s for s in anatomy.where(Role.TRANSITION) if s.depth > kept[-1].depth),
            *anatomy.where(Role.AFTER),
        )

    def _side_width(self, anatomy: Anatomy) -> int:
        return ALEXNET_WIDTH if self.side == "alexnet" else self._kept(anatomy)[-1].width
