"""The library without the command line: `import peftbench as pb`, then `pb.tune(model, "lora")`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from peftbench.artefacts import card as cards
from peftbench.artefacts import task_file as files
from peftbench.artefacts.loading import backbone_of, check_finite, load_merged, named
from peftbench.backbones.accepted import check_model, image_size_of
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.classifier import has_none
from peftbench.backbones.copies import full_copy
from peftbench.backbones.corrections import NONE, Corrections, parsed, text_of
from peftbench.backbones.describe import describe
from peftbench.backbones.hashes import hash_tensors
from peftbench.errors import ConfigError, NotMergeable, WeightsError
from peftbench.methods import METHODS, Method, Tuned, apply, discover, surgery
from peftbench.methods.base import TrainingImages
from peftbench.methods.building import method_of
from peftbench.prediction import timm_form
from peftbench.prediction.answer import Prediction as Prediction
from peftbench.prediction.predictor import Predictor, lend, predictor_of
from peftbench.prediction.transform import Transform
from peftbench.results.finished import find
from peftbench.results.store import ResultsStore
from peftbench.untrusted import printable

_CARRIERS: WeakSet[nn.Module] = WeakSet()  # backbones that carry a method until `detach`
_GONE = "this tuned model was detached from its backbone. Attach the task again."


class TunedModel(nn.Module):
    """A timm model with a tuning method; computes what the tuned model computes.

    One that was loaded from a folder or a run also predicts pictures: `classes`, `transform` and
    `predict` are those of its `predictor`.
    """

    def __init__(
        self, tuned: Tuned, before: surgery.Snapshot, card: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model = tuned.model
        self.card = card  # of the exported task, with its classes and preprocessing
        self._tuned: Tuned | None = tuned
        self._before = before

    @property
    def tuned(self) -> Tuned:
        """What the method did; `ConfigError` after `detach`."""
        if self._tuned is None:
            raise ConfigError(_GONE)
        return self._tuned

    @property
    def predictor(self) -> Predictor:
        """What predicts pictures; `ConfigError` for a model that was not loaded, or is detached."""
        _ = self.tuned
        if self.card is None:
            raise ConfigError(
                "this model was tuned in memory and does not know its classes or its transform. "
                "Use one that peftbench.load or peftbench.attach gives."
            )
        return predictor_of(self.card, self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.predictor.classes

    @property
    def transform(self) -> Transform:
        """A picture (a path, a PIL image, an array) as the model takes it: (3, S, S) float32."""
        return self.predictor.transform

    @property
    def predict(self) -> Callable[..., Any]:
        """Predictions of pictures; see `peftbench.prediction.predictor.Predictor.predict`."""
        return self.predictor.predict

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's `resolve_model_data_config` reads the size and the pixels of images off."""
        told = dict(getattr(self.model, "pretrained_cfg", None) or {})
        if self.card is not None:
            pixels = self.predictor.transform.preprocessing
            told |= timm_form.pretrained_cfg(pixels, len(self.card["classes"]))
        return told

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of normalised images (B, 3, H, W)."""
        logits: Tensor = self.model(x)
        return logits

    def train(self, mode: bool = True) -> TunedModel:
        """Put what trains in train mode and the frozen rest in eval mode."""
        super().train(False)
        if mode:
            self.training = True
            self.tuned.train()
        return self

    def __repr__(self) -> str:
        if self._tuned is None:
            return "TunedModel(detached)"
        tuned, backbone = self.tuned, type(self._before.modules[0][0]).__name__
        return (
            f"TunedModel({tuned.method} on {backbone}; training {_count(tuned.method_params)} "
            f"parameters of the method, {_count(tuned.unfrozen_params)} of the backbone's "
            f"{tuned.anatomy.num_params:,} and {_count(tuned.head_params)} of the head)"
        )


class _Detached(nn.Module):
    """Stands in for a model that went back to its owner."""

    def forward(self, x: Tensor) -> Tensor:
        raise ConfigError(_GONE)


def tune(  # noqa: PLR0913 - what a user may say is said by name
    model: nn.Module,
    method: str,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    image_size: int | None = None,
    anatomy: str | Path | None = None,
    data: TrainingImages | None = None,
    **hyperparameters: Any,
) -> TunedModel:
    """Attach a method to a timm model in place, in train mode.

    Args:
        model: any timm model.
        method: one of `list_methods()`.
        num_classes: of a new linear classifier; `None` keeps the model's own, which trains.
        seed: of the new tensors.
        image_size: side of the images; by default what the model was built for.
        anatomy: a YAML file that corrects which layers are addressed; see `peftbench anatomy`.
        data: training images for a method that looks at them first, such as a `DataLoader` that
            gives batches of normalised images (B, 3, S, S) and their classes (B,).
        hyperparameters: fields of the method, such as `rank=4`.

    Raises:
        UnknownName: no such method or hyper-parameter.
        ConfigError: a value makes no sense, the method takes no training steps, the model carries a
            method already, or it is wrapped, compiled, quantised or of several types; a package
            that the method needs, or `data`, is missing.
        Unsupported: the method is not defined on this model.
        WeightsError: the model holds values that are not finite.
    """
    chosen = method_of(method, hyperparameters)
    if chosen.card.solved:
        raise ConfigError(
            f"method {method} takes no training steps: a run computes its head of the features of "
            f"all training images. Use linear, or run: peftbench run method={method}"
        )
    chosen.check_installed()
    _check_numbers(num_classes, image_size)
    _check_data(chosen, data)
    _check_free(model)
    check_model(model)
    with _undone_on_failure(model) as before:
        size = image_size_of(model) if image_size is None else image_size
        _give_classifier(model, num_classes)
        told = parsed(text_of(str(anatomy))) if anatomy is not None else NONE
        found = _describe(model, size, told)
        built = _apply(model, chosen, num_classes, found, seed, data)
        before.keep(built.trainable.values())
    return TunedModel(built, before).train()


def _check_numbers(num_classes: int | None, image_size: object) -> None:
    for name, value in (("num_classes", num_classes), ("image_size", image_size)):
        if value is not None and (type(value) is not int or value < 1):
            what = "one side in pixels" if name == "image_size" else "a number of 1 or more"
            raise ConfigError(f"{name}={printable(repr(value))[:60]} makes no sense. Give {what}.")


def _check_data(method: Method, data: object) -> None:
    if method.looks_at_images and data is None:
        raise ConfigError(
            f"method={method.name} looks at training images before it is attached. Give data=, "
            "such as a DataLoader of normalised images and their classes."
        )
    if data is not None and not method.looks_at_images:
        raise ConfigError(f"method={method.name} looks at no images. Leave data out.")


def list_methods() -> list[str]:
    """Names of all methods, built in and installed."""
    discover()
    return list(METHODS)


def trainable(tuned: TunedModel) -> list[nn.Parameter]:
    """The parameters that an optimiser should get: those of method and head, and unfrozen ones."""
    return [tuned.model.get_parameter(name) for name in tuned.tuned.trainable]


def merge(tuned: TunedModel) -> nn.Module:
    """A plain timm model that computes the same, in eval mode; `tuned` stays as it is.

    Of a loaded task it has `classes`, `transform` and `predict` too, and a `pretrained_cfg` of
    which timm makes this transform.

    Raises:
        NotMergeable: the method cannot be folded into the weights.
    """
    method = tuned.tuned.method
    merged = method.merge(full_copy(tuned.model)).eval()
    for head in tuned.tuned.anatomy.heads:
        classifier = merged.get_submodule(head.path)
        if head.width and not isinstance(classifier, nn.Linear | nn.Conv2d):
            raise NotMergeable(
                f"{method.card.title} ({method.name}) has a {type(classifier).__name__} as its "
                "head, which no plain timm model has."
            )
        if head.width and hasattr(merged, "num_classes"):
            merged.num_classes = len(classifier.get_parameter("weight"))  # type: ignore[assignment]
    return merged if tuned.card is None else _told(merged, tuned.card)


def _told(model: nn.Module, card: dict[str, Any]) -> nn.Module:
    """A plain model that knows the classes and the pixels of its card."""
    predictor = predictor_of(card, model)
    timm_form.describe(model, predictor.transform.preprocessing, len(predictor.classes))
    return lend(model, predictor)


def attach(backbone: nn.Module, path: str | Path) -> TunedModel:
    """Put an exported task onto a bare backbone in memory, in eval mode; `detach` takes it off.

    Raises:
        WeightsError: the folder holds no task, or one of another backbone.
        ConfigError: the backbone carries a task already.
    """
    folder = Path(path)
    card = files.read_card(folder)
    if card.get("kind") == "merged":
        raise WeightsError(f"{folder} holds a whole model, not a task. Use peftbench.load.")
    _check_free(backbone)
    check_model(backbone)
    method = _method_of(card, folder)
    held = files.size(folder)
    with _undone_on_failure(backbone) as before:
        size, num_classes = cards.image_size(card), len(card["classes"])
        _give_classifier(backbone, 2 if held < num_classes else num_classes)
        _check_weights(backbone, card, folder)
        with named(folder):
            told = parsed(cards.backbone(card).anatomy)
            anatomy = _describe(backbone, size, told)
            method = method.stored_as(anatomy)
            _check_size(anatomy, method, num_classes, held)
            built = _apply(backbone, method, num_classes, anatomy, seed=0)
        before.keep(built.trainable.values())
        files.load(built, folder)
        check_finite(built.state(), folder / files.TASK)
    return TunedModel(built, before, card).eval()


def _check_size(anatomy: Anatomy, method: Method, num_classes: int, held: int) -> None:
    """Refuse a method of other dimensions than the `held` numbers of its file, before it is made.

    Raises:
        WeightsError: it has more.
    """
    method.check(anatomy)
    needed = method.expected_params(anatomy) + num_classes
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        widths = [head.width for head in anatomy.heads if not head.auxiliary]
        heads = [method.head(width, num_classes, torch.Generator()) for width in widths]
        needed += sum(p.numel() for head in heads for p in head.parameters()) - num_classes
    if needed > held:
        raise WeightsError(
            f"its {method.name} for {num_classes} classes has {needed:,} numbers, and "
            f"{files.TASK} holds {held:,}. Export the run again."
        )


def detach(tuned: TunedModel) -> nn.Module:
    """The bare backbone, bit for bit what it was before `attach` or `tune`; `tuned` is used up."""
    _ = tuned.tuned  # refuses one that is detached already
    backbone = surgery.restore(tuned._before)
    _CARRIERS.discard(backbone)
    tuned._tuned = None
    tuned.model = _Detached()
    return backbone


def load(
    path: str | Path,
    checkpoint: str | Path | None = None,
    *,
    results_dir: str | Path | None = None,
) -> Any:
    """The ready model of an exported folder or of a run, in eval mode.

    A `TunedModel`, whose backbone is loaded as its card says; or a plain timm model where the
    folder was exported with `--merged`. Both have `classes` (names), `transform` (a picture as the
    model takes it) and `predict` (a path, a PIL image, an array, or a list of them).

    Args:
        path: the folder; with `results_dir`, the beginning of the id of a run in it.
        checkpoint: the file of weights that the task was tuned on, where they came from a file;
            accepted if its SHA-256 is that of the card.
        results_dir: where the record of the run is.

    Raises:
        WeightsError: files or backbone weights are missing, corrupt or others than the card's.
        ConfigError: the folder holds a whole model, and weights were given; no such run, several,
            or one that failed.
    """
    folder = Path(path)
    if results_dir is not None:
        store = ResultsStore(results_dir)
        record = find(store, str(path))
        folder = store.artefacts(record)
        if checkpoint is None:
            checkpoint = record.spec["backbone"].get("checkpoint")
    card = files.read_card(folder)
    if card.get("kind") == "merged":
        if checkpoint is not None:
            raise ConfigError(f"{folder} holds a whole model. Leave checkpoint out.")
        return _told(load_merged(card, folder), card)
    backbone = backbone_of(card, folder, checkpoint)
    return attach(backbone, folder)


def _method_of(card: dict[str, Any], folder: Path) -> Method:
    """The method of a card, as it starts without a download: its file holds what trains."""
    declared = card["spec"]["method"]
    with named(folder):
        method = method_of(declared["name"], cards.hyperparameters(card))
    if method.card.version != declared["version"]:
        made_by = printable(card["provenance"]["peftbench"])[:40]
        raise WeightsError(
            f"{folder} was tuned with version {str(declared['version'])[:20]} of {method.name}, "
            f"and this peftbench has version {method.card.version}. Install peftbench {made_by}."
        )
    method.check_installed()
    return method.offline()


def _check_free(model: object) -> None:
    if isinstance(model, nn.Module) and model in _CARRIERS:
        raise ConfigError(
            f"this {type(model).__name__} carries a tuning method already. Call "
            "peftbench.detach on its tuned model first."
        )


@contextlib.contextmanager
def _undone_on_failure(model: nn.Module) -> Iterator[surgery.Snapshot]:
    """What `model` was; whatever fails inside leaves it as it was."""
    _check_free(model)
    before = surgery.snapshot(model)
    try:
        yield before
    except BaseException:
        surgery.restore(before)
        raise
    _CARRIERS.add(model)


def _apply(
    model: nn.Module,
    method: Method,
    num_classes: int | None,
    anatomy: Anatomy,
    seed: int,
    data: TrainingImages | None = None,
) -> Tuned:
    prepared = None
    if data is not None:
        method.check(anatomy)
        generator = torch.Generator().manual_seed(seed)
        prepared = method.prepare(model.eval(), anatomy, data, generator)
    generator = torch.Generator().manual_seed(seed)
    return apply(method, model, anatomy, num_classes, generator, prepared)


def _describe(model: nn.Module, image_size: int, corrections: Corrections) -> Anatomy:
    try:
        return describe(model, image_size, corrections)
    except (AssertionError, RuntimeError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ConfigError(
            f"image_size={image_size} does not suit this {type(model).__name__}: {reason}"
        ) from e


def _give_classifier(model: nn.Module, num_classes: int | None) -> None:
    """Give a model built with `num_classes=0` the classifier that methods replace."""
    if not has_none(model):
        return
    if num_classes is None:
        raise ConfigError(
            f"this {type(model).__name__} was built with num_classes=0, so it has no classifier to "
            "keep. Give num_classes."
        )
    with torch.random.fork_rng(devices=[]):
        model.reset_classifier(num_classes)  # type: ignore[operator]


def _check_weights(backbone: nn.Module, card: dict[str, Any], folder: Path) -> None:
    found, wanted = hash_tensors(backbone), card["provenance"]["backbone_sha256"]
    if found != wanted:
        raise WeightsError(
            f"{folder} was tuned on {card['spec']['backbone']['name']} with weights {wanted[:12]}, "
            f"and this {type(backbone).__name__} has weights {found[:12]}. Use the backbone of "
            "card.json, in float32 and with nothing attached."
        )


def _count(parameters: dict[str, nn.Parameter]) -> str:
    return f"{sum(parameter.numel() for parameter in parameters.values()):,}"
