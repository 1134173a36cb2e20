"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from peftbench import stopping
from peftbench.data import TrainSplit
from peftbench.data.rows import RowSource, rows_of, take
from peftbench.errors import Diverged, SplitRoleError
from peftbench.results.record import EpochRow
from peftbench.spec import Recipe
from peftbench.training.augment import Augmentation
from peftbench.training.average import WeightAverage
from peftbench.training.balance import ClassWeights, Draws
from peftbench.training.batches import batch_bounds, pick, pieces, places
from peftbench.training.checkpoint import Checkpoints, Stateful
from peftbench.training.compiling import compiled
from peftbench.training.device import Compute, autocast, synchronise
from peftbench.training.fittable import Fittable, Objective
from peftbench.training.objective import Remembering, count_right, gather
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.pixels import ModelInputs, Pixels
from peftbench.training.progress import Place, Progress, Timing, Weights
from peftbench.training.recomputation import recomputing
from peftbench.training.stops import Stops
from peftbench.training.views import FixedViews
from peftbench.training.world import Part


@dataclass(frozen=True)
class Fit:
    """What training produced besides the trained tensors."""

    history: list[EpochRow]
    step_seconds: list[float]  # of each step after the warm-up
    images_per_second: float | None  # over the same steps
    seconds_before: float = 0.0  # in earlier processes, where the run was taken up again
    steps: int = 0  # in this process
    whole_steps: Sequence[float] = ()  # `step_seconds` of those with as many images as any
    pass_seconds: Sequence[float] = ()  # of steps after the warm-up, once their data were there


@dataclass(frozen=True)
class Callbacks:
    """Who follows a training, and what of it outlives its process.

    With `checkpoints`, training goes on from the state on disk, bit for bit as if it had not been
    interrupted; epochs from before are not told again. One that is asked to stop saves its state
    first, so that what `on_epoch` keeps changes only once it can no longer be stopped.
    """

    # called after each epoch; the training ends where it gives true
    on_epoch: Callable[[EpochRow], bool | None] = lambda row: None
    on_step: Callable[[Place], object] = lambda place: None
    checkpoints: Checkpoints | None = None
    observers: Mapping[str, Stateful] = field(default_factory=dict)  # what `on_epoch` keeps
    history: list[EpochRow] = field(default_factory=list)  # gets a row an epoch


@dataclass(frozen=True)
class _Share:
    """What of a batch one process computes."""

    parts: list[Part]
    rows: list[int]  # of all parts
    needed: list[int]  # rows from which these are made

    @classmethod
    def of(cls, size: int, compute: Compute, augment: Augmentation) -> _Share:
        """Of a batch of so many images."""
        parts = [compute.world.part(piece) for piece in pieces(size, compute.micro_batch)]
        rows = [row for part in parts for row in part.rows]
        return cls(parts, rows, augment.needed(rows, size))


@dataclass(frozen=True)
class Training:
    """All that the steps of one training work with."""

    fittable: Fittable
    recipe: Recipe
    compute: Compute
    pixels: ModelInputs
    sizes: RowSource | None  # (N, 2) of pictures that are cropped
    labels: Tensor  # (N,) on the device
    draws: Draws
    weights: ClassWeights | None
    augment: Augmentation
    views: FixedViews | None
    bounds: list[tuple[int, int]]  # (start, stop) of each batch of an epoch
    shares: Mapping[int, _Share]  # by the number of images in a batch
    optimizer: Optimizer
    schedule: Schedule
    objective: nn.Module
    average: WeightAverage
    progress: Progress
    timing: Timing
    stops: Stops

    def parts(self) -> dict[str, Stateful]:
        """What is put aside and taken up again, by its name in the file."""
        method, objective = self.fittable.after_step, self.fittable.objective
        return {
            "progress": self.progress,
            "weights": Weights(self.fittable.model, self.fittable.trainable),
            "optimizer": self.optimizer,
            "average": self.average,
            "augmentation": self.augment,
            **({} if method is None else {"method": method}),
            **({"objective": objective} if isinstance(objective, Remembering) else {}),
        }


