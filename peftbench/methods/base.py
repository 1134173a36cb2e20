"""What a tuning method is. Declaring one needs no torch; what builds tensors imports it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.canonical import as_declared, declared, later, plain
from peftbench.errors import ConfigError, NotMergeable
from peftbench.methods.chosen_blocks import READERS, of_chosen_blocks
from peftbench.registry import Registry, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.methods.layers.passes import MethodObjective
    from peftbench.methods.layers.solvable import Solvable


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
    solved: bool = False  # its head is computed of all features at once, and takes no steps
    frozen_mode: str = "eval"  # mode of the layers that do not train
    deviations: tuple[str, ...] = ()  # from the paper or its released code, and why
    summary: str = ""  # the method in one sentence with its formula
    dead_at_init: bool = False  # kept as released although some tensors never get a gradient
    look: tuple[str, str] | None = None  # colour and marker in figures; by default from the name
    dynamic: bool = False  # at inference, what it computes of an image depends on the image
    needs_classes: bool = False  # its objective reads one class an image, so that none are mixed
    layer_decay: bool = False  # trains the backbone's own layers; see `Recipe.layer_decay`
    prepared: bool = False  # looks at training images before it is attached; see `Method.prepare`


class TrainingImages(Protocol):
    """The images of the train split, in an order that the seed decides; nothing else is shown."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalised images (B, 3, S, S) and their classes (B,), each image once."""

    def __len__(self) -> int:
        """Number of batches."""


@dataclass(frozen=True)
class Preparation:
    """What a method learnt of the training images before it was attached."""

    tensors: Mapping[str, Tensor]  # where to begin; a stored task overwrites what is made of them
    facts: Mapping[str, Any] = field(default_factory=dict)  # plain values for the record


