"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.errors import Diverged, SplitRoleError
from peftbench.results.record import EpochRow
from peftbench.spec import Preprocessing, Recipe
from peftbench.training.augment import Augmentation
from peftbench.training.average import WeightAverage
from peftbench.training.checkpoint import Checkpoints, Stateful
from peftbench.training.device import Compute, Pixels, autocast, synchronise
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.world import Part, World

WARMUP_STEPS = 3  # not timed: allocator, kernels and caches settle


@dataclass(frozen=True)
class Fit:
    """What training produced besides the trained tensors."""

    history: list[EpochRow]
    step_seconds: list[float]  # of each step after the warm-up
    images_per_second: float | None  # over the same steps
    seconds_before: float = 0.0  # in earlier processes, where the run was taken up again
    steps: int = 0  # in this process


@dataclass
class Progress:
    """How far training has come: whole epochs, and what is gathered of the one under way."""

    order: torch.Generator  # of the images
    total_loss: Tensor
    correct: Tensor
    epoch: int = 0
    position: int = 0  # batches of the epoch that are done
    step: int = 0
    epoch_seconds: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    epoch_order: Tensor | None = None  # of the generator, where the epoch began
    began: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0

    def end_epoch(self, row: EpochRow) -> None:
        """Keep the epoch's row and begin the next one."""
        self.history.append(row)
        self.epoch += 1
        self.position = 0
        self.epoch_seconds = 0.0
        self.total_loss.zero_()
        self.correct.zero_()

    def sum_to_leader(self, world: World) -> None:
        """Sums of all processes' shares, in the process that leads."""
        world.all_reduce_sum(self.total_loss)
        world.all_reduce_sum(self.correct)
        self.keep_if_leading(world)

    def keep_if_leading(self, world: World) -> None:
        """Sums that every process has are counted once."""
        if not world.is_main:
            self.total_loss.zero_()
            self.correct.zero_()

    def state_dict(self) -> dict[str, Any]:
        """All of it, and the clock."""
        return {
            "order": self.epoch_order,
            "total_loss": self.total_loss,
            "correct": self.correct,
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds_before + time.perf_counter() - self.began,
            "history": [dataclasses.asdict(row) for row in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the images of the epoch are drawn again.

        Raises:
            ValueError: it is not how far a training can have come.
        """
        rows = [EpochRow(**row) for row in state["history"]]
        numbers = [state[key] for key in ("epoch", "position", "step")]
        if min(numbers) < 0 or [row.epoch for row in rows] != list(range(1, state["epoch"] + 1)):
            raise ValueError("its epochs do not follow one another")
        self.order.set_state(state["order"])
        self.total_loss.copy_(state["total_loss"])
        self.correct.copy_(state["correct"])
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.epoch_seconds = state["epoch_seconds"]
        self.seconds_before = state["seconds"]
        self.history[:] = rows


class Weights:
    """The tensors that training changes: parameters, and the statistics of norms."""

    def __init__(self, model: nn.Module, trainable: Sequence[nn.Parameter]) -> None:
        self.tensors = [p.detach() for p in trainable] + list(model.buffers())

    def state_dict(self) -> dict[str, Any]:
        """The tensors by their place."""
        return {str(i): tensor for i, tensor in enumerate(self.tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy them into the model."""
        for i, tensor in enumerate(self.tensors):
            tensor.copy_(state[str(i)])


def fit(
    model: nn.Module,
    trainable: Sequence[nn.Parameter],
    train: TrainSplit,
    recipe: Recipe,
    preprocessing: Preprocessing,
    *,
    seed: int,
    compute: Compute,
    set_mode: Callable[[], None],
    num_classes: int | None = None,
    regulariser: Callable[[], Tensor] | None = None,
    on_epoch: Callable[[EpochRow], bool | None] = lambda row: None,
    checkpoints: Checkpoints | None = None,
    observers: Mapping[str, Stateful] | None = None,
    history: list[EpochRow] | None = None,
) -> Fit:
    """Train `trainable` on the train split, for all epochs of the recipe.

    Images are drawn without replacement in an order that depends on `seed` only; see
    `batch_bounds` for the last of an epoch. With a moving average, the model has the averages when
    `on_epoch` is called and when training is over; it ends where `on_epoch` gives true.
    `num_classes` is read where images are mixed, and is what the labels show unless given. With
    a `micro_batch`, so many images go through the model at a time, in all processes together, and
    their gradients add up to that of the batch; batch normalisation in train mode then sees the
    smaller number.

    Images that are not of `preprocessing.size` must be whole pictures in `train`, from which the
    recipe's crops are cut: see `Preprocessing.of_training`.

    Several processes share each batch of `recipe.batch_size` images and make the same step as one
    would, up to rounding: the images are augmented as there, and batch normalisation sees those of
    all processes. Only dropout and drop-path are drawn by each process for its own.

    With `checkpoints`, training goes on from the state on disk, bit for bit as if it had not been
    interrupted; `observers` are what `on_epoch` keeps, and epochs from before are not told again.
    `history` gets a row an epoch.

    Raises:
        Diverged: the loss of an epoch is not finite.
        SplitRoleError: anything but a train split was handed over.
    """
    if not isinstance(train, TrainSplit):
        raise SplitRoleError(f"fit takes a TrainSplit, not a {type(train).__name__}.")
    device, world = compute.device, compute.world
    pixels = Pixels(train.images, preprocessing.mean, preprocessing.std, device)
    labels = torch.tensor(train.labels, device=device)
    torch.manual_seed((seed + (world.rank << 32)) % 2**63)  # dropout and drop-path draw from it
    augment = Augmentation(
        recipe,
        num_classes or int(labels.max()) + 1,
        seed,
        size=preprocessing.size,
        limits=pixels.limits,
    )
    bounds = batch_bounds(len(pixels), recipe.batch_size, recipe.drop_last)
    used = bounds[-1][1]  # images of an epoch
    optimizer = make_optimizer(recipe, trainable)
    schedule = Schedule(recipe, optimizer, len(bounds))
    objective = world.wrap(Objective(model, recipe.label_smoothing, regulariser), device)
    average = WeightAverage(trainable, recipe.ema_decay)
    progress = Progress(
        order=torch.Generator().manual_seed(seed),
        total_loss=torch.zeros((), device=device),
        correct=torch.zeros((), device=device, dtype=torch.long),
        history=[] if history is None else history,
    )
    kept: dict[str, Stateful] = {
        "progress": progress,
        "weights": Weights(model, trainable),
        "optimizer": optimizer,
        "average": average,
        "augmentation": augment,
        **(observers or {}),
    }
    step_seconds: list[float] = []
    timed_images, first_step = 0, 0
    progress.epoch_order = progress.order.get_state()
    if checkpoints is not None and checkpoints.restore(kept):
        first_step = progress.step
        progress.keep_if_leading(world)
    while progress.epoch < recipe.total_epochs:
        began = time.perf_counter()
        set_mode()
        progress.epoch_order = progress.order.get_state()
        order = torch.randperm(len(pixels), generator=progress.order)
        shuffled = order.to(device)
        flip_draws = torch.rand(len(pixels), generator=progress.order).to(device)
        for start, stop in bounds[progress.position :]:
            tick = time.perf_counter()
            schedule.begin_step(progress.epoch, progress.step)
            size = stop - start
            parts = [world.part(piece) for piece in pieces(size, compute.micro_batch)]
            sizes = None
            if train.sizes is not None:
                sizes = train.sizes[order[start:stop].numpy()].tolist()
            x, y, target = _batch(
                pixels, labels, shuffled[start:stop], flip_draws[start:stop], augment, parts, sizes
            )
            optimizer.zero_grad(set_to_none=True)
            for part, own in zip(parts, _places(parts), strict=True):
                with world.passing(objective, part, last=part is parts[-1]):
                    with autocast(compute):
                        total, loss, logits = objective(x[own], target[own])
                    (total * part.scale(size, world.size)).backward()
                with torch.no_grad():
                    progress.total_loss += loss * part.count
                    progress.correct += (logits.argmax(1) == y[own])[: part.count].sum()
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(trainable, recipe.clip_grad)
            optimizer.step()
            average.update()
            progress.step += 1
            progress.position += 1
            if device.type != "cuda" and progress.step > first_step + WARMUP_STEPS:
                step_seconds.append(time.perf_counter() - tick)
                timed_images += size
            if checkpoints is not None and checkpoints.due(progress.step):
                progress.epoch_seconds += time.perf_counter() - began
                began = time.perf_counter()
                progress.sum_to_leader(world)
                checkpoints.save(kept)
        synchronise(device)  # the only wait for the device in an epoch
        seconds = progress.epoch_seconds + time.perf_counter() - began
        if device.type == "cuda" and progress.step > first_step + len(bounds):
            step_seconds.append(seconds / len(bounds))
            timed_images += used
        mean_loss = float(world.all_reduce_sum(progress.total_loss)) / used
        if not math.isfinite(mean_loss):
            raise Diverged(
                f"the loss of epoch {progress.epoch + 1} of {recipe.total_epochs} is {mean_loss}. "
                f"Lower recipe.lr (now {recipe.lr:g}) or set recipe.clip_grad."
            )
        row = EpochRow(
            epoch=progress.epoch + 1,
            loss=mean_loss,
            accuracy=int(world.all_reduce_sum(progress.correct)) / used,
            lr=optimizer.param_groups[0]["lr"],
            seconds=seconds,
        )
        progress.end_epoch(row)
        with average.in_place():
            stop_early = on_epoch(row)
        if stop_early:
            break
    average.keep()
    timed_seconds = sum(step_seconds) * (len(bounds) if device.type == "cuda" else 1)
    rate = timed_images / timed_seconds if timed_seconds > 0 else None
    steps = progress.step - first_step
    return Fit(progress.history, step_seconds, rate, progress.seconds_before, steps)


class Objective(nn.Module):
    """What a step minimises: cross-entropy, and a method's regulariser if it has one."""

    def __init__(
        self, model: nn.Module, label_smoothing: float, regulariser: Callable[[], Tensor] | None
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.regulariser = regulariser

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The objective, its cross-entropy, and logits (B, C) of images x (B, 3, S, S)."""
        logits = self.model(x).float()
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        total = loss if self.regulariser is None else loss + self.regulariser()
        return total, loss, logits


def _batch(
    pixels: Pixels,
    labels: Tensor,
    index: Tensor,
    flip_draws: Tensor,
    augment: Augmentation,
    parts: Sequence[Part],
    sizes: Sequence[tuple[int, int]] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, classes and targets of one process's parts of the batch `index`.

    Each image gets what it would get in one process alone. `sizes` are those of all images.
    """
    rows = [row for part in parts for row in part.rows]
    needed = augment.needed(rows, len(index))
    own = _pick(index, needed)
    x, target = augment(
        pixels.batch(own), labels[own], _pick(flip_draws, needed), rows, len(index), sizes
    )
    return x, labels[_pick(index, rows)], target


def _pick(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a tensor, sorted and each once; without waiting for the device."""
    if len(rows) == len(tensor):
        return tensor
    return tensor[torch.tensor(rows).to(tensor.device, non_blocking=True)]


def _places(parts: Sequence[Part]) -> list[slice]:
    """Where the rows of each part are among the rows of all parts."""
    ends = list(itertools.accumulate((len(part.rows) for part in parts), initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def pieces(length: int, micro_batch: int | None) -> list[slice]:
    """Parts of a batch of `length` images that go through the model one after another.

    They are of nearly equal size, so that none is a single image unless all are.
    """
    count = 1 if micro_batch is None else math.ceil(length / micro_batch)
    bounds = [round(length * i / count) for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def batch_bounds(
    num_images: int, batch_size: int, drop_last: bool = False
) -> list[tuple[int, int]]:
    """(start, stop) of each batch of an epoch; the last one may be smaller, or is left out.

    Batch normalisation is undefined on one image alone, so that it joins the batch before it.
    Fewer images than a batch are one batch in any case.
    """
    starts = list(range(0, num_images, batch_size))
    last = num_images - starts[-1]
    if len(starts) > 1 and drop_last and last < batch_size:
        num_images = starts.pop()
    elif len(starts) > 1 and last == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_images], strict=True))
