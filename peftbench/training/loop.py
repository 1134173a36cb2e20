"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.errors import Diverged, SplitRoleError
from peftbench.results.record import EpochRow
from peftbench.spec import Preprocessing, Recipe
from peftbench.training.augment import Augmentation
from peftbench.training.average import WeightAverage
from peftbench.training.device import Pixels, autocast, synchronise
from peftbench.training.optim import Schedule, make_optimizer

WARMUP_STEPS = 3  # not timed: allocator, kernels and caches settle


@dataclass(frozen=True)
class Fit:
    """What training produced besides the trained tensors."""

    history: list[EpochRow]
    step_seconds: list[float]  # of each step after the warm-up
    images_per_second: float | None  # over the same steps


def fit(
    model: nn.Module,
    trainable: Sequence[nn.Parameter],
    train: TrainSplit,
    recipe: Recipe,
    preprocessing: Preprocessing,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    set_mode: Callable[[], None],
    num_classes: int | None = None,
    micro_batch: int | None = None,
    regulariser: Callable[[], Tensor] | None = None,
    on_epoch: Callable[[EpochRow], bool | None] = lambda row: None,
) -> Fit:
    """Train `trainable` on the train split, for all epochs of the recipe.

    Images are drawn without replacement in an order that depends on `seed` only; see
    `batch_bounds` for the last of an epoch. With a moving average, the model has the averages when
    `on_epoch` is called and when training is over; it ends where `on_epoch` gives true.
    `num_classes` is read where images are mixed,
    and is what the labels show unless given. With `micro_batch`, so many images go through the
    model at a time and their gradients add up to that of the batch; batch normalisation in train
    mode then sees the smaller number.

    Raises:
        Diverged: the loss of an epoch is not finite.
        SplitRoleError: anything but a train split was handed over.
    """
    if not isinstance(train, TrainSplit):
        raise SplitRoleError(f"fit takes a TrainSplit, not a {type(train).__name__}.")
    pixels = Pixels(train.images, preprocessing.mean, preprocessing.std, device)
    labels = torch.tensor(train.labels, device=device)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout and drop-path draw from the global generator
    augment = Augmentation(recipe, num_classes or int(labels.max()) + 1, seed)
    bounds = batch_bounds(len(pixels), recipe.batch_size, recipe.drop_last)
    used = bounds[-1][1]  # images of an epoch
    optimizer = make_optimizer(recipe, trainable)
    schedule = Schedule(recipe, optimizer, len(bounds))
    average = WeightAverage(trainable, recipe.ema_decay)
    history: list[EpochRow] = []
    step_seconds: list[float] = []
    timed_images, step = 0, 0
    for epoch in range(recipe.total_epochs):
        began = time.perf_counter()
        set_mode()
        shuffled = torch.randperm(len(pixels), generator=order).to(device)
        coins = torch.rand(len(pixels), generator=order).to(device)
        total_loss = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.long)
        for start, stop in bounds:
            tick = time.perf_counter()
            schedule.begin_step(epoch, step)
            index = shuffled[start:stop]
            y = labels[index]
            x, target = augment(pixels.batch(index), y, coins[start:stop])
            optimizer.zero_grad(set_to_none=True)
            for piece in pieces(stop - start, micro_batch):
                with autocast(device, dtype):
                    logits = model(x[piece]).float()
                    loss = F.cross_entropy(
                        logits, target[piece], label_smoothing=recipe.label_smoothing
                    )
                    objective = loss if regulariser is None else loss + regulariser()
                (objective * (len(logits) / len(x))).backward()
                with torch.no_grad():
                    total_loss += loss * len(logits)
                    correct += (logits.argmax(1) == y[piece]).sum()
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(trainable, recipe.clip_grad)
            optimizer.step()
            average.update()
            step += 1
            if device.type != "cuda" and step > WARMUP_STEPS:
                step_seconds.append(time.perf_counter() - tick)
                timed_images += stop - start
        synchronise(device)  # the only wait for the device in an epoch
        seconds = time.perf_counter() - began
        if device.type == "cuda" and epoch > 0:
            step_seconds.append(seconds / len(bounds))
            timed_images += used
        mean_loss = float(total_loss) / used
        if not math.isfinite(mean_loss):
            raise Diverged(
                f"the loss of epoch {epoch + 1} of {recipe.total_epochs} is {mean_loss}. Lower "
                f"recipe.lr (now {recipe.lr:g}) or set recipe.clip_grad."
            )
        row = EpochRow(
            epoch=epoch + 1,
            loss=mean_loss,
            accuracy=int(correct) / used,
            lr=optimizer.param_groups[0]["lr"],
            seconds=seconds,
        )
        history.append(row)
        with average.in_place():
            stop_early = on_epoch(row)
        if stop_early:
            break
    average.keep()
    timed_seconds = sum(step_seconds) * (len(bounds) if device.type == "cuda" else 1)
    rate = timed_images / timed_seconds if timed_seconds > 0 else None
    return Fit(history, step_seconds, rate)


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
