"""What goes into a run: backbone, data set and what happens to the pixels."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from peftbench.canonical import later
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.spec.naming import called

CHECKPOINT = "checkpoint"  # what the pretrained weights were trained with
NORMALISATIONS = (CHECKPOINT, "imagenet", "inception", "none")  # whose mean and deviation
RESIZES = ("squash", "crop")
WHOLE = "whole"  # how pictures are kept that crops are cut from: squashed, beside their own sizes
TF_BILINEAR = "tf_bilinear"  # of `tf.image.resize`: without antialias
PILLOW = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # as it calls them
INTERPOLATIONS = (*PILLOW, TF_BILINEAR)
TRAIN_AND_VAL, TRAIN_ONLY = "train+val", "train"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # of a module, and a function in it
FINAL_PARTS = (TRAIN_AND_VAL, TRAIN_ONLY)  # what the final phase trains on


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
    # a YAML file that corrects which layers methods address; read when the run is built, so that
    # its content is the identity
    anatomy: str = later("")
    # "module:function" of the user's own that builds the model for num_classes=N; `name` is this
    # text too, and `pretrained` says nothing
    factory: str | None = later(None)

    def __post_init__(self) -> None:
        if self.factory is not None and not FACTORY.fullmatch(self.factory):
            raise ConfigError(
                f"backbone.factory={self.factory!r} is not MODULE:FUNCTION. Write for example "
                "backbone.factory=my_models:small."
            )
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"backbone.image_size={self.image_size} is not a positive size.")


@dataclass(frozen=True)
class DatasetFacts:
    """What is published about a data set; what lies on disk is checked against it.

    `None` where there is no such number, or where it follows from others.
    """

    title: str = ""
    classes: int | None = None  # filled when the run is built
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
    "group_copies",
)
TOLD = ("title", "content")  # what is told of a data set beside its identity


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
    title: str = later("")  # of a user's own set: what tables call it; not identity, see `naming`
    # of a user's own set: hash of its images and labels, whatever the splits, filled when the run
    # is built; not identity, `manifest` is
    content: str = later("")
    # of images without splits of their own: how many parts take turns as test, and whose turn it is
    folds: int | None = later(None)
    fold: int | None = later(None)  # counts from 0
    group_column: str | None = later(None)  # images with one value there stay in one split
    # so do copies of an image, where splits are drawn; not identity, `manifest` is
    group_copies: bool = later(True)
    facts: DatasetFacts = NO_FACTS  # neither identity nor recorded

    def __post_init__(self) -> None:
        object.__setattr__(self, "shifts", tuple(self.shifts))  # configurations deliver lists
        if self.final_trains_on not in FINAL_PARTS:
            raise unknown_name("dataset.final_trains_on", self.final_trains_on, FINAL_PARTS)
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"dataset.limit={self.limit} keeps no image. Use a positive number or leave it out."
            )

        self._check_folds()

    def _check_folds(self) -> None:
        if self.folds is None:
            if self.fold is not None:
                raise ConfigError(
                    f"dataset.fold={self.fold} is one of how many? Add dataset.folds=5, or leave "
                    "it out."
                )
            return
        if self.folds < 2:
            raise ConfigError(
                f"dataset.folds={self.folds} leaves nothing to train on. Use 2 or more."
            )
        every = ",".join(map(str, range(min(self.folds, 10))))
        if self.fold is None:
            raise ConfigError(
                f"dataset.folds={self.folds}: a run tests one fold, named by dataset.fold. All of "
                f"them: peftbench run -m dataset.folds={self.folds} dataset.fold={every}"
            )
        if not 0 <= self.fold < self.folds:
            raise ConfigError(
                f"dataset.fold={self.fold}: dataset.folds={self.folds} count from 0 to "
                f"{self.folds - 1}."
            )

    @property
    def called(self) -> str:
        """What tables and messages call it."""
        place = {"root": self.root, "hub": self.hub}
        return called({"name": self.name, "reader": self.reader, "title": self.title, **place})


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


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STATISTICS = {  # of the normalisations that have a name
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1, as the original ViT
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
