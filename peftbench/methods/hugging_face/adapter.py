"""Where `peft` changes modules, and what of its changes comes into a backbone.

`peft` replaces modules and freezes parameters by itself. So that `surgery` stays the only code that
changes a backbone, `peft` is given copies of the modules that were chosen by role, in a carrier
that holds nothing else: no head, no embedding, no module of a similar name. What it makes of each
is then put into the backbone, around the pretrained module itself, which no initialisation changed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.errors import ConfigError, NotMergeable, Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Preparation, TrainingImages
from peftbench.methods.hugging_face.declared import DeclaredTuner
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

ADAPTER = "default"  # the name that `peft` gives an adapter
LEAST_STEPS = 8  # of a training in which a tuner chooses among its parts
FORGOTTEN = 1e-4  # of a weight's largest entry: rounding, where an initialisation changed it
CHANGED = "peft changes the pretrained weights themselves, which stay as they are here."
MOST_PASSES = 200  # over batches, until directions settle
# fields that are not for a user to set: which modules, and what trains beside the tuner
OURS = ("target_modules", "exclude_modules", "modules_to_save", "peft_type", "bias", "task_type")


class LessStart(nn.Module):
    """A layer of LoRA on a pretrained weight, less what its factors gave at the start.

    PiSSA and OLoRA take the product of their first factors off the pretrained weight. This takes
    it off the output: the same function with the same gradients, and the weight stays as it was.
    """

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.register_buffer("start_down", down)
        self.register_buffer("start_up", up)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) of x (..., fan_in)."""
        y: Tensor = self.layer(x)
        low = F.linear(x, self.get_buffer("start_down"))
        return y - F.linear(low, self.get_buffer("start_up")) * self.scale

    def weight_delta(self) -> Tensor:
        """What is taken off the weight: (width, fan_in)."""
        return self.scale * self.get_buffer("start_up") @ self.get_buffer("start_down")


