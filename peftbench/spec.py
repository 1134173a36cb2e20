"""What a run is: frozen values whose canonical form is its identity; known without torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from peftbench.canonical import (
    IDENTITY_VERSION,
    as_declared,
    declared,
    digest,
    later,
    plain_dict,
)
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.tasks import CLASSIFICATION, Task


class Phase(StrEnum):
    """`TUNE` trains on train and reports val; `FINAL` trains on train+val and reports test."""

    TUNE = "tune"
    FINAL = "final"


class Precision(StrEnum):
    """Arithmetic of the forward pass. Trainable weights are float32 in every case."""

    AUTO = "auto"  # bfloat16 autocast where the device is faster with it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


SPLIT_OF_PHASE: Mapping[str, str] = {Phase.FINAL: "test", Phase.TUNE: "val"}  # reported
CHECKPOINT = "checkpoint"  # what the pretrained weights were trained with
NORMALISATIONS = (CHECKPOINT, "imagenet", "inception", "none")  # whose mean and deviation
RESIZES = ("squash", "crop")
WHOLE = "whole"  # how pictures are kept that crops are cut from: squashed, beside their own sizes
CROP_FLIP, RANDOM_CROP_FLIP = "crop_flip", "random_crop_flip"
AUGMENTATIONS = ("none", "flip", CROP_FLIP, RANDOM_CROP_FLIP)
# side of the squares of such pictures by that of the input: 384 and 256 for 224
WHOLE_BY_INPUT = {CROP_FLIP: 12 / 7, RANDOM_CROP_FLIP: 8 / 7}
TF_BILINEAR = "tf_bilinear"  # of `tf.image.resize`: without antialias
PILLOW = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # as it calls them
INTERPOLATIONS = (*PILLOW, TF_BILINEAR)
LAST, BEST_ON_TEST = "last", "best_on_test"
SELECTIONS = (LAST, BEST_ON_TEST)  # which epoch is reported
TRAIN_AND_VAL, TRAIN_ONLY = "train+val", "train"
FINAL_PARTS = (TRAIN_AND_VAL, TRAIN_ONLY)  # what the final phase trains on
AVERAGES = ("mean_19", "mean_groups")  # over all tasks alike (VTAB has 19), or over group means
PARAMETERS = ("with_head", "without_head")


@dataclass(frozen=True)
class BackboneSpec:
    """A timm architecture with an exact pretrained tag, or local or seeded random weights."""

    name: str  # "vit_base_patch16_224.orig_in21k", or "vit_mini" for the shipped backbone
    pretrained: bool = True
    checkpoint: str | None = None  # path to local weights; wins over `pretrained`
    checkpoint_sha256: str = ""  # filled when the run is built; this, not the path, is identity
    image_size: int | None = None  # None: the size the checkpoint was trained at
    drop_path: float = 0.0  # stochastic depth rate of the parts that train
    seed: int = 0  # of random weights, read only where nothing pretrained is loaded
    title: str = ""  # short name for tables; not identity

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"backbone.image_size={self.image_size} is not a positive size.")


@dataclass(frozen=True)
class DatasetFacts:
    """What is published about a data set; what lies on disk is checked against it.

    `None` where there is no such number, or where it follows from others.
    """

    title: str = ""
    classes: int | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    folders: tuple[str, ...] = ()  # names that its folder goes by
    layouts: tuple[str, ...] = ()  # that it comes in, the preferred one first
    licence: str = ""
    source: str = ""  # where to get it
    built_from: tuple[str, ...] = ()  # configured sources of raw archives that we convert
    prepared_from: tuple[str, ...] = ()  # configured sources that unpack to what is read
    oddities: tuple[str, ...] = ()  # known issues: what people trip over

    def __post_init__(self) -> None:
        for key in ("folders", "layouts", "built_from", "prepared_from", "oddities"):  # lists
            object.__setattr__(self, key, tuple(getattr(self, key)))


NO_FACTS = DatasetFacts()
FOUND_BY = (  # fields by which a data set is found and read; not identity, `manifest` is
    "layout",
    "hub",
    "config_name",
    "revision",
    "image_column",
    "label_column",
    "train_split",
    "val_split",
    "test_split",
)


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, its suite and the hash of its list of files."""

    name: str
    reader: str  # registered reader
    suite: str = ""
    suite_version: int = 0
    group: str = ""
    root: str | None = None  # where the files are; not identity, `manifest` is
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    limit: int | None = None  # at most this many images of each split, for smoke runs
    manifest: str = ""  # roll-up hash of files and splits, filled when the run is built
    final_trains_on: str = later(TRAIN_AND_VAL)  # or "train", where val is no training material
    shots: int | None = later(None)  # training images of each class, where lists of them exist
    shot_seed: int | None = later(None)  # which of those lists
    keep_repeats: bool = later(False)  # train on an image as often as a list names it
    shifts: tuple[str, ...] = later(())  # data sets that the final model is tested on as well
    layout: str | None = later(None)  # read the folder as this one; not identity, `manifest` is
    # where and under which names a set of the Hugging Face hub has its images; see `FOUND_BY`
    hub: str | None = later(None)  # ORG/NAME, or a folder
    config_name: str | None = later(None)
    revision: str | None = later(None)
    image_column: str | None = later(None)  # None: the only one
    label_column: str | None = later(None)
    train_split: str | None = later(None)  # None: the one with the usual name
    val_split: str | None = later(None)
    test_split: str | None = later(None)
    facts: DatasetFacts = NO_FACTS  # neither identity nor recorded

    def __post_init__(self) -> None:
        object.__setattr__(self, "shifts", tuple(self.shifts))  # configurations deliver lists
        if self.final_trains_on not in FINAL_PARTS:
            raise unknown_name("dataset.final_trains_on", self.final_trains_on, FINAL_PARTS)
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"dataset.limit={self.limit} keeps no image. Use a positive number or leave it out."
            )