@dataclass(frozen=True)
class EpochOrder:
    """How the images of one epoch follow one another."""

    host: Tensor  # (N,) numbers of the images
    device: Tensor  # the same
    flip_draws: Tensor  # (N,) uniform in [0, 1), on the device


def fit(
    fittable: Fittable,
    train: TrainSplit,
    recipe: Recipe,
    *,
    seed: int,
    compute: Compute,
    callbacks: Callbacks | None = None,
) -> Fit:
    """Train on the train split, for all epochs of the recipe.

    Images are drawn in an order that depends on `seed` only, each once unless `recipe.sampling` is
    balanced; see `batch_bounds` for the last of an epoch. Dropout and drop-path draw from torch's
    own generators: see `seeded`. With a moving average, the model has the averages when `on_epoch`
    is called and when training is over. With a micro-batch, so many images go through the model at
    a time, in all processes together, and their gradients add up to that of the batch, weights of
    classes included; batch normalisation in train mode then sees the smaller number.

    With `inputs`, the model takes those in place of the images, which then must be the same in each
    epoch: no augmentation changes them.

    Images that are not of the preprocessing's size must be whole pictures in `train`, from which
    the recipe's crops are cut: see `Preprocessing.of_training`.

    Several processes share each batch of `recipe.batch_size` images and make the same step as one
    would, up to rounding: the images are augmented as there, and batch normalisation sees those of
    all processes. Only dropout and drop-path are drawn by each process for its own.

    Raises:
        ConfigError: `recipe.checkpointing` or compiling, which model or machine cannot do.
        Diverged: the loss of an epoch is not finite.
        SplitRoleError: anything but a train split was handed over.
        Stopped: a signal asked this process to stop; the step under way is done, and saved.
    """
    callbacks = callbacks or Callbacks()
    training = training_of(fittable, train, recipe, seed, compute, callbacks.history)
    if recipe.checkpointing:
        fittable.set_mode()  # shows which norms train
    with recomputing(fittable.model, recipe.checkpointing):
        return _all_epochs(training, callbacks)


def training_of(
    fittable: Fittable,
    train: TrainSplit,
    recipe: Recipe,
    seed: int,
    compute: Compute,
    history: list[EpochRow],
) -> Training:
    """A training before its first step; `history` gets a row an epoch. See `fit`."""
    if not isinstance(train, TrainSplit):
        raise SplitRoleError(f"fit takes a TrainSplit, not a {type(train).__name__}.")
    preprocessing = fittable.preprocessing
    pixels = fittable.inputs or Pixels(
        train.images, preprocessing.mean, preprocessing.std, compute.device
    )
    labels = torch.tensor(train.labels, device=compute.device)
    num_classes = fittable.num_classes or int(train.labels.max()) + 1
    augment = Augmentation(
        recipe,
        num_classes,
        seed,
        size=preprocessing.size,
        limits=pixels.limits,
    )
    bounds = batch_bounds(len(pixels), recipe.batch_size, recipe.drop_last)
    optimizer = make_optimizer(recipe, fittable.trainable, fittable.rate_scales)
    weights = ClassWeights.of(recipe, labels, num_classes, fittable.task)
    objective = Objective(fittable, recipe.label_smoothing, weights)
    return Training(
        fittable=fittable,
        recipe=recipe,
        compute=compute,
        pixels=pixels,
        sizes=None if train.sizes is None else rows_of(train.sizes),
        labels=labels,
        draws=Draws(recipe, torch.tensor(train.labels)),
        weights=weights,
        augment=augment,
        views=FixedViews(recipe, preprocessing.size, pixels.limits) if recipe.fixed_views else None,
        bounds=bounds,
        shares={size: _Share.of(size, compute, augment) for size in {b - a for a, b in bounds}},
        optimizer=optimizer,
        schedule=Schedule(recipe, optimizer, len(bounds)),
        objective=compute.world.wrap(compiled(objective, compute), compute.device),
        average=WeightAverage(fittable.trainable, recipe.ema_decay),
        progress=Progress.at_start(seed, compute.device, history),
        timing=Timing.on(compute.device, len(bounds)),
        stops=Stops(compute.world),
    )


