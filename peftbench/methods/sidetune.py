"""Side-tuning (Zhang et al., 2020, §3, arXiv 1912.13503) in the form of Jia et al., 2022, §4.1."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.backbones.describe import weightless_copy
from peftbench.errors import Unsupported, WeightsError
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method

ALEXNET_PARAMS = 2_469_696  # five convolutions with biases
ALEXNET_WIDTH = 256 * 6 * 6
ALEXNET_SIDE = 64  # pixels; of smaller images its poolings leave nothing


class AlexNetTrunk(nn.Module):
    """The convolutions of AlexNet and the average pool behind them."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 9216) from images (B, 3, H, W)."""
        size = tuple(max(side, ALEXNET_SIDE) for side in x.shape[-2:])
        if size != x.shape[-2:]:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        pooled: Tensor = self.pool(self.features(x))
        return pooled.flatten(1)


class BackboneTrunk(nn.Module):
    """The first layers of a timm backbone, up to its intermediate output number `index`."""

    def __init__(self, trunk: nn.Module, index: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_side) from images (B, 3, H, W): the mean over positions, prefix tokens left out."""
        intermediate: Tensor = self.trunk.forward_intermediates(  # type: ignore[operator]
            x,
            indices=[self.index],
            norm=False,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )[0]
        return intermediate.mean((2, 3))


class SideTuned(nn.Module):
    """A frozen backbone whose feature is blended with that of a network beside it."""

    def __init__(
        self, backbone: nn.Module, head: str, side: nn.Module, projection: nn.Linear, alpha: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head  # path of the classifier inside the backbone
        self.side = side
        self.projection = projection
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of images (B, 3, H, W)."""
        features = self.backbone.forward_features(x)  # type: ignore[operator]
        pooled = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        share = self.alpha.sigmoid()
        blended = share * pooled + (1 - share) * self.projection(self.side(x))
        logits: Tensor = self.backbone.get_submodule(self.head)(blended)
        return logits


@register_method("sidetune")
@dataclass(frozen=True)
class SideTune(Method):
    """a B(x) + (1 - a) P S(x), a = sigmoid(alpha); S, P, alpha and the head train."""

    side: str = "alexnet"  # S; "backbone" is a copy of the backbone's own first layers
    weights: str = "random"  # of AlexNet; "imagenet" downloads torchvision's file once
    alpha: float = 0.0  # at the start; 0 weighs both features alike
    side_depth: int = 1  # blocks of the copy where blocks exchange tokens; else its first stage

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
        if self.side == "alexnet":
            if anatomy.channels != 3:
                raise Unsupported(
                    f"sidetune with side=alexnet reads 3 channels, and the images of this backbone "
                    f"have {anatomy.channels}. Use method.side=backbone."
                )
            return
        if not anatomy.depth:
            raise Unsupported(
                f"sidetune with side=backbone needs to know the blocks, and family "
                f"{anatomy.family!r} describes none. Use method.side=alexnet."
            )
        if anatomy.tokens is not None and self.side_depth > anatomy.depth:
            raise Unsupported(
                f"sidetune asks for the first {self.side_depth} blocks, but this {anatomy.family} "
                f"backbone has {anatomy.depth}. Set method.side_depth."
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
            raise Unsupported(
                f"sidetune needs the feature in front of the classifier, and "
                f"{type(backbone).__name__} (family {anatomy.family}) has no forward_features and "
                "forward_head. Use method=linear, bias or full."
            )
        side: nn.Module
        if self.side == "backbone":
            side = self._first_layers(backbone, anatomy)
        else:
            features = _imagenet_trunk() if self.weights == "imagenet" else _random_trunk(generator)
            side = AlexNetTrunk(features)
        projection = nn.utils.skip_init(
            nn.Linear, self._side_width(anatomy), anatomy.head_width, bias=False
        )
        _draw(projection, generator)
        model = SideTuned(backbone, anatomy.head, side, projection, self.alpha)
        notes = []
        if self.side == "alexnet" and anatomy.image_size < ALEXNET_SIDE:
            notes.append(
                f"images of {anatomy.image_size} pixels are enlarged to {ALEXNET_SIDE} (bilinear) "
                "for the side network"
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

    def _first_layers(self, backbone: nn.Module, anatomy: Anatomy) -> BackboneTrunk:
        """A trainable copy of stem and first blocks, with the weights of the backbone.

        Raises:
            Unsupported: timm cannot cut this model behind exactly these blocks.
        """
        wanted = anatomy.num_params - sum(s.num_params for s in self._left_out(anatomy))
        # timm numbers intermediate outputs by block, by stage, or from the stem on
        for index in range(anatomy.depth):
            trial = weightless_copy(backbone)
            if not _cut(trial, index, anatomy):
                break
            if sum(p.numel() for p in trial.parameters()) == wanted:
                trunk = copy.deepcopy(backbone)
                _cut(trunk, index, anatomy)
                return BackboneTrunk(trunk, index)
        raise Unsupported(
            f"sidetune with side=backbone copies the first blocks, and timm cannot cut this "
            f"{anatomy.family} backbone behind them. Use method.side=alexnet."
        )


def _cut(model: nn.Module, index: int, anatomy: Anatomy) -> bool:
    """Remove what follows intermediate output number `index`; False where there is none."""
    prune = getattr(model, "prune_intermediate_layers", None)
    if prune is None:
        return False
    try:
        prune([index], prune_norm=True, prune_head=True)
    except AssertionError:
        return False
    paths = dict(model.named_modules()).keys()
    for site in anatomy.where(Role.AFTER):  # such as the norm of a head that stays
        if site.path in paths:
            surgery.replace(model, site.path, nn.Identity())
    return True


def _random_trunk(generator: torch.Generator) -> nn.Sequential:
    """AlexNet's convolutions with PyTorch's initial values, drawn from `generator`."""
    with torch.device("meta"):  # draws nothing from the global generator
        features = alexnet(weights=None).features
    features = features.to_empty(device="cpu")
    for module in features:
        if isinstance(module, nn.Conv2d):
            _draw(module, generator)
    return features


def _imagenet_trunk() -> nn.Sequential:
    """AlexNet's convolutions as torchvision pretrained them.

    Raises:
        WeightsError: the file is neither in the cache of torch.hub nor within reach.
    """
    with torch.device("meta"):
        features = alexnet(weights=None).features
    source, prefix = AlexNet_Weights.IMAGENET1K_V1, "features."
    try:
        state = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
        own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        features.load_state_dict(own, assign=True)
    except (OSError, RuntimeError, EOFError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise WeightsError(
            f"method=sidetune with weights=imagenet needs {source.url}, which cannot be had "
            f"({reason[:120]}). Run once with a network, copy the file into "
            f"{torch.hub.get_dir()}/checkpoints, or use method.weights=random."
        ) from e
    return features


def _draw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's own distribution for weights and biases: uniform in ±1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # Kaiming uniform with a = sqrt(5)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
