"""Several trainings of one model in one pass: a batch of all goes through what they share at once.

They differ in rate and weight decay alone, so that they see the same images in the same order and
draw the same random numbers. Each has tensors, optimiser, schedule and averages of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from peftbench import stopping
from peftbench.data import TrainSplit
from peftbench.errors import Diverged
from peftbench.results.record import EpochRow
from peftbench.spec import Recipe
from peftbench.training.activations import Activations
from peftbench.training.average import WeightAverage
from peftbench.training.balance import loss_of
from peftbench.training.checkpoint import Checkpoints, Stateful
from peftbench.training.device import Compute, autocast, synchronise
from peftbench.training.fittable import Fittable
from peftbench.training.loop import (
    Training,
    asked_of,
    batch_of,
    finish_step,
    next_order,
    row_of,
    training_of,
)
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.progress import Progress, Weights


class Stack(Protocol):
    """A model of several trials, which have their own of what trains and share the rest."""

    model: nn.Module  # of batches of all active trials, one behind another

    def parameters(self, trial: int) -> list[nn.Parameter]:
        """What trains of one trial."""

    def activate(self, trials: Sequence[int]) -> None:
        """Let the model compute these, in this order."""

    def match_modes(self) -> None:
        """Put what trains of each trial into the mode of the first one's."""


@dataclass(frozen=True)
class TrialEnd:
    """How one training ended; its tensors are in the stack."""

    history: list[EpochRow]
    seconds: float  # its share of the pass
    step_seconds: float
    diverged: str | None = None  # what there is to say of a loss that was not finite


