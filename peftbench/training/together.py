"""Many heads on the same activations, trained in one pass.

Trials that differ in their rate and weight decay alone see the same batches in the same order and
start from the same tensors. So their tensors lie in one stack, (K, ...) each, and a step of all of
them is one batched product. Every trial gets the numbers of a training of its own, up to rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from peftbench.results.record import EpochRow
from peftbench.spec import Recipe
from peftbench.tasks import Task
from peftbench.training.average import WeightAverage
from peftbench.training.balance import ClassWeights, Draws, loss_of
from peftbench.training.batches import batch_bounds
from peftbench.training.device import Compute, autocast, seeded, synchronise
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.pixels import ModelInputs
from peftbench.training.recipe import COUPLED, OPTIMIZERS

CLIP_EPS = 1e-6  # as torch clips gradients
# numbers of one head, up to which one pass is faster on a CPU than separate ones: 16 of 38,500 took
# 6.6 times as long as one, 16 of 334,000 took 21 times (EPYC, one core, batches of 64). A GPU,
# which one head leaves idle, was not measured and takes all
MOST_ON_CPU = 100_000


@dataclass(frozen=True)
class HeadTask:
    """What the trials have in common."""

    head: nn.Module  # as every trial starts; it does not change
    inputs: ModelInputs  # activations of the images
    labels: Tensor  # (N,) on the host
    task: Task
    seed: int
    compute: Compute
    num_classes: int | None = None  # where classes are weighed; what the labels show unless given


@dataclass(frozen=True)
class TrainedHead:
    """One trial at its end."""

    tensors: dict[str, Tensor]  # by their names in the head
    history: list[EpochRow]
    seconds: float  # its share of the pass
    step_seconds: float
    others: int  # that trained in the same pass


def is_worthwhile(recipe: Recipe, head: nn.Module, device: torch.device) -> bool:
    """Whether heads like this one train together as they would by themselves, and faster.

    Those with statistics do not: behind batch normalisation Adam makes whole steps of rounding, and
    of 17 trials of `mlp` one ended with another accuracy than by itself.
    """
    known = recipe.optimizer.lower() in OPTIMIZERS and not list(head.buffers())
    count = sum(p.numel() for p in head.parameters() if p.requires_grad)
    return known and count > 0 and (device.type != "cpu" or count <= MOST_ON_CPU)


def shared_recipe(recipe: Recipe) -> Recipe:
    """What of a recipe all trials of one pass must have in common."""
    return dataclasses.replace(recipe, lr=1.0, weight_decay=0.0)


def fit_together(common: HeadTask, recipes: Sequence[Recipe]) -> list[TrainedHead | None]:
    """Each recipe's trial at its end; `None` for one whose loss was not finite.

    Args:
        recipes: those of the trials, which differ in rate and weight decay alone.
    """
    assert len({shared_recipe(recipe) for recipe in recipes}) == 1, "recipes differ in more"
    began = time.perf_counter()
    head, compute, recipe = common.head, common.compute, recipes[0]
    head.train()
    stacks = {
        name: nn.Parameter(p.detach().expand(len(recipes), *p.shape).clone())
        for name, p in head.named_parameters()
        if p.requires_grad
    }
    bounds = batch_bounds(len(common.inputs), recipe.batch_size, recipe.drop_last)
    steps = _Steps.of(recipes, list(stacks.values()), len(bounds), compute.device)
    histories: list[list[EpochRow]] = [[] for _ in recipes]
    labels = common.labels.to(compute.device)
    num_classes = common.num_classes or int(common.labels.max()) + 1
    weights = ClassWeights.of(recipe, labels, num_classes, common.task)
    objective = _objective(head, common.task, recipe.label_smoothing, weights)
    draws = Draws(recipe, common.labels)
    with seeded(common.seed, compute):
        order = torch.Generator().manual_seed(common.seed)
        for epoch in range(recipe.total_epochs):
            tick = time.perf_counter()
            sums = _epoch(common, (stacks, objective, steps), bounds, draws.next(order), epoch)
            torch.rand(draws.count, generator=order)  # of mirrored images, of which there are none
            synchronise(compute.device)
            seconds = (time.perf_counter() - tick) / len(recipes)
            losses, correct, used = sums[0].tolist(), sums[1].tolist(), bounds[-1][1]
            for history, loss, right, rate in zip(
                histories, losses, correct, steps.rates(), strict=True
            ):
                history.append(EpochRow(epoch + 1, loss / used, right / used, rate, seconds))
    steps.average.keep()
    share = (time.perf_counter() - began) / len(recipes)
    return [
        TrainedHead(
            {name: stack[k].detach().clone() for name, stack in stacks.items()},
            history,
            share,
            share / (recipe.total_epochs * len(bounds)),
            len(recipes) - 1,
        )
        if all(row.loss - row.loss == 0 for row in history)
        else None
        for k, history in enumerate(histories)
    ]


_Objective = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


def _objective(
    head: nn.Module, task: Task, label_smoothing: float, weights: ClassWeights | None
) -> _Objective:
    """Loss and number of right answers, (K,) each, of stacks (K, ...) for one batch."""

    values = None if weights is None else weights.values

    def one(tensors: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = task.outputs(functional_call(head, tensors, (x,)))
        loss = loss_of(task, outputs, y, label_smoothing, values)
        return loss, task.correct(outputs.detach(), y).sum()

    # dropout draws the one mask that each of the trials would draw by itself
    return torch.func.vmap(one, in_dims=(0, None, None), randomness="same")


def _epoch(
    common: HeadTask,
    trained: tuple[dict[str, nn.Parameter], _Objective, _Steps],
    bounds: Sequence[tuple[int, int]],
    shuffled: Tensor,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """One epoch of all trials: their summed losses and right answers, (K,) each.

    shuffled: (N,) numbers of the images in their order.
    """
    (stacks, objective, steps), compute = trained, common.compute
    count_trials = len(next(iter(stacks.values())))
    losses = torch.zeros(count_trials, device=compute.device)
    correct = torch.zeros(count_trials, device=compute.device, dtype=torch.long)
    on_device, labels = shuffled.to(compute.device), common.labels.to(compute.device)
    numbers = shuffled if common.inputs.indexed_on.type == "cpu" else on_device
    asked = [numbers[start:stop] for start, stop in bounds]
    with contextlib.closing(common.inputs.in_epoch(epoch).batches(asked)) as batches:
        for (start, stop), batch in zip(bounds, batches, strict=True):
            steps.begin(epoch)
            with autocast(compute):
                loss, right = objective(stacks, batch.values, labels[on_device[start:stop]])
            loss.sum().backward()
            losses += loss.detach() * (stop - start)
            correct += right
            steps.step()
    return losses, correct


@dataclass
class _Steps:
    """A step of each trial with its own rate and weight decay.

    The optimiser works on tensors that are zero, with a rate of one and no weight decay, so that it
    leaves the step itself in them, which each trial then takes by its own rate.
    """

    recipes: Sequence[Recipe]
    stacks: list[nn.Parameter]
    zeros: list[nn.Parameter]
    optimizer: Optimizer
    decays: list[Tensor | None]  # (K, 1, ...) of each stack
    clocks: list[tuple[Schedule, Optimizer, list[int]]]  # and the trials that they are of
    average: WeightAverage
    device: torch.device
    done: int = 0

    @classmethod
    def of(
        cls,
        recipes: Sequence[Recipe],
        stacks: list[nn.Parameter],
        steps_per_epoch: int,
        device: torch.device,
    ) -> _Steps:
        recipe = recipes[0]
        zeros = [nn.Parameter(torch.zeros_like(stack)) for stack in stacks]
        unscaled = dataclasses.replace(shared_recipe(recipe), lr_reference_batch=None)
        optimizer = make_optimizer(unscaled, zeros)
        decay = torch.tensor([r.weight_decay for r in recipes], device=device)
        decays = [
            _along(decay, stack) if stack.ndim > 2 or recipe.decay == "all" else None
            for stack in stacks
        ]
        clocks = _clocks(recipes, steps_per_epoch)
        average = WeightAverage(stacks, recipe.ema_decay)
        return cls(recipes, stacks, zeros, optimizer, decays, clocks, average, device)

    def rates(self) -> list[float]:
        """Of each trial, at the step under way."""
        found = [0.0] * len(self.recipes)
        for _, optimizer, trials in self.clocks:
            for group, trial in zip(optimizer.param_groups, trials, strict=True):
                found[trial] = group["lr"]
        return found

    def begin(self, epoch: int) -> None:
        """Set the rates of the next step, which is in `epoch`, and forget the last gradients."""
        for schedule, _, _ in self.clocks:
            schedule.begin_step(epoch, self.done)
        for stack in self.stacks:
            stack.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Every trial's step, from the gradients of the stacks."""
        rate = torch.tensor(self.rates()).to(self.device, non_blocking=True)
        self._clip()
        coupled = self.recipes[0].optimizer.lower() in COUPLED
        for stack, zero, decay in zip(self.stacks, self.zeros, self.decays, strict=True):
            zero.zero_()
            zero.grad = stack.grad
            if coupled and decay is not None and stack.grad is not None:
                zero.grad = stack.grad + decay * stack
        self.optimizer.step()
        for stack, zero, decay in zip(self.stacks, self.zeros, self.decays, strict=True):
            own = _along(rate, stack)
            if not coupled and decay is not None:
                stack.mul_(1 - own * decay)
            stack.addcmul_(own, zero)
        self.average.update()
        self.done += 1

    def _clip(self) -> None:
        """Each trial's gradient on its own, as `clip_grad_norm_` does it."""
        most = self.recipes[0].clip_grad
        if most is None:
            return
        grads = [stack.grad for stack in self.stacks if stack.grad is not None]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        factor = (most / (norms + CLIP_EPS)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(_along(factor, grad))


def _along(values: Tensor, stack: Tensor) -> Tensor:
    """(K, 1, ...) of values (K,), to be multiplied with a stack (K, ...)."""
    return values.view(-1, *(1,) * (stack.ndim - 1))


def _clocks(
    recipes: Sequence[Recipe], steps_per_epoch: int
) -> list[tuple[Schedule, Optimizer, list[int]]]:
    """Schedules over one group for each trial, for trials with the same ends of their rates."""
    alike: dict[tuple[float, float], list[int]] = {}
    for number, recipe in enumerate(recipes):
        ends = min(recipe.min_lr, recipe.peak_lr), min(recipe.warmup_lr, recipe.peak_lr)
        alike.setdefault(ends, []).append(number)
    clocks: list[tuple[Schedule, Optimizer, list[int]]] = []
    for trials in alike.values():
        groups = [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": recipes[trial].peak_lr}
            for trial in trials
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        clocks.append((Schedule(recipes[trials[0]], optimizer, steps_per_epoch), optimizer, trials))
    return clocks
