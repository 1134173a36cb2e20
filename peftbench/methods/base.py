"""What a tuning method is, and how it is applied to a backbone."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.canonical import as_declared, plain
from peftbench.errors import ConfigError, NoEffect, NotMergeable, Unsupported
from peftbench.methods import surgery
from peftbench.registry import Registry, unknown_name


@dataclass(frozen=True)
class MethodCard:
    """Where a method comes from and what it promises; the contract tests hold it to that."""

    title: str
    paper: str
    section: str  # section or equation of the definition
    reference: str  # official repository, with the commit that parity was checked against
    identity_at_init: bool  # output equals the bare backbone before the first step
    mergeable: bool  # the tuned model folds into a plain backbone
    version: int = 1  # raised when the method's behaviour changes; part of every run's identity
    head_only: bool = False  # touches nothing in the backbone
    frozen_mode: str = "eval"  # mode of the layers that do not train
    deviations: tuple[str, ...] = ()  # from the paper or its released code, and why
    summary: str = ""  # the method in one sentence with its formula
    dead_at_init: bool = False  # kept as released although some tensors never get a gradient
    look: tuple[str, str] | None = None  # colour and marker in figures; by default from the name


@dataclass(frozen=True)
class Attachment:
    """What a method did to a backbone."""

    model: nn.Module  # the backbone, or a module around it
    trainable: tuple[nn.Parameter, ...]  # exactly these train, besides the head
    touched: tuple[str, ...]  # paths of the sites that were changed or unfrozen
    train_modules: tuple[nn.Module, ...] = ()  # in train mode while fitting; the rest in eval mode
    regulariser: Callable[[], Tensor] | None = None  # added to the loss
    notes: tuple[str, ...] = ()  # what a reader of the record must know


@dataclass(frozen=True)
class Method(ABC):
    """A tuning method. Fields of a subclass are its hyper-parameters and its config schema."""

    name: ClassVar[str] = ""  # set by `register_method`
    card: ClassVar[MethodCard]

    def __post_init__(self) -> None:
        # configurations deliver lists; a frozen value must be hashable
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        as_declared(self)
        self.validate()

    def validate(self) -> None:  # noqa: B027 - most methods accept what their types accept
        """Raise `ConfigError` for hyper-parameters that make no sense."""

    def check(self, anatomy: Anatomy) -> None:  # noqa: B027 - some methods are defined everywhere
        """Raise `Unsupported` with a reason where the method is not defined."""

    @abstractmethod
    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        """Change `backbone` in place; new tensors are drawn from `generator` on the CPU."""

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """The classifier on `width` features: one linear layer unless the method says otherwise."""
        return linear_head(width, num_classes, generator)

    def offline(self) -> Method:
        """The same method with new tensors that need no network; a stored task overwrites them."""
        return self

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the tuned `model` in place into a plain backbone and return it."""
        raise NotMergeable(f"{self.card.title} ({self.name}) cannot be folded into the weights.")

    @abstractmethod
    def expected_params(self, anatomy: Anatomy) -> int:
        """Trainable parameters without the head, in closed form."""

    def identity(self) -> dict[str, Any]:
        """Name, version of behaviour and hyper-parameters as plain JSON values."""
        return {
            "name": self.name,
            "version": self.card.version,
            "hyperparameters": plain(dataclasses.asdict(self)),
        }

    def require(self, condition: bool, message: str) -> None:
        """Raise `ConfigError` that names the method unless `condition` holds."""
        if not condition:
            raise ConfigError(f"method={self.name}: {message}")

    def require_variant(self, variant: str) -> None:
        """Raise `UnknownName` unless `variant` is the default or the released behaviour."""
        if variant not in VARIANTS:
            raise unknown_name(f"variant of method={self.name}:", variant, VARIANTS)


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# what the paper means and works, or what the official code does where that differs
VARIANTS = ("default", "released")
METHODS: Registry[type[Method]] = Registry("method")
M = TypeVar("M", bound=type[Method])


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator that registers a method, its schema and its tests under `name`."""

    def register(cls: M) -> M:
        if not hasattr(cls, "card"):
            raise TypeError(f"{cls.__name__} needs a MethodCard in its class attribute `card`.")
        cls.name = name
        METHODS.register(name)(cls)
        return cls

    return register


@dataclass(frozen=True)
class Tuned:
    """A backbone with a method and a head, ready to fit. Tensors are named as in `model`."""

    method: Method
    model: nn.Module
    anatomy: Anatomy
    method_params: dict[str, nn.Parameter]  # added by the method
    unfrozen_params: dict[str, nn.Parameter]  # of the backbone
    head_params: dict[str, nn.Parameter]
    changing_buffers: dict[str, Tensor]  # running statistics that training updates
    train_modules: tuple[nn.Module, ...]
    touched: tuple[str, ...]
    regulariser: Callable[[], Tensor] | None
    notes: tuple[str, ...]

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that an optimiser step may change."""
        return {**self.method_params, **self.unfrozen_params, **self.head_params}

    def train(self, frozen_mode: str = "method") -> None:
        """Put what trains in train mode and everything else in eval mode.

        With `frozen_mode="train"` everything is in train mode, as in most released codes, so that
        dropout and drop-path of the frozen layers act. Only batch norms that do not train stay in
        eval mode: their statistics belong to the backbone.
        """
        self.model.train(frozen_mode == "train")
        for module in self.model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        for module in self.train_modules:
            module.train()

    def state(self) -> dict[str, Tensor]:
        """All that one task needs besides the pretrained backbone."""
        return {name: tensor.detach() for name, tensor in self._stored().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `state` holds; its names and shapes must be exactly those of this model."""
        own = self._stored()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise ValueError(f"the tuned tensors differ in {len(differing)} names: {differing[:3]}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name}: {tuple(state[name].shape)} for {tuple(tensor.shape)}")
        for name, tensor in own.items():  # only now: a refused state changes nothing
            tensor.copy_(state[name])

    def _stored(self) -> dict[str, Tensor]:
        """The tensors of `state` as the model holds them now; moving it makes new buffers."""
        model = self.model
        parameters = {name: model.get_parameter(name) for name in self.trainable}
        return {**parameters, **{name: model.get_buffer(name) for name in self.changing_buffers}}


def as_method(declared: object) -> Method:
    """The method of a run, which a run knows by its name and identity alone.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(declared, Method):
        raise TypeError(f"{declared!r} is no method")
    return declared


def apply(
    method: Method,
    backbone: nn.Module,
    anatomy: Anatomy,
    num_classes: int | None,
    generator: torch.Generator,
) -> Tuned:
    """Attach `method` and a new head to `backbone` in place; `None` classes keep the classifier.

    Raises:
        ConfigError: the classifier is to be kept, and the method makes one of its own.
        Unsupported: the method is not defined on this backbone.
        NoEffect: the method touched nothing.
    """
    method.check(anatomy)
    device = next(backbone.parameters()).device
    old_head = backbone.get_submodule(anatomy.head)
    if not isinstance(old_head, nn.Linear):
        raise Unsupported(
            f"the classifier {anatomy.head!r} is a {type(old_head).__name__}; only linear "
            "classifiers can be replaced."
        )
    head: nn.Module = old_head
    if num_classes is not None:
        head = method.head(anatomy.head_width, num_classes, generator)
        surgery.replace(backbone, anatomy.head, head)
    elif not isinstance(method.head(anatomy.head_width, 2, torch.Generator()), nn.Linear):
        raise ConfigError(f"method={method.name} makes a head of its own. Give num_classes.")
    backbone.eval()
    head_ids = {id(p) for p in head.parameters()}
    original_ids = {id(p) for p in backbone.parameters()} - head_ids
    attachment = method.attach(backbone, anatomy, generator)
    if not attachment.trainable and not method.card.head_only:
        raise NoEffect(
            f"{method.name} changed nothing on this backbone (family {anatomy.family}): it found "
            "none of its sites."
        )
    model = attachment.model
    surgery.freeze_except(model, (*attachment.trainable, *head.parameters()))
    chosen = {id(p) for p in attachment.trainable}
    names = {id(p): name for name, p in model.named_parameters()}
    outside = [i for i in chosen | head_ids if i not in names]
    if outside:
        raise NoEffect(f"{method.name} declared {len(outside)} parameters outside the model.")
    train_modules = (*attachment.train_modules, head)
    buffer_ids = {id(b) for module in train_modules for b in module.buffers()}
    buffers = [n for n, b in model.named_buffers() if id(b) in buffer_ids]
    saved = model.state_dict().keys()  # leaves out buffers that are rebuilt, such as masks
    model.to(device)
    parameters = dict(model.named_parameters())  # moving to the meta device makes new objects

    def pick(ids: set[int]) -> dict[str, nn.Parameter]:
        return {name: parameters[name] for i, name in names.items() if i in ids}

    return Tuned(
        method=method,
        model=model,
        anatomy=anatomy,
        method_params=pick(chosen - original_ids),
        unfrozen_params=pick(chosen & original_ids),
        head_params=pick(head_ids),
        changing_buffers={n: model.get_buffer(n) for n in buffers if n in saved},
        train_modules=train_modules,
        touched=attachment.touched,
        regulariser=attachment.regulariser,
        notes=attachment.notes,
    )


def linear_head(width: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear classifier, weights uniform in ±1/sqrt(width), biases zero."""
    head = nn.Linear(width, num_classes)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head


def parameters_of(*modules: nn.Module) -> tuple[nn.Parameter, ...]:
    """The parameters of `modules`, each once, in order."""
    unique = {id(p): p for module in modules for p in module.parameters()}
    return tuple(unique.values())


def without_head(backbone: nn.Module, anatomy: Anatomy) -> list[tuple[str, nn.Module]]:
    """Named modules of the backbone outside its classifier."""
    head = anatomy.head
    return [
        (path, module)
        for path, module in backbone.named_modules()
        if path != head and not path.startswith(f"{head}.")
    ]