@dataclass
class _Errors:
    """What is to be said of trials that diverged, by their numbers."""

    told: dict[int, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.told.clear()
        self.told.update(state["told"])


def fit_stacked(
    stack: Stack,
    fittable: Fittable,
    recipes: Sequence[Recipe],
    train: TrainSplit,
    context: tuple[int, Compute],
    checkpoints: Checkpoints | None = None,
) -> list[TrialEnd]:
    """How each recipe's training of `fittable` ends, as if it had trained by itself.

    Args:
        fittable: what the first of them trains; it has no regulariser and no hook behind steps.
        recipes: those of the trials, which differ in rate and weight decay alone.
        context: the seed, and where is computed.

    Raises:
        Stopped: a signal asked this process to stop; the step under way is done, and saved.
    """
    began = time.perf_counter()
    seed, compute = context
    first = training_of(fittable, train, recipes[0], seed, compute, [])
    trainings = [
        first if trial == 0 else _like(first, recipe, stack.parameters(trial), seed)
        for trial, recipe in enumerate(recipes)
    ]
    errors = _Errors()
    kept = _parts(stack, trainings, errors)
    if checkpoints is not None:
        checkpoints.restore(kept)

    def end_step(step: int) -> None:
        if checkpoints is not None and checkpoints.due(step):
            checkpoints.save(kept)

    with stopping.held():
        try:
            while active := _active(trainings, errors):
                _epoch(stack, {trial: trainings[trial] for trial in active}, errors, end_step)
            if checkpoints is not None:
                checkpoints.trained = kept
        except stopping.Stopped:
            if checkpoints is not None:
                checkpoints.save(kept)
            raise
    for training in trainings:
        training.average.keep()
    share = (time.perf_counter() - began) / len(trainings)
    steps = max(1, trainings[0].recipe.total_epochs * len(trainings[0].bounds))
    return [
        TrialEnd(training.progress.history, share, share / steps, errors.told.get(trial))
        for trial, training in enumerate(trainings)
    ]


def _like(first: Training, recipe: Recipe, parameters: list[nn.Parameter], seed: int) -> Training:
    """The training of another trial, which shares the images and their augmentation."""
    optimizer = make_optimizer(recipe, parameters)
    return dataclasses.replace(
        first,
        fittable=dataclasses.replace(first.fittable, trainable=parameters),
        recipe=recipe,
        optimizer=optimizer,
        schedule=Schedule(recipe, optimizer, len(first.bounds)),
        average=WeightAverage(parameters, recipe.ema_decay),
        progress=Progress.at_start(seed, first.compute.device, []),
    )


def _active(trainings: Sequence[Training], errors: _Errors) -> list[int]:
    """The trials that go on."""
    return [
        trial
        for trial, training in enumerate(trainings)
        if trial not in errors.told and training.progress.epoch < training.recipe.total_epochs
    ]


def _parts(stack: Stack, trainings: Sequence[Training], errors: _Errors) -> dict[str, Stateful]:
    """What is put aside and taken up again, by its name in the file."""
    lead = trainings[0]
    trained = [p for training in trainings for p in training.fittable.trainable]
    parts: dict[str, Stateful] = {
        "weights": Weights(stack.model, trained),
        "augmentation": lead.augment,
        "errors": errors,
    }
    for trial, training in enumerate(trainings):
        parts |= {
            f"progress {trial}": training.progress,
            f"optimizer {trial}": training.optimizer,
            f"average {trial}": training.average,
        }
    return parts


def _epoch(
    stack: Stack,
    trainings: dict[int, Training],
    errors: _Errors,
    end_step: Callable[[int], None],
) -> None:
    """The steps that are left of the epoch under way, of all trials that go on.

    One whose loss is not finite is told among `errors`, and the others go on without it.

    Raises:
        Stopped: after a step; the state is whole.
    """
    lead, count = next(iter(trainings.values())), len(trainings)
    progress, device = lead.progress, lead.compute.device
    began = time.perf_counter()
    stack.activate(list(trainings))
    lead.fittable.set_mode()
    stack.match_modes()
    order = next_order(lead)
    for training in trainings.values():
        training.progress.order.set_state(progress.order.get_state())
        training.progress.epoch_order = progress.epoch_order
    left = [slice(*ends) for ends in lead.bounds[progress.position :]]
    inputs = lead.pixels.in_epoch(progress.epoch)
    with contextlib.closing(inputs.batches(asked_of(lead, order, left))) as images:
        for batch in left:
            x, y, target, _ = batch_of(lead, order, batch, next(images))
            _step(stack, list(trainings.values()), (x, y, target))
            end_step(progress.step)
            if lead.stops.asked_after(progress.step):
                seconds = (time.perf_counter() - began) / count
                for training in trainings.values():
                    training.progress.epoch_seconds += seconds
                raise stopping.Stopped  # and is saved where that is caught
    synchronise(device)
    seconds, used = (time.perf_counter() - began) / count, lead.bounds[-1][1]
    for trial, training in trainings.items():
        own = training.progress
        try:
            loss, right = float(own.total_loss) / used, int(own.correct) / used
            row = row_of(training, loss, right, own.epoch_seconds + seconds)
        except Diverged as e:
            errors.told[trial] = str(e)
            _clear(training)
            continue
        own.end_epoch(row)


def _clear(training: Training) -> None:
    """Leave nothing of a training that is not finite, as no state on disk may hold it."""
    moments = [each for state in training.optimizer.state.values() for each in state.values()]
    averages = training.average.averages or []
    with torch.no_grad():
        for tensor in (*training.fittable.trainable, *moments, *averages):
            if isinstance(tensor, Tensor):
                tensor.zero_()
        training.progress.total_loss.zero_()


def _step(stack: Stack, trainings: Sequence[Training], given: tuple[Any, Tensor, Tensor]) -> None:
    """One step of every training, on the same images, classes (B,) and targets (B, ...)."""
    x, y, target = given
    lead = trainings[0]
    task, size = lead.fittable.task, len(y)
    for training in trainings:
        training.schedule.begin_step(training.progress.epoch, training.progress.step)
        training.optimizer.zero_grad(set_to_none=True)
    weights = None if lead.weights is None else lead.weights.values
    with autocast(lead.compute):
        outputs = task.outputs(stack.model(_repeated(x, len(trainings)))).split(size)
        losses = [
            loss_of(task, own, target, lead.recipe.label_smoothing, weights) for own in outputs
        ]
    torch.autograd.backward(losses)
    with torch.no_grad():
        for training, loss, own in zip(trainings, losses, outputs, strict=True):
            training.progress.total_loss += loss.detach() * size
            training.progress.correct += task.correct(own, y).sum()
    for training in trainings:
        finish_step(training)


def _repeated(x: Any, count: int) -> Any:
    """A batch (B, ...) so many times, one behind another: (count B, ...)."""
    if isinstance(x, Activations):
        images = None if x.images is None else _repeated(x.images, count)
        return Activations(_repeated(x.values, count), images)
    return torch.cat([x] * count)
