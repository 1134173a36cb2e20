"""Whether a model that somebody built can be tuned; where it cannot, the one true reason."""

from __future__ import annotations

import copy

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from peftbench.backbones.families import DESCRIBED
from peftbench.errors import ConfigError, Unsupported, WeightsError

PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
FEATURES = (  # what timm builds with features_only=True
    "FeatureListNet",
    "FeatureDictNet",
    "FeatureHookNet",
    "FeatureGetterNet",
    "FeatureGraphNet",
)
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "bitsandbytes.")
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_model(model: object) -> None:
    """Refuse what no method can be put on, and say why.

    Raises:
        ConfigError: it is no model of timm, or one that is wrapped, compiled, traced, quantised,
            tuned already, of several types or devices, or cannot be copied.
        Unsupported: it has no single classifier.
        WeightsError: it holds values that are not finite.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is a {type(model).__name__}, not a module. Give a model of timm, such as "
            "timm.create_model(NAME, pretrained=True)."
        )
    _check_wrapping(model)
    _check_tensors(model)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the parameters; float32 where there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def is_timm(model: nn.Module) -> bool:
    """Whether a model's class, or one that it is derived from, is timm's or one of ours."""
    return any(kind.__module__.startswith(DESCRIBED) for kind in type(model).__mro__)


def _check_wrapping(model: nn.Module) -> None:
    own = type(model).__name__
    if own == "TunedModel":
        raise ConfigError(
            "this is a tuned model already. Call peftbench.detach on it, and tune the backbone."
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.fx.GraphModule) and type(module).__name__ in FEATURES:
            break
        if obstacle := _obstacle(module, own):
            where = f"its {path!r}" if path else f"this {type(module).__name__}"
            raise ConfigError(f"{where} {obstacle}")
    if own in FEATURES:
        raise Unsupported(
            f"this {own} was built with features_only=True and has no classifier. Build the model "
            "without it."
        )
    if not hasattr(model, "get_classifier"):
        raise Unsupported(_not_timm(model))


def _obstacle(module: nn.Module, own: str) -> str:
    """Why no method goes on a model of class `own` that holds this module; empty where one does."""
    kind, origin = type(module).__name__, type(module).__module__
    if kind == "OptimizedModule":
        return (
            "is compiled by torch.compile, and its compiled code would not see a method. Tune the "
            "model that was compiled (its _orig_mod), then compile the tuned one."
        )
    if kind in PARALLEL or kind.startswith("FSDP"):
        return (
            f"is wrapped in {kind}. Tune the model inside (its .module), then wrap the tuned one."
        )
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is scripted or traced by torch.jit, which fixes its modules. Tune the model that was "
            "scripted."
        )
    if isinstance(module, torch.fx.GraphModule):
        return "is traced by torch.fx, which fixes its modules. Tune the model that was traced."
    if origin.startswith(QUANTISED):
        return (
            f"is quantised ({origin}.{kind}), and methods train beside float weights. Tune the "
            "model before quantising it."
        )
    if origin.startswith("peft."):
        return (
            "carries an adapter of the package peft. Take it off first, with merge_and_unload() "
            "or unload()."
        )
    if origin.startswith("peftbench.methods."):
        return (
            f"is a {kind} of a tuning method: this {own} carries one already. Call "
            "peftbench.detach on its tuned model, or build the backbone anew."
        )
    return ""


def _not_timm(model: nn.Module) -> str:
    """Why a model without timm's interface is refused."""
    own, origin = type(model).__name__, type(model).__module__.partition(".")[0]
    for path, module in model.named_modules():
        if path and is_timm(module) and hasattr(module, "get_classifier"):
            return (
                f"this {own} holds a {type(module).__name__} of timm at {path!r}, and has no "
                "single classifier itself. Tune that one: "
                f"peftbench.tune(model.get_submodule({path!r}), ...)."
            )
    of = f" of {origin}" if origin in ("torchvision", "transformers", "open_clip", "torch") else ""
    return (
        f"{own}{of} has no single classifier that timm's get_classifier names: it is no model of "
        "timm. Build the architecture with timm.create_model, and load its weights there."
    )


def _check_tensors(model: nn.Module) -> None:
    own = type(model).__name__
    parameters = dict(model.named_parameters())
    if not parameters:
        raise Unsupported(f"this {own} has no parameters, so there is nothing to tune.")
    for name, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigError(
                f"{name!r} of this {own} has no shape yet. Run the model once, then tune it."
            )
        if parameter.is_inference():
            raise ConfigError(
                f"{name!r} of this {own} was made in torch.inference_mode, and cannot train. Build "
                "the model outside it."
            )
        if parameter.dtype not in TYPES:
            raise ConfigError(
                f"{name!r} of this {own} is of dtype {_name(parameter.dtype)}, as of a quantised "
                "model. Tune it in float32, bfloat16, float16 or float64."
            )
    types = sorted({_name(p.dtype) for p in parameters.values()})
    if len(types) > 1:
        raise ConfigError(
            f"the parameters of this {own} are of dtypes {' and '.join(types)}. Convert the model "
            "to one, such as model.float()."
        )
    devices = sorted({str(p.device) for p in parameters.values()})
    if len(devices) > 1:
        raise ConfigError(
            f"the parameters of this {own} lie on {' and '.join(devices)}. Move the model to one "
            "device."
        )
    for name, tensor in [*parameters.items(), *_statistics(model)]:
        if not tensor.is_meta and not bool(tensor.detach().isfinite().all()):
            raise WeightsError(
                f"{name!r} of this {own} holds values that are not finite (NaN or infinity), so "
                "no method could train on it. Load its weights again."
            )


def _statistics(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Running statistics; other buffers, such as masks, hold infinities by intent."""
    return [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def uncopyable(model: nn.Module) -> str | None:
    """Where a model holds what cannot be copied, as `module.attribute`; `None` if nowhere."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f"{path}.{name}".lstrip(".")
    return None


def image_size_of(model: nn.Module) -> int:
    """Side of the square images that a timm model was built for.

    Raises:
        ConfigError: it does not say, or they are not square.
    """
    embedding = getattr(model, "patch_embed", getattr(model, "stem", None))
    size = getattr(embedding, "img_size", None)
    if size is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size", ())[-2:]
    if not size:
        raise ConfigError(
            f"this {type(model).__name__} does not say for which images it was built. "
            "Give image_size."
        )
    if len(set(size)) > 1:
        raise ConfigError(
            f"this {type(model).__name__} was built for images of {tuple(size)} pixels, which are "
            "not square. Build it with a square img_size."
        )
    return int(size[0])