class Steps:
    """What a tuner does behind each step, and the terms that it adds to the loss."""

    def __init__(self, tuner: BaseTuner, schedule: Mapping[str, float]) -> None:
        self.tuner = tuner
        self.schedule = dict(schedule)
        self.trainable = {n: p for n, p in tuner.model.named_parameters() if p.requires_grad}

    def __call__(self, step: int, total: int) -> None:
        """Step `step` of `total` is done; some tuners then choose which of their parts go on."""
        if total < LEAST_STEPS:
            return
        shares = {key: max(1, round(share * total)) for key, share in self.schedule.items()}
        vars(self.tuner.peft_config[ADAPTER]).update(shares)
        self.tuner.update_and_allocate(step)

    def penalty(self) -> Tensor:
        """The terms that the tuner adds to a loss (1,), as a scalar."""
        loss: Tensor = self.tuner.forward().loss
        return loss.sum()

    def state_dict(self) -> dict[str, Any]:
        """Moving averages of importance, which parts stopped, and the ranks that were chosen."""
        return {
            "moments": {"|".join(path): tensor for path, tensor in self._moments()},
            "stopped": {n: True for n, p in self.trainable.items() if not p.requires_grad},
            "ranks": getattr(self.tuner.peft_config[ADAPTER], "rank_pattern", None) or {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        owners = self._owners()
        for path, tensor in state["moments"].items():
            owner, attribute, *keys = path.split("|")
            held = vars(owners[owner])[attribute]
            *above, last = (int(key) if key.isdigit() else key for key in keys)
            for key in above:
                held = held[key]
            held[last] = tensor
        going_on = [p for name, p in self.trainable.items() if name not in state["stopped"]]
        surgery.freeze_except(self.tuner.model, going_on)
        if state["ranks"]:
            vars(self.tuner.peft_config[ADAPTER])["rank_pattern"] = state["ranks"]

    def _owners(self) -> dict[str, object]:
        """What holds averages, by name."""
        allocator = getattr(self.tuner, "rankallocator", None)
        owners: dict[str, object] = {} if allocator is None else {"": allocator}
        return owners | dict(tuner_layers(self.tuner.model))

    def _moments(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        for name, owner in self._owners().items():
            for attribute, value in vars(owner).items():
                if attribute.startswith("exp_avg"):
                    yield from _tensors((name, attribute), value)


def _tensors(path: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The tensors in nested mappings and lists, with the way to each."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors((*path, str(key)), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _tensors((*path, str(index)), item)


def tuner_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that `peft` put in place of others, with their paths."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def config_of(method: DeclaredTuner, paths: Iterable[str], second: Iterable[str]) -> PeftConfig:
    """The tuner's configuration for exactly the modules at `paths`.

    second: those of them that are the second layer of an MLP, which one tuner treats apart.

    Raises:
        ConfigError: the installed `peft` has no such tuner, no such field or no such value.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    name = method.entry.tuner
    if name not in PeftType.__members__ or PeftType[name] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ConfigError(
            f"method={method.name}: the installed peft has no tuner {name}. Install a newer one."
        )
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name]]
    known = {field.name for field in dataclasses.fields(kind)} - {*OURS}
    settings = {key: _parsed(value) for key, value in method.settings().items()}
    for key in settings:
        if key not in known:
            raise unknown_name(f"option of method={method.name}:", key, known)
    targets = _names(set(paths))
    if "feedforward_modules" in known:
        targets, settings["feedforward_modules"] = set(paths), sorted(second)
    if "total_step" in known:  # told when training begins
        settings.setdefault("total_step", 2**31)
    try:
        with quiet():
            return kind(target_modules=sorted(targets), **_nested(name, settings))
    except (TypeError, ValueError) as e:
        raise ConfigError(f"method={method.name}: {line_of(e)}") from e


def _names(paths: set[str]) -> set[str]:
    """What matches exactly the modules at `paths` in a carrier, which holds nothing else.

    Their last names, by which one tuner finds those that share tensors; the paths themselves where
    something around them has such a name.
    """
    last = {path.rpartition(".")[2] for path in paths}
    around = {name for path in paths for name in path.split(".")[:-1]}
    return paths if last & around else last


def _parsed(value: object) -> object:
    """A value as its field takes it: text of an option as YAML reads it."""
    return yaml.safe_load(value) if isinstance(value, str) else value


def _nested(tuner: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with configurations inside configurations built: `x_config` as its own class."""
    import peft

    built = dict(settings)
    for key, value in settings.items():
        if isinstance(value, Mapping) and key.endswith("_config"):
            built[key] = getattr(peft, f"{key.removesuffix('_config').capitalize()}Config")(**value)
    return built


def quiet() -> warnings.catch_warnings:
    """Inside, `peft` gives no advice on how its own interface is used."""
    return warnings.catch_warnings(action="ignore")


def line_of(error: Exception) -> str:
    """The first line of what a library says, as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return text if text.endswith(".") else f"{text}."


def injected(
    method: DeclaredTuner, modules: Mapping[str, nn.Module], second: Iterable[str], seed: int
) -> BaseTuner:
    """The tuner on `modules`, which it changes; what it draws depends on `seed` alone.

    Raises:
        ConfigError: a setting makes no sense to it.
        Unsupported: it does not take one of the modules.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    config = config_of(method, modules, second)
    kind = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            # what both of peft's own entrances call; one of them refuses tuners that share tensors
            tuner: BaseTuner = kind(surgery.Carrier(modules), config, ADAPTER)
    except Exception as e:  # whatever a tuner raises for a layer that it does not take
        raise Unsupported(f"peft does not take these layers: {line_of(e)}") from e
    for path in modules:
        if not hasattr(tuner.model.get_submodule(path), "base_layer"):
            raise Unsupported(f"peft leaves {path!r} as it is.")
    return tuner


def attach(
    method: DeclaredTuner,
    backbone: nn.Module,
    anatomy: Anatomy,
    generator: torch.Generator,
    prepared: Preparation | None = None,
) -> Attachment:
    """Put the tuner's layers around the modules of the method's sites."""
    sites = method.sites(anatomy)
    originals = {site.path: backbone.get_submodule(site.path) for site in sites}
    second = [site.path for site in sites if site.role is Role.MLP_OUT]
    pretrained = {path: on_cpu(module) for path, module in originals.items()}
    seed = int(torch.randint(2**31, (), generator=generator))
    tuner = injected(method, copy.deepcopy(pretrained), second, seed)
    if prepared is not None:
        _begin_at(tuner, prepared.tensors)
    trainable: dict[int, nn.Parameter] = {}
    fixed: dict[int, Tensor] = {}
    layers = []
    for path, original in originals.items():
        layer = tuner.model.get_submodule(path)
        layer = on_pretrained(layer, original, pretrained[path])
        base = {id(tensor) for tensor in (*original.parameters(), *original.buffers())}
        for parameter in layer.parameters():
            if id(parameter) not in base and parameter.requires_grad:
                trainable[id(parameter)] = parameter
            elif id(parameter) not in base:
                fixed[id(parameter)] = parameter
        saved = layer.state_dict().keys()
        fixed |= {
            id(buffer): buffer
            for name, buffer in layer.named_buffers()
            if id(buffer) not in base and (name in saved or method.entry.derived)
        }
        surgery.replace(backbone, path, layer)
        layers.append(layer)
    steps = Steps(tuner, method.entry.schedule)
    return Attachment(
        backbone,
        tuple(trainable.values()),
        touched=tuple(originals),
        train_modules=tuple(layers),
        frozen_modules=tuple(originals.values()),
        fixed=tuple(fixed.values()),
        regulariser=steps.penalty if _has_penalty(tuner) else None,
        after_step=steps if hasattr(tuner, "update_and_allocate") else None,
    )


def _has_penalty(tuner: BaseTuner) -> bool:
    """Whether the tuner adds something that trains to the loss of a model's output."""
    from peft.tuners.tuners_utils import BaseTuner

    if type(tuner).forward is BaseTuner.forward:
        return False
    return bool(tuner.forward().loss.requires_grad)


@torch.no_grad()
def on_cpu(module: nn.Module) -> nn.Module:
    """A copy in float32 on the CPU; of a module without storage one with random values."""
    if not any(parameter.is_meta for parameter in module.parameters()):
        return copy.deepcopy(module).float().cpu()
    copied = copy.deepcopy(module).to_empty(device="cpu").float()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    return copied


def on_pretrained(layer: nn.Module, original: nn.Module, pretrained: nn.Module) -> nn.Module:
    """The tuner's layer around `original` in place of the copy that the tuner was given.

    pretrained: what the copy was before, on the CPU.

    Raises:
        Unsupported: it changed the copy in a way that it could not have learnt.
    """
    base = layer.get_base_layer()  # type: ignore[operator]
    surgery.own_modules(layer)
    if isinstance(vars(layer).get("dtype"), torch.dtype):
        del vars(layer)["dtype"]
        surgery.become(layer, _following(type(layer)))
    surgery.replace(layer, "base_layer", original)
    weight = pretrained.get_parameter("weight").detach()
    changed = weight - base.get_parameter("weight").detach()
    if not changed.any():
        return layer
    down, up = (getattr(layer, name, None) for name in ("lora_A", "lora_B"))
    if not down or not up or weight.ndim != 2:
        raise Unsupported(CHANGED)
    first, second = (part[ADAPTER].weight.detach().clone() for part in (down, up))
    less = LessStart(layer, first, second, float(layer.scaling[ADAPTER]))  # type: ignore[index]
    if (less.weight_delta() - changed).abs().max() > FORGOTTEN * weight.abs().max():
        raise Unsupported(CHANGED)
    return less


def _following(kind: type[nn.Module]) -> type[nn.Module]:
    """A layer that computes in the type that its pretrained module has now."""

    def dtype(self: Any) -> torch.dtype:
        found: torch.dtype = self.get_base_layer().weight.dtype
        return found

    return type(kind.__name__, (kind,), {"dtype": property(dtype), "__module__": kind.__module__})


@torch.no_grad()
def _begin_at(tuner: BaseTuner, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite first factors by what `directions` found: (rank, fan_in) of each path."""
    for path, values in tensors.items():
        layer: Any = tuner.model.get_submodule(path)
        layer.lora_A[ADAPTER].weight.copy_(values)


def directions(
    method: DeclaredTuner,
    backbone: nn.Module,
    anatomy: Anatomy,
    images: TrainingImages,
    generator: torch.Generator,
) -> Preparation:
    """Where the inputs of each target vary most over the training images (EVA).

    Raises:
        ConfigError: there are too few images for so many directions.
    """
    from peft.tuners.lora.eva import get_eva_state_dict

    config = config_of(method, [site.path for site in method.sites(anatomy)], ())
    passes = [0]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        passes[0] += 1
        if passes[0] > MOST_PASSES:
            raise ConfigError(
                f"method={method.name}: the directions of its {len(images)} batches did not settle "
                f"in {MOST_PASSES} passes. Lower method.r."
            )
        model(batch[0])

    silent = contextlib.redirect_stdout(io.StringIO())  # it prints where a batch is small
    with torch.random.fork_rng(devices=[]), quiet(), silent:
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        found = get_eva_state_dict(
            backbone,
            images,
            config,
            forward_fn=forward,
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    wanted = {site.path for site in method.sites(anatomy)}
    tensors = {path: t.detach().cpu().float() for path, t in found.items() if path in wanted}
    return Preparation(tensors, {"batches": len(images), "passes": passes[0]})


@torch.no_grad()
def folded(model: nn.Module, name: str) -> nn.Module:
    """Fold every layer of `peft` into the pretrained module that it is around, in float64.

    Raises:
        NotMergeable: what is folded has no place in one of them.
    """
    shifted = {path: m for path, m in model.named_modules() if isinstance(m, LessStart)}
    inside = {f"{path}.layer" for path in shifted}
    plain = {path: m for path, m in tuner_layers(model) if path not in inside}
    for path, module in {**shifted, **plain}.items():
        inner: Any = module.layer if isinstance(module, LessStart) else module
        base = inner.get_base_layer()
        twin = surgery.in_float64(inner)
        try:
            with quiet():
                twin.merge()
        except Exception as e:  # whatever a tuner raises where it has no place for its change
            raise NotMergeable(f"{name} cannot be folded into {path!r}: {line_of(e)}") from e
        merged = dict(twin.get_base_layer().named_parameters())
        if merged.keys() != dict(base.named_parameters()).keys():
            raise NotMergeable(f"{name} cannot be folded into {path!r}: it has no bias.")
        for key, parameter in base.named_parameters():
            total = merged[key]
            if isinstance(module, LessStart) and key == "weight":
                total = total - surgery.in_float64(module).weight_delta()
            parameter.copy_(total)
        surgery.replace(model, path, base)
    return model
