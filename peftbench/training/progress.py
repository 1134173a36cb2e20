"""What of a training is put aside and taken up again: how far it has come, and its tensors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.results.record import EpochRow
from peftbench.training.world import World

WARMUP_STEPS = 3  # not timed: allocator, kernels and caches settle
MOST_EVENTS = 200  # pairs of them, of the first steps


@dataclass
class Progress:
    """How far training has come: whole epochs, and what is gathered of the one under way."""

    order: torch.Generator  # of the images
    total_loss: Tensor
    correct: Tensor
    epoch: int = 0
    position: int = 0  # batches of the epoch that are done
    step: int = 0
    over: bool = False  # before the last epoch too
    epoch_seconds: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    epoch_order: Tensor | None = None  # of the generator, where the epoch began
    began: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0

    @classmethod
    def at_start(cls, seed: int, device: torch.device, history: list[EpochRow]) -> Progress:
        """Nothing is done yet; the order of the images depends on `seed` only."""
        order = torch.Generator().manual_seed(seed)
        return cls(
            order=order,
            total_loss=torch.zeros((), device=device),
            correct=torch.zeros((), device=device, dtype=torch.long),
            history=history,
            epoch_order=order.get_state(),
        )

    def end_epoch(self, row: EpochRow, over: bool = False) -> None:
        """Keep the epoch's row and begin the next one, unless training is `over`."""
        self.history.append(row)
        self.over = over
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
            "over": self.over,
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
        self.over, self.epoch_seconds = state["over"], state["epoch_seconds"]
        self.seconds_before = state["seconds"]
        self.history[:] = rows


@dataclass(frozen=True)
class Place:
    """Where training is after a step."""

    epoch: int  # whole epochs that are done
    position: int  # steps of the one under way
    steps: int  # of an epoch
    loss: Callable[[], float | None]  # mean of the epoch so far; asking waits for a GPU


@dataclass
class PassClock:
    """What forward pass, backward pass and optimiser of steps took once their data were there.

    Events of a GPU tell it of the first steps alone, without waiting for any of them.
    """

    on_gpu: bool = False
    _began: Any = None
    _taken: list[Any] = field(default_factory=list)  # seconds, or pairs of events

    def begin(self) -> None:
        """The data of a step are there."""
        self._began = self._now() if len(self._taken) < MOST_EVENTS or not self.on_gpu else None

    def end(self, *, counts: bool) -> None:
        """The step is over; one that does not count is forgotten."""
        began, self._began = self._began, None
        if counts and began is not None:
            self._taken.append((began, self._now()) if self.on_gpu else self._now() - began)

    def seconds(self) -> list[float]:
        """Of each step that counts; after the device is done."""
        if self.on_gpu:
            return [1e-3 * began.elapsed_time(ended) for began, ended in self._taken]
        return list(self._taken)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class Timing:
    """What the steps of this process took, after a warm-up.

    With `per_epoch`, whole epochs are timed and the first one warms up: nothing waits for a GPU
    in between.
    """

    steps_per_epoch: int
    per_epoch: bool
    first_step: int = 0  # of this process
    step_seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)  # of those, the steps of whole batches
    images: int = 0
    most_images: int = 0  # of a step so far
    passes: PassClock = field(default_factory=PassClock)

    @classmethod
    def on(cls, device: torch.device, steps_per_epoch: int) -> Timing:
        """Of steps on `device`; those of a GPU are not waited for one by one."""
        gpu = device.type == "cuda"
        return cls(steps_per_epoch, per_epoch=gpu, passes=PassClock(gpu))

    def end_step(self, step: int, seconds: float, images: int) -> None:
        """Take in a step; `step` of them are done in all processes before and in this one."""
        self.passes.end(counts=step > self.first_step + WARMUP_STEPS)
        self.most_images = max(self.most_images, images)
        if not self.per_epoch and step > self.first_step + WARMUP_STEPS:
            self.step_seconds.append(seconds)
            self.whole += [seconds] if images == self.most_images else []
            self.images += images

    def end_epoch(self, step: int, seconds: float, images: int) -> None:
        """Take in an epoch, at the end of which `step` steps are done."""
        if self.per_epoch and step > self.first_step + self.steps_per_epoch:
            self.step_seconds.append(seconds / self.steps_per_epoch)
            self.whole.append(seconds / self.steps_per_epoch)
            self.images += images

    def rate(self) -> float | None:
        """Images a second; `None` where nothing was timed."""
        seconds = sum(self.step_seconds) * (self.steps_per_epoch if self.per_epoch else 1)
        return self.images / seconds if seconds > 0 else None


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