def _all_epochs(training: Training, callbacks: Callbacks) -> Fit:
    """Train from the start, or from the state on disk, to the last epoch."""
    progress, timing, checkpoints = training.progress, training.timing, callbacks.checkpoints
    kept = {**training.parts(), **callbacks.observers}
    if checkpoints is not None and checkpoints.restore(kept):
        timing.first_step = progress.step
        progress.keep_if_leading(training.compute.world)
    with stopping.held():
        try:
            while not progress.over and progress.epoch < training.recipe.total_epochs:
                row = _epoch(training, callbacks, kept)
                with training.average.in_place():
                    over = callbacks.on_epoch(row)
                progress.end_epoch(row, over=bool(over))
            if checkpoints is not None:
                checkpoints.trained = kept
        except stopping.Stopped:
            if checkpoints is not None:
                checkpoints.save(kept)
            raise
    training.average.keep()
    steps = progress.step - timing.first_step
    return Fit(
        progress.history,
        timing.step_seconds,
        timing.rate(),
        progress.seconds_before,
        steps,
        timing.whole,
        timing.passes.seconds(),
    )


def _epoch(training: Training, callbacks: Callbacks, kept: Mapping[str, Stateful]) -> EpochRow:
    """The steps that are left of the epoch under way.

    Raises:
        Diverged: its loss is not finite.
        Stopped: after a step; the state is whole.
    """
    progress, timing = training.progress, training.timing
    device, world, checkpoints = (
        training.compute.device,
        training.compute.world,
        callbacks.checkpoints,
    )
    began = time.perf_counter()
    training.fittable.set_mode()
    order = next_order(training)
    left = [slice(*ends) for ends in training.bounds[progress.position :]]
    inputs = training.pixels.in_epoch(progress.epoch)
    with contextlib.closing(inputs.batches(asked_of(training, order, left))) as images:
        for batch in left:
            tick = time.perf_counter()
            _step(training, order, batch, next(images))
            timing.end_step(progress.step, time.perf_counter() - tick, batch.stop - batch.start)
            callbacks.on_step(_place(training))
            due = checkpoints is not None and checkpoints.due(progress.step)
            stop = training.stops.asked_after(progress.step)
            if due or stop:
                progress.epoch_seconds += time.perf_counter() - began
                began = time.perf_counter()
                progress.sum_to_leader(world)
                gather(training.fittable.objective, world)
            if stop:
                raise stopping.Stopped  # and is saved where that is caught
            if checkpoints is not None and due:
                checkpoints.save(kept)
    gather(training.fittable.objective, world)
    synchronise(device)  # the only wait for the device in an epoch
    seconds = progress.epoch_seconds = progress.epoch_seconds + time.perf_counter() - began
    used = training.bounds[-1][1]  # images of an epoch
    timing.end_epoch(progress.step, seconds, used)
    mean_loss = float(world.all_reduce_sum(progress.total_loss)) / used
    correct = int(world.all_reduce_sum(progress.correct)) / used
    return row_of(training, mean_loss, correct, seconds)


def next_order(training: Training) -> EpochOrder:
    """The order of the images of the epoch that begins."""
    progress, device = training.progress, training.compute.device
    progress.epoch_order = progress.order.get_state()
    shuffled = training.draws.next(progress.order)
    flip_draws = torch.rand(len(training.pixels), generator=progress.order)
    return EpochOrder(shuffled, shuffled.to(device), flip_draws.to(device))


def row_of(training: Training, mean_loss: float, correct: float, seconds: float) -> EpochRow:
    """The row of the epoch that is over.

    Raises:
        Diverged: its loss is not finite.
    """
    progress, recipe = training.progress, training.recipe
    if not math.isfinite(mean_loss):
        raise Diverged(
            f"the loss of epoch {progress.epoch + 1} of {recipe.total_epochs} is {mean_loss}. "
            f"Lower recipe.lr (now {recipe.lr:g}) or set recipe.clip_grad."
        )
    return EpochRow(
        epoch=progress.epoch + 1,
        loss=mean_loss,
        accuracy=correct,
        lr=training.optimizer.param_groups[0]["lr"],
        seconds=seconds,
    )


