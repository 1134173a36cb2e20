"""Backbones with their weights: shipped, from a package, from timm's hub, local or random."""

from __future__ import annotations

import contextlib
import inspect
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from peftbench import network
from peftbench.backbones import factory
from peftbench.backbones.checkpoints import fitting
from peftbench.backbones.hashes import hash_tensors
from peftbench.backbones.kernels import choose_kernels
from peftbench.backbones.names import check_name
from peftbench.backbones.preprocessing import image_size, resolve_preprocessing
from peftbench.backbones.shipped import SHIPPED
from peftbench.errors import ConfigError, WeightsError
from peftbench.spec import (
    BackboneSpec,
    Preprocessing,
    PreprocessingSpec,
)


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
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The backbone that `spec` names, on `device`, in eval mode, with an untrained classifier.

    Weights are float32. `dtype` is the arithmetic of its forward passes, for which it takes the
    kernels that were measured to be fastest.

    Raises:
        UnknownName: no such architecture or tag.
        WeightsError: weights are missing, out of reach, corrupt or of the wrong shape.
    """
    check_name(spec)
    size = image_size(spec)
    meta = torch.device(device).type == "meta"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if spec.factory is not None:
            model = factory.build(spec, num_classes)
        elif meta:
            with torch.device("meta"), _named_failure(spec):
                model = _build(spec, num_classes, pretrained=False)
        else:
            from_hub = spec.pretrained and spec.checkpoint is None and spec.name not in SHIPPED
            if from_hub:
                _check_reachable(spec.name)
            with _named_failure(spec):
                model = _build(spec, num_classes, pretrained=from_hub)
    source = f"random weights, seed {spec.seed}"
    if spec.factory is not None:
        source = f"{spec.factory}, seed {spec.seed}"
    notes: tuple[str, ...] = ()
    if spec.checkpoint is not None:
        path = Path(spec.checkpoint).expanduser()
        source = str(path)
        if not meta:
            fitted = fitting.fit(path, model)
            notes = fitted.notes
            _fill(model, fitted.state)
    elif spec.pretrained and spec.factory is None:
        source = spec.name
        if spec.name in SHIPPED and not meta:
            with torch.no_grad():
                _fill(model, SHIPPED[spec.name].read(model))
    _check_patches(model, size)
    model.to(device).eval()
    choose_kernels(model, torch.device(device), dtype)
    sha256 = "" if meta else hash_tensors(model)
    resolved = resolve_preprocessing(spec, preprocessing or PreprocessingSpec(), size)
    return Backbone(model, size, resolved, sha256, source, notes)


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
    options: set[str] = set()
    for kind in type(model).__mro__:
        parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        options |= parameters.keys()
        if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            break  # others pass the rest on to the class that they are derived from, as LeViT's do
    return frozenset(options)


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
        if spec.drop_path > 0 and "drop_path_rate" in str(e):
            raise ConfigError(
                f"backbone.drop_path={spec.drop_path:g}, but {spec.name!r} has no stochastic "
                "depth. Leave it out."
            ) from e
        if spec.image_size is None:
            raise
        raise ConfigError(
            f"backbone.image_size={spec.image_size} does not suit {spec.name!r}: {e}"
        ) from e