@dataclass(frozen=True)
class PreprocessingSpec:
    """How images become inputs; the constants come from the checkpoint unless said otherwise."""

    normalisation: str = CHECKPOINT  # or "imagenet", "inception" (0.5 and 0.5), "none" (0 to 1)
    resize: str = "squash"  # straight to the input size, as VTAB does; "crop" keeps the ratio
    interpolation: str = CHECKPOINT  # or one of `INTERPOLATIONS`
    # side of the squares that training pictures are kept in for crops to be cut from; None: 12/7 of
    # the input's for crop_flip, 8/7 for random_crop_flip. Read only where the recipe crops.
    train_size: int | None = later(None)
    # part of the short side that "crop" shows of reported pictures; None: the checkpoint's
    crop_fraction: float | None = later(None)

    def __post_init__(self) -> None:
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise ConfigError(
                f"preprocessing.crop_fraction={self.crop_fraction:g} is outside 0..1. Use the part "
                "of the short side that is shown, for example 0.875 for 224 of 256 pixels."
            )
        if self.train_size is not None and self.train_size < 1:
            raise ConfigError(f"preprocessing.train_size={self.train_size} is not a positive size.")
        for key, value, known in (
            ("normalisation", self.normalisation, NORMALISATIONS),
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, (CHECKPOINT, *INTERPOLATIONS)),
        ):
            if value not in known:
                raise unknown_name(f"preprocessing.{key}", value, known)


