"""Runs in which everything that draws random numbers is on, and what happens in their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from peftbench.methods.vpt import VPTDeep
from peftbench.spec import RunSpec
from peftbench.training import loop
from support.tiny_runs import digits, tiny_spec

RECIPE = {
    "epochs": 3,
    "batch_size": 4,
    "warmup_epochs": 1,
    "augmentation": "crop_flip",
    "mixup": 0.8,
    "random_erasing": 0.3,
    "ema_decay": 0.9,
    "frozen_mode": "train",
}


def random_run(images: int, **recipe: Any) -> RunSpec:
    """A run on so many images of each split, of which batches of 4 are made."""
    return tiny_spec(VPTDeep(dropout=0.3), dataset=digits(images), recipe=RECIPE | recipe)


@contextmanager
def told_of_steps(
    begins: Callable[[int], object], ended: Callable[[int], object] = lambda number: None
) -> Iterator[None]:
    """Inside, a test hears of each step of the optimiser, counted from 1, before and after it."""
    number = 0
    make = loop.make_optimizer

    def counting(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        step = optimizer.step

        def counted(*args: Any) -> Any:
            nonlocal number
            number += 1
            begins(number)
            result = step(*args)
            ended(number)
            return result

        optimizer.step = counted  # type: ignore[method-assign]
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", counting)
        yield
