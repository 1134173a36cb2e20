"""What a model says of pictures: classes and probabilities, one picture or any number of them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from peftbench.artefacts import card as cards
from peftbench.data import threads
from peftbench.errors import ConfigError, DataError, WeightsError
from peftbench.prediction.answer import TOP, Prediction, check_top
from peftbench.prediction.transform import Transform
from peftbench.spec import Precision
from peftbench.tasks import CLASSIFICATION
from peftbench.tasks.classification import softmax
from peftbench.training.device import Compute, choose_dtype
from peftbench.training.evaluate import predict

if TYPE_CHECKING:
    from peftbench.prediction.transform import Picture

    Several: TypeAlias = list[Picture] | tuple[Picture, ...]

AT_ONCE = 128  # pictures in memory, as in the test: the same batches round alike


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model with what is needed to predict pictures of any kind with it."""

    model: nn.Module
    classes: tuple[str, ...]  # names, in the order of the logits
    transform: Transform
    dtype: torch.dtype = torch.float32  # arithmetic of the forward pass in the test
    exact: bool = True  # whether it is kept where this machine is slow at it, as it was asked for

    @overload
    def predict(
        self, pictures: str | os.PathLike[str] | Image.Image, top: int = ...
    ) -> Prediction: ...
    @overload
    def predict(self, pictures: Several, top: int = ...) -> list[Prediction]: ...
    @overload
    def predict(self, pictures: np.ndarray, top: int = ...) -> Any: ...

    def predict(self, pictures: Picture | Several, top: int = TOP) -> Any:
        """What the model says: a `Prediction` of one picture, a list of several.

        Args:
            pictures: the path of a file, a PIL image, an RGB array (H, W, 3) uint8; or several, as
                a list of these or an array (N, H, W, 3).
            top: classes to name, the likeliest first.

        Raises:
            DataError: a file is missing, broken, or no picture.
            ConfigError: something else is given, or `top` is no number of classes.
        """
        check_top(top)
        several = isinstance(pictures, list | tuple)
        if isinstance(pictures, np.ndarray):
            several = pictures.ndim == 4
        given: Any = pictures if several else [pictures]
        answers: list[Prediction] = []
        for answer in self.stream(given, top):
            if isinstance(answer, DataError):
                raise answer
            answers.append(answer)
        return answers if several else answers[0]

    def stream(
        self, pictures: Iterable[Picture], top: int = TOP
    ) -> Iterator[Prediction | DataError]:
        """What the model says of each picture, in order; for one that cannot be read, the reason.

        However many there are, `AT_ONCE` of them and those that threads read ahead are in memory.
        """
        with ThreadPoolExecutor(threads.count(), "peftbench-pictures") as pool:
            read = threads.in_order(pool, self._read, pictures)
            with contextlib.closing(read):  # type: ignore[type-var]
                while batch := list(itertools.islice(read, AT_ONCE)):
                    squares = [square for square in batch if not isinstance(square, DataError)]
                    answers = iter(self._answers(squares, top))
                    for square in batch:
                        yield square if isinstance(square, DataError) else next(answers)

    def _read(self, picture: Picture) -> np.ndarray | DataError:
        try:
            return self.transform.pixels(picture)
        except DataError as error:
            return error

    def _answers(self, squares: Sequence[np.ndarray], top: int) -> list[Prediction]:
        """What the model says of squares (S, S, 3) uint8."""
        if not squares:
            return []
        device = next(self.model.parameters()).device
        compute = Compute(device, self._dtype_on(device))
        with _evaluating(self.model):
            logits = predict(
                self.model, np.stack(squares), self.transform.preprocessing, compute, CLASSIFICATION
            )
        probabilities = softmax(logits)
        # of equal logits the smaller index, as the test counts
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [
            Prediction(self.classes[row[0]], float(values[row[0]]), self._named(row, values))
            for row, values in zip(order, probabilities, strict=True)
        ]

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        """That of the test; float32 where bfloat16 was chosen for its speed and is slow here."""
        if self.exact or self.dtype is torch.float32:
            return self.dtype
        return choose_dtype(Precision.AUTO, device)

    def _named(self, row: np.ndarray, values: np.ndarray) -> tuple[tuple[str, float], ...]:
        return tuple((self.classes[index], float(values[index])) for index in row)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; behind, each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def predictor_of(card: dict[str, Any], model: nn.Module) -> Predictor:
    """The model of a card, ready to predict.

    Raises:
        WeightsError: the card does not say how pictures become inputs, or says what makes no sense.
        ConfigError: the model does not tell classes.
    """
    kind = card["spec"].get("task", CLASSIFICATION.name)
    if kind != CLASSIFICATION.name:
        raise ConfigError(f"this model is of task={kind!s:.40}; only classes are predicted.")
    try:
        transform = Transform(cards.preprocessing(card), cards.levels(card))
        dtype = getattr(torch, cards.dtype(card))
        exact = card["spec"].get("precision", Precision.AUTO) != Precision.AUTO
    except ValueError as e:
        raise WeightsError(
            f"the card of this model cannot be predicted with: {e}. Export the run again."
        ) from e
    return Predictor(model, tuple(card["classes"]), transform, dtype, exact)


def lend(model: nn.Module, predictor: Predictor) -> nn.Module:
    """A plain model of timm that has a predictor and what it offers beside its own attributes.

    Its class, its modules and its tensors stay as they are.
    """
    vars(model).update(
        predictor=predictor,
        classes=predictor.classes,
        transform=predictor.transform,
        predict=predictor.predict,
    )
    return model