def _place(training: Training) -> Place:
    """Where training is, for who follows it."""
    progress, bounds = training.progress, training.bounds

    def loss() -> float | None:
        if training.compute.world.is_single:  # else others have a part of it
            return float(progress.total_loss) / bounds[progress.position - 1][1]
        return progress.history[-1].loss if progress.history else None

    return Place(progress.epoch, progress.position, len(bounds), loss)


def asked_of(training: Training, order: EpochOrder, batches: Sequence[slice]) -> Iterator[Tensor]:
    """The numbers of the images (B,) that this process needs of each batch."""
    pixels = training.pixels
    numbers = order.host if pixels.indexed_on == order.host.device else order.device
    for batch in batches:
        index = numbers[batch]
        yield pick(index, training.shares[len(index)].needed)


def _step(training: Training, order: EpochOrder, batch: slice, images: Any) -> None:
    """One step of the optimiser on the images at `batch` of the epoch's order.

    images: (B, 3, R, R), those that this process needs of them, or what the model sees of them.
    """
    progress, compute = training.progress, training.compute
    task = training.fittable.task
    size = batch.stop - batch.start
    training.schedule.begin_step(progress.epoch, progress.step)
    parts = training.shares[size].parts
    scale: float | Tensor
    counted: float | Tensor
    x, y, target, numbers = batch_of(training, order, batch, images)
    training.timing.passes.begin()
    training.optimizer.zero_grad(set_to_none=True)
    for part, own in zip(parts, places(parts), strict=True):
        scale, counted = part.scale(size, compute.world.size), part.count
        if training.weights is not None and part.count:
            share = training.weights.share(target[own], training.labels[order.device[batch]])
            scale, counted = share * compute.world.size, share * size
        with compute.world.passing(training.objective, part, last=part is parts[-1]):
            with autocast(compute):
                known = numbers[own] if part.count else None
                total, loss, outputs = training.objective(x[own], target[own], progress.step, known)
            (total * scale).backward()
        with torch.no_grad():
            progress.total_loss += loss * counted
            progress.correct += count_right(task, outputs, y[own], part.count)
    finish_step(training)


def finish_step(training: Training) -> None:
    """Let the optimiser step, from the gradients of a batch, and count the step."""
    progress = training.progress
    if training.recipe.clip_grad is not None:
        nn.utils.clip_grad_norm_(training.fittable.trainable, training.recipe.clip_grad)
    training.optimizer.step()
    if training.fittable.after_step is not None:
        total = training.recipe.total_epochs * len(training.bounds)
        training.fittable.after_step(progress.step + 1, total)
    training.average.update()
    progress.step += 1
    progress.position += 1


def batch_of(
    training: Training, order: EpochOrder, batch: slice, images: Any
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Augmented images (B, 3, S, S) of one process's parts of a batch, and what belongs to them.

    These are classes (B,), targets (B,) or (B, C), and numbers (B,). Each image gets what it would
    get in one process alone.

    images: (B, 3, R, R), those that this process needs, or what the model sees of them.
    """
    index, labels = order.device[batch], training.labels
    share = training.shares[len(index)]
    sizes = None
    if training.sizes is not None:
        sizes = take(training.sizes, order.host[batch].numpy()).tolist()
    own, counted = pick(index, share.needed), pick(index, share.rows)
    if not isinstance(images, Tensor):  # made of the images once; nothing changes them
        return images, labels[own], labels[own], counted
    if training.views is not None:  # nothing is mixed, so that it needs its own images alone
        numbers = order.host[batch][share.needed].tolist()
        own_sizes = None if sizes is None else [sizes[row] for row in share.needed]
        view = training.progress.epoch % training.views.count
        x = training.views(images, numbers, view, own_sizes)
        return x, labels[own], labels[own], counted
    flip_draws = pick(order.flip_draws[batch], share.needed)
    x, target = training.augment(images, labels[own], flip_draws, share.rows, len(index), sizes)
    return x, labels[counted], target, counted