class StepHook(Protocol):
    """What a method does behind every training step; its state is saved with the training's."""

    def __call__(self, step: int, total: int) -> None:
        """Step `step`, from 1, of `total` changed the weights; their gradients are still there."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


@dataclass(frozen=True)
class Attachment:
    """What a method did to a backbone."""

    model: nn.Module  # the backbone, or a module around it
    trainable: tuple[nn.Parameter, ...]  # exactly these train, besides the head
    touched: tuple[str, ...]  # paths of the sites that were changed or unfrozen
    train_modules: tuple[nn.Module, ...] = ()  # in train mode while fitting; the rest in eval mode
    regulariser: Callable[[], Tensor] | None = None  # added to the loss
    notes: tuple[str, ...] = ()  # what a reader of the record must know
    # frozen tensors that belong to the task and not to the backbone, such as random directions:
    # stored with what trains
    fixed: tuple[Tensor, ...] = ()
    frozen_modules: tuple[nn.Module, ...] = ()  # inside `train_modules`, and in eval mode
    after_step: StepHook | None = None
    objective: MethodObjective | None = None  # in place of the task's loss


@dataclass(frozen=True)
class Method(ABC):
    """A tuning method. Fields of a subclass are its hyper-parameters and its config schema."""

    name: ClassVar[str] = ""  # set by `register_method`
    card: ClassVar[MethodCard]
    # False where the definition is about the whole backbone or about none of it
    takes_blocks: ClassVar[bool] = True

    # the residual blocks that it acts on, from 0, or from the end with -1; none given: all, and
    # what lies around them
    blocks: tuple[int, ...] = later((), keyword=True)

    def __init_subclass__(cls, **options: Any) -> None:
        """What a method says of an anatomy it says of the blocks that are chosen."""
        super().__init_subclass__(**options)
        if callable(vars(cls).get("blocks")):
            raise TypeError(f"{cls.__name__}.blocks is a field of every method; name it otherwise.")
        for reader in READERS:
            if reader in vars(cls):
                setattr(cls, reader, of_chosen_blocks(vars(cls)[reader]))

    def __post_init__(self) -> None:
        # configurations deliver lists; a frozen value must be hashable
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, list):
                object.__setattr__(self, each.name, tuple(value))
        as_declared(self)
        self.require(
            self.takes_blocks or not self.blocks,
            f"blocks={list(self.blocks)}, but it is not a method of single blocks. Leave "
            "method.blocks out.",
        )
        self.require(
            len(set(self.blocks)) == len(self.blocks), f"blocks={list(self.blocks)} repeat one."
        )
        self.validate()

    def validate(self) -> None:  # noqa: B027 - most methods accept what their types accept
        """Raise `ConfigError` for hyper-parameters that make no sense."""

    def check_installed(self) -> None:  # noqa: B027 - most methods need nothing else
        """Raise `ConfigError` that says how to install a package that is missing."""

    def check(self, anatomy: Anatomy) -> None:  # noqa: B027 - some methods are defined everywhere
        """Raise `Unsupported` with a reason where the method is not defined."""

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:  # noqa: B027 - as `check`
        """As `check`, by trying copies of modules where no description says whether it works."""

    @property
    def looks_at_images(self) -> bool:
        """Whether `prepare` is asked; a method with what it would find needs no images."""
        return self.card.prepared

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        """What the method must know of the training images; only of those whose card says so.

        `backbone` is bare and left as it was. The same images and the same state of `generator`
        give the same.
        """
        raise NotImplementedError(f"{self.name} looks at no images.")

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        """As `attach`, from where `prepare` found that training should begin.

        What is attached has the same tensors of the same shapes as without it, so that a stored
        task is loaded without images; where images decide of that, `settled` was asked before.
        """
        raise NotImplementedError(f"{self.name} looks at no images.")

    def settled(self, facts: Mapping[str, Any]) -> Method:
        """The same method with the structure that `prepare` found, by the facts that it gave.

        Only of methods of which images decide what there is to train. A record and the card of a
        stored task have the facts, so that its tensors are known without images.
        """
        return self

    @abstractmethod
    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        """Change `backbone` in place; new tensors are drawn from `generator` on the CPU."""

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """The classifier on `width` features: one linear layer unless the method says otherwise."""
        from peftbench.methods.layers.heads import linear_head

        return linear_head(width, num_classes, generator)

    def solve(self, head: nn.Module, given: Solvable) -> None:
        """Compute what `head` made, in place; only of methods whose card says `solved`."""
        raise NotImplementedError(f"{self.name} trains by steps.")

    def offline(self) -> Method:
        """The same method with new tensors that need no network; a stored task overwrites them."""
        return self

    def stored_as(self, anatomy: Anatomy) -> Method:
        """The method as which a finished task is stored and loaded; this one unless it can be less.

        Another one has the same hyper-parameters but for what only training needs.
        """
        return self

    def stored_state(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a finished task, by their names in a model of what it is stored as.

        Of those of the trained `model`, by their names there.
        """
        return state

    def unmoved(self) -> tuple[str, ...]:
        """Patterns of names of trained tensors that never leave their start; all others must move.

        A shell pattern such as "*.down.weight"; the card's deviations say why.
        """
        return ()

    def unmergeable(self, anatomy: Anatomy) -> str:
        """Why `merge` will refuse this backbone although the card says `mergeable`, else empty."""
        return ""

    def not_identity(self, anatomy: Anatomy) -> str:
        """Why this backbone does not start as it was, though `identity_at_init`; else empty."""
        return ""

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the tuned `model` in place into a plain backbone and return it."""
        raise NotMergeable(f"{self.card.title} ({self.name}) cannot be folded into the weights.")

    @abstractmethod
    def expected_params(self, anatomy: Anatomy) -> int:
        """Trainable parameters without the head, in closed form."""

    @classmethod
    def fields_of(cls, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that make the method whose `identity` has these hyper-parameters."""
        return dict(hyperparameters)

    def identity(self) -> dict[str, Any]:
        """Name, version of behaviour and hyper-parameters as plain JSON values."""
        return {
            "name": self.name,
            "version": self.card.version,
            "hyperparameters": plain(declared(self)),
        }

    def require(self, condition: bool, message: str) -> None:
        """Raise `ConfigError` that names the method unless `condition` holds."""
        if not condition:
            raise ConfigError(f"method={self.name}: {message}")

    def require_variant(self, variant: str) -> None:
        """Raise `UnknownName` unless `variant` is the default or the released behaviour."""
        if variant not in VARIANTS:
            raise unknown_name(f"variant of method={self.name}:", variant, VARIANTS)


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


def as_method(declared: object) -> Method:
    """The method of a run, which a run knows by its name and identity alone.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(declared, Method):
        raise TypeError(f"{declared!r} is no method")
    return declared


def parameters_of(*modules: nn.Module) -> tuple[nn.Parameter, ...]:
    """The parameters of `modules`, each once, in order."""
    unique = {id(p): p for module in modules for p in module.parameters()}
    return tuple(unique.values())


def without_head(backbone: nn.Module, anatomy: Anatomy) -> list[tuple[str, nn.Module]]:
    """Named modules of the backbone outside its classifier."""
    return [
        (path, module)
        for path, module in backbone.named_modules()
        if not f"{path}.".startswith(anatomy.head_prefixes)
    ]
