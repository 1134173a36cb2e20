"""How a run trains and what it reports: recipe, selection of the epoch, protocol."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from peftbench.canonical import as_declared, declared, later
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

CROP_FLIP, RANDOM_CROP_FLIP = "crop_flip", "random_crop_flip"
AUGMENTATIONS = ("none", "flip", CROP_FLIP, RANDOM_CROP_FLIP)
# side of the squares of such pictures by that of the input: 384 and 256 for 224
WHOLE_BY_INPUT = {CROP_FLIP: 12 / 7, RANDOM_CROP_FLIP: 8 / 7}
LAST, BEST_ON_TEST = "last", "best_on_test"
SELECTIONS = (LAST, BEST_ON_TEST)  # which epoch is reported
AVERAGES = ("mean_19", "mean_groups")  # over all tasks alike (VTAB has 19), or over group means
PARAMETERS = ("with_head", "without_head")
BALANCED = "balanced"
BALANCES = ("none", BALANCED)  # what is done about classes of unequal size

NO_CONSISTENCY, PACE, LAZY, FAST = "none", "pace", "lazy", "fast"
CONSISTENCIES = (NO_CONSISTENCY, PACE, LAZY, FAST)  # how noisy passes are compared


@dataclass(frozen=True)
class Recipe:
    """How the trainable tensors are optimised, and what happens to the images on the way."""

    name: str = "default"
    optimizer: str = "adamw"
    lr: float = 1e-3  # at its peak; see `lr_reference_batch`
    weight_decay: float = 1e-4
    momentum: float = 0.9  # read by optimisers that have one
    epochs: int = 100  # of warm-up and decay together
    warmup_epochs: int = 10
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: str = "cosine"  # or "constant"
    batch_size: int = 64
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    lr_reference_batch: int | None = later(None)  # the peak is lr * batch_size / this; None: lr
    schedule_unit: str = later("step")  # "epoch": one rate for all steps of an epoch
    schedule_delay: int = later(0)  # epochs by which the schedule lags; FacT steps it one too late
    warmup_prefix: bool = later(True)  # decay starts behind warm-up; false: warm-up hides its start
    cooldown_epochs: int = later(0)  # at min_lr, after `epochs`
    decay: str = later("matrices")  # what weight_decay applies to; "all": biases and scales too
    eps: float | None = later(None)  # of Adam and its relatives; None leaves it to the optimiser
    drop_last: bool = later(False)  # leave out the last batch of an epoch if it is not full
    augmentation: str = later("none")  # VTAB tasks use none; or another of `AUGMENTATIONS`
    mixup: float = later(0.0)  # of the Beta distribution of the shares; 0 is off
    cutmix: float = later(0.0)  # the same; with both, each batch takes one of them
    random_erasing: float = later(0.0)  # probability that a part of an image becomes noise
    ema_decay: float | None = later(None)  # report the moving average of the trained tensors
    fixed_views: int | None = later(None)  # augmented views of an image that epochs take turns in
    checkpointing: bool = later(False)  # blocks compute activations again: time for memory
    frozen_mode: str = later("method")  # "train": dropout and drop-path of frozen layers act too
    class_weights: str = later("none")  # of the loss; "balanced": the same for each class in all
    sampling: str = later("none")  # "balanced": each draw of an image takes any class as likely
    layer_decay: float = later(1.0)  # the rate of each layer by that of the layer behind it
    consistency: str = later(NO_CONSISTENCY)  # of noisy passes: "pace", "lazy" or "fast"
    consistency_weight: float = later(1.0)  # lambda, of the squared distance
    consistency_noise: float = later(1.2)  # sigma, of the first block that has noise
    consistency_interval: int = later(2)  # with "lazy", of so many steps one compares

    def __post_init__(self) -> None:
        as_declared(self)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        if self.lr_reference_batch is None:
            return self.lr
        return self.lr * self.batch_size / self.lr_reference_batch

    @property
    def total_epochs(self) -> int:
        """Epochs of training, the cool-down included."""
        return self.epochs + self.cooldown_epochs

    def alone(self) -> Recipe:
        """The same without a comparison of noisy passes, for methods that take none."""
        values: dict[str, Any] = {f.name: f.default for f in fields(self) if "consist" in f.name}
        return replace(self, **values)

    def canonical(self) -> dict[str, Any]:
        """What is declared, by name; the same for the same training at all times."""
        values = declared(self)
        values.pop("checkpointing", None)  # the same numbers in less memory
        # `flip` was a switch of its own before `augmentation` took it in
        if self.augmentation == "flip":
            del values["augmentation"]
        # the first crops were cut from the middle of a picture: other runs, under the same name
        crops = {"crops": "whole pictures"} if self.augmentation in WHOLE_BY_INPUT else {}
        return {**values, **crops, "flip": self.augmentation != "none"}


@dataclass(frozen=True)
class Selection:
    """What a run is judged by, and which epoch is reported: the last, or the best on test.

    The metric chooses trials, looks and epochs, and is what tables show. The second rule flatters:
    it exists to repeat papers that did so, and only a protocol declares it.
    """

    rule: str = LAST
    every: int = 1  # with `best_on_test`, test is evaluated after each epoch that this divides,
    first: int = 1  # from this epoch on, and after the last one
    metric: str | None = later(None)  # of the task, which has one of its own where this is None

    def __post_init__(self) -> None:
        if self.rule not in SELECTIONS:
            raise unknown_name("selection.rule", self.rule, SELECTIONS)
        for key in ("every", "first"):
            if getattr(self, key) < 1:
                raise ConfigError(f"selection.{key}={getattr(self, key)}; use 1 or more.")

    def epochs(self, total: int) -> frozenset[int]:
        """Of `total` epochs, counted from 1, those after which test is evaluated."""
        inner = (e for e in range(self.first, total) if e % self.every == 0)
        return frozenset((*inner, total)) if self.rule == BEST_ON_TEST else frozenset()


@dataclass(frozen=True)
class Protocol:
    """The name of a set of choices, and what it says about reporting; no identity of a run."""

    name: str = "peftbench"
    seeds: tuple[int, ...] = (0, 1, 2)  # of the final runs
    average: str = "mean_19"
    parameters: str = "without_head"  # what its tables count

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))  # configurations deliver lists
        for key, known in (("average", AVERAGES), ("parameters", PARAMETERS)):
            if getattr(self, key) not in known:
                raise unknown_name(key, getattr(self, key), known)
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"seeds={list(self.seeds)}; give one or more, 0 or positive.")
