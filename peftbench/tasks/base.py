"""What a task is: the one thing that training, scoring and reports ask what they are about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

from peftbench.errors import ConfigError
from peftbench.registry import Registry, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# what is kept of each image, by name; the first axis counts images
ImageRows: TypeAlias = "Mapping[str, np.ndarray]"


@dataclass(frozen=True)
class Metric:
    """A number that a run can be judged by and tables made of, a fraction; higher is better."""

    name: str  # in records: "top1" of "test/top1"
    title: str  # in a caption: "top-1 accuracy"
    short: str  # behind a number: "top-1"
    figure: str  # in the name of a figure: "accuracy"
    of: Callable[[ImageRows], float] = field(repr=False)  # of rows, also of those from a file
    classes: int | None = None  # how many there must be, each with an image; None: any number
    # of rows from a file, how far it may be from that of the rows that the file was made of
    rounding: Callable[[ImageRows], float] = field(default=lambda rows: 0.0, repr=False)


class Task(ABC):
    """What is learned from images. A subclass is a frozen dataclass without required fields.

    A model's outputs go one way to a loss, the other way to rows, which are all that metrics are
    computed from.
    """

    name: ClassVar[str] = ""  # set by `register_task`
    scores: ClassVar[tuple[Metric, ...]]  # a run is judged by the first, or by one it declares
    fractions: ClassVar[frozenset[str]]  # metrics that lie in [0, 1]
    stored: ClassVar[Mapping[str, str]]  # rows that are written to a file, with their types

    @property
    def score(self) -> Metric:
        """What a run is judged by that declares nothing else."""
        return self.scores[0]

    def metric(self, name: str | None) -> Metric:
        """What a run is judged by that declares `name`, or nothing.

        It chooses epochs and trials, and is what tables show first.

        Raises:
            UnknownName: the task has no such metric.
        """
        if name is None:
            return self.score
        for known in self.scores:
            if known.name == name:
                return known
        raise unknown_name("selection.metric", name, [known.name for known in self.scores])

    def scored(self, rows: ImageRows, num_classes: int) -> dict[str, float]:
        """By name, each of `scores` that is defined for so many classes and for these images."""
        values = {m.name: m.of(rows) for m in self.scores if m.classes in (None, num_classes)}
        return {name: value for name, value in values.items() if value == value}

    @abstractmethod
    def outputs(self, raw: Tensor) -> Tensor:
        """What loss and rows are computed from, in float32, of a model's own output (B, ...)."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """What training minimises: a scalar, the mean over images.

        Args:
            outputs: (B, ...), from `outputs`.
            targets: (B,) classes, or (B, classes) shares where images are mixed.
            label_smoothing: share of a target that is spread over all classes.
        """

    def weighted_loss(
        self, outputs: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor
    ) -> Tensor:
        """The same with classes that weigh `weights` (C,): a mean that `weight_of` divides.

        Raises:
            ConfigError: the task has no classes to weigh.
        """
        raise ConfigError(
            f"recipe.class_weights weighs classes in a loss, which task={self.name} has not. Use "
            "recipe.class_weights=none."
        )

    def weight_of(self, targets: Tensor, weights: Tensor) -> Tensor:
        """What `targets` (B, ...) weigh together, by `weights` (C,) of the classes: ()."""
        raise NotImplementedError

    @abstractmethod
    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) whether each image counts as right while it trains; labels: (B,)."""

    @abstractmethod
    def among(self, outputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """`outputs` (N, ...) as if `classes` (K,) were all there are, in that order."""

    @abstractmethod
    def rows(self, outputs: np.ndarray, labels: np.ndarray) -> ImageRows:
        """What is kept of each image; outputs: (N, ...) float32, labels: (N,)."""

    @abstractmethod
    def metrics(self, rows: ImageRows, num_classes: int) -> dict[str, float]:
        """All numbers of a split by name, from what `rows` gave; those of `scored` among them."""


T = TypeVar("T", bound=type[Task])
TASKS: Registry[type[Task]] = Registry("task")


def register_task(name: str) -> Callable[[T], T]:
    """Decorator for a subclass of `Task`: records and configurations know it as `name`."""

    def store(task: T) -> T:
        task.name = name
        TASKS.register(name)(task)
        return task

    return store