@dataclass(frozen=True)
class Preprocessing:
    """Resolved preprocessing: what really happens to the pixels."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: str = "squash"
    crop_fraction: float = 1.0  # read by "crop" only
    backend: str = ""  # what resizes, with its version, for the record
    train_size: int | None = None  # of whole training pictures; None where none is cropped

    @property
    def of_training(self) -> Preprocessing:
        """How training pictures are prepared: as reported ones, or whole for crops to be cut."""
        if self.train_size is None:
            return self
        return dataclasses.replace(
            self, size=self.train_size, resize=WHOLE, crop_fraction=1.0, train_size=None
        )


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
    """Which epoch is reported: the last, or the one that is best on the test split.

    The second flatters. It exists to repeat papers that did so, and only a protocol declares it.
    """

    rule: str = LAST
    every: int = 1  # with `best_on_test`, test is evaluated after each epoch that this divides,
    first: int = 1  # from this epoch on, and after the last one

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


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STATISTICS = {  # of the normalisations that have a name
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1, as the original ViT
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class DeclaredMethod(typing.Protocol):
    """What a run knows of its method, which stands above it."""

    @property
    def name(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RunSpec:
    """One run: method x backbone x data set x recipe x seed, in one phase."""

    method: DeclaredMethod
    backbone: BackboneSpec
    dataset: DatasetSpec
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    phase: Phase = Phase.FINAL
    precision: Precision = Precision.AUTO
    selection: Selection = field(default_factory=Selection)
    protocol: Protocol = field(default_factory=Protocol)
    # of a trial: (epoch after which val is looked at, accuracy without which it stops there)
    looks: tuple[tuple[int, float | None], ...] = ()
    shifts: tuple[DatasetSpec, ...] = ()  # where to find `dataset.shifts`, which are the identity
    task: Task = CLASSIFICATION  # identity and recorded only where it is another

    def __post_init__(self) -> None:
        if self.looks and self.phase is not Phase.TUNE:
            raise ConfigError(f"looks={dict(self.looks)} is for trials, which see val: phase=tune.")
        if any(epoch < 1 for epoch, _ in self.looks):
            raise ConfigError(f"looks={dict(self.looks)}: epochs count from 1.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative. Use 0 or a positive integer.")
        if self.seed >= 2**63:
            raise ConfigError(f"seed={self.seed} is too large. Use at most {2**63 - 1}.")

    def train_size(self, size: int) -> int | None:
        """Side of the squares that training pictures are kept in whole, for an input of `size`.

        `None` where the recipe does not crop.

        Raises:
            ConfigError: they would be smaller than the input.
        """
        ratio = WHOLE_BY_INPUT.get(self.recipe.augmentation)
        if ratio is None:
            return None
        chosen = self.preprocessing.train_size
        if chosen is not None and chosen < size:
            raise ConfigError(
                f"preprocessing.train_size={chosen} is smaller than the input of {size} pixels. "
                f"Use {size} or more, or null for {round(ratio * size)}."
            )
        return round(ratio * size) if chosen is None else chosen

    @property
    def selects_on_test(self) -> bool:
        """Whether test chooses the epoch; never while tuning, which does not see test."""
        return self.phase is Phase.FINAL and self.selection.rule == BEST_ON_TEST

    def identity(self) -> dict[str, Any]:
        """The declared identity as plain JSON values; equal identities mean equal runs."""
        backbone = dataclasses.asdict(self.backbone)
        dataset = declared(self.dataset)
        del backbone["title"], dataset["root"], dataset["facts"]
        for key in FOUND_BY:
            dataset.pop(key, None)
        if self.backbone.checkpoint is not None:
            backbone.update(checkpoint=None, pretrained=False)
        if self.backbone.pretrained or self.backbone.checkpoint is not None:
            del backbone["seed"]
        recipe = self.recipe.canonical()
        del recipe["name"]
        chosen = self._where_given()
        if self.selects_on_test:
            chosen["selection"] = dataclasses.asdict(self.selection)
        return plain_dict(
            {
                "identity_version": IDENTITY_VERSION,
                "method": self.method.identity(),
                "backbone": backbone,
                "dataset": dataset,
                "preprocessing": declared(self.preprocessing),
                "recipe": recipe,
                "seed": self.seed,
                "phase": self.phase,
                "precision": self.precision,
                **chosen,
            }
        )

    @property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits of SHA-256 over the canonical identity."""
        return digest(self.identity())

    def describe(self) -> dict[str, Any]:
        """Everything declared, names and paths included, for the record."""
        return plain_dict(
            {
                "method": self.method.identity(),
                "backbone": dataclasses.asdict(self.backbone),
                "dataset": {k: v for k, v in declared(self.dataset).items() if k != "facts"},
                "preprocessing": declared(self.preprocessing),
                "recipe": self.recipe.canonical(),
                "seed": self.seed,
                "phase": self.phase,
                "precision": self.precision,
                "selection": dataclasses.asdict(self.selection),
                "protocol": dataclasses.asdict(self.protocol),
                **self._where_given(),
            }
        )

    def _where_given(self) -> dict[str, Any]:
        """Looks and task; empty by default, so that runs from before there were any keep ids."""
        looks = {"looks": self.looks} if self.looks else {}
        return looks | ({} if self.task == CLASSIFICATION else {"task": self.task.name})

    def __str__(self) -> str:
        backbone = self.backbone.title or self.backbone.name
        text = f"{self.method.name} x {backbone} x {self.dataset.name}, seed {self.seed}"
        return text if self.phase is Phase.FINAL else f"{text}, {self.phase}"
