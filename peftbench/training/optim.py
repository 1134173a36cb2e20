"""Optimiser and learning-rate schedule of a recipe, both from timm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from peftbench.spec import Recipe

# PyTorch's own optimisers update all tensors in one kernel. On one core of an EPYC (torch 2.15) a
# step took, unfused and fused, in ms: AdamW over the 50 tensors of LoRA on ViT-S 1.8 and 0.6, over
# 150 scales of 384 4.1 and 1.0, over all of ViT-S 39 and 13; SGD 0.7 and 0.3, 1.5 and 0.4, 19 and
# 9. `foreach` took 1.6, 2.9 and 63 with AdamW.
FUSED = frozenset({"adam", "adamw", "momentum", "sgd"})
FUSED_DEVICES = ("cpu", "cuda")


def make_optimizer(
    recipe: Recipe,
    parameters: Iterable[nn.Parameter],
    rate_scales: Sequence[float] | None = None,
) -> Optimizer:
    """The recipe's optimiser; weight decay spares biases and scales unless `decay` is "all".

    rate_scales: of each parameter, what `Schedule` multiplies its rate with.
    """
    chosen = list(parameters)
    groups: list[dict[str, Any]] = []
    for scale in [None] if rate_scales is None else sorted(set(rate_scales), reverse=True):
        own = chosen
        if rate_scales is not None:
            own = [p for p, its in zip(chosen, rate_scales, strict=True) if its == scale]
        decayed = [p for p in own if p.ndim > 1 or recipe.decay == "all"]
        spared = [p for p in own if p.ndim <= 1 and recipe.decay != "all"]
        scaled = {} if scale is None else {"lr_scale": scale}  # which timm's schedules know
        groups += [
            {"params": decayed, "weight_decay": recipe.weight_decay, **scaled},
            {"params": spared, "weight_decay": 0.0, **scaled},
        ]
    name = recipe.optimizer.lower()
    if name == "sgd" and recipe.momentum == 0:
        name = "momentum"  # timm's "sgd" is Nesterov's, which needs a momentum
    options: dict[str, Any] = {} if recipe.eps is None else {"eps": recipe.eps}
    if name in FUSED and all(_can_be_fused(p) for p in chosen):
        options["fused"] = True
    return create_optimizer_v2(
        [g for g in groups if g["params"]],
        opt=name,
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        **options,
    )


def _can_be_fused(parameter: nn.Parameter) -> bool:
    """Whether the fused kernels may update it; they read memory in order, whatever the strides.

    A gradient has the strides of its parameter, but moments from a file are contiguous.
    """
    return parameter.device.type in FUSED_DEVICES and parameter.is_contiguous()


class Schedule:
    """Sets the rate of each step: linear warm-up, half a cosine down to `min_lr`, cool-down.

    A constant rate has neither. The cosine begins behind the warm-up, or, without `warmup_prefix`,
    with the training, so that the warm-up hides its first part. A group of the optimiser that has
    an `lr_scale` gets this share of every rate.
    """

    def __init__(self, recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.cosine: CosineLRScheduler | None = None
        if recipe.schedule == "constant":
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * group.get("lr_scale", 1.0)
            return
        unit = steps_per_epoch if recipe.schedule_unit == "step" else 1
        total = recipe.epochs * unit
        warmup = min(recipe.warmup_epochs * unit, total - 1)
        decay = total - warmup if recipe.warmup_prefix else total
        self.cosine = CosineLRScheduler(
            optimizer,
            t_initial=max(2, decay),  # timm remarks on a cosine of one step
            lr_min=min(recipe.min_lr, recipe.peak_lr),
            warmup_t=warmup,
            warmup_lr_init=min(recipe.warmup_lr, recipe.peak_lr),
            warmup_prefix=recipe.warmup_prefix,
            t_in_epochs=recipe.schedule_unit == "epoch",
        )

    def begin_step(self, epoch: int, step: int) -> None:
        """Set the rate of a `step`, counted over all epochs, in `epoch`; both count from 0."""
        if self.cosine is not None:  # of the two calls, the one in the other unit does nothing
            self.cosine.step(max(0, epoch - self.recipe.schedule_delay))
            self.cosine.step_update(step)
