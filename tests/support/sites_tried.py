"""What a method does to a backbone with random weights: refused, wrong somewhere, or right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.copies import full_copy
from peftbench.backbones.inference.confirm import randomised
from peftbench.errors import NoEffect, NotMergeable, Unsupported
from peftbench.methods import METHODS, Method, Tuned, apply
from peftbench.methods.base import Preparation
from support.tuners import QUICK

CLASSES = 5
SEEDS = (1, 2, 3)  # of other weights, for what is dead with the first
MERGED = 1e-4  # of the largest logit: what folding may change, in float64


@dataclass(frozen=True)
class Tried:
    """What came of it. Empty where there is nothing to say."""

    refusal: str = ""
    dead: tuple[str, ...] = ()  # tensors of the method of which the output does not depend
    drifting: tuple[str, ...] = ()  # statistics of frozen layers that training changed
    unmerged: str = ""  # why it cannot be folded, where the method can
    merge_error: float = 0.0  # relative to the largest logit

    @property
    def is_right(self) -> bool:
        """Whether it is taken and nothing is wrong."""
        wrong = self.dead or self.drifting or self.merge_error > MERGED
        return not self.refusal and not wrong


def random_copy(model: nn.Module, channels: int, side: int, seed: int = 0) -> nn.Module:
    """`model` with random weights, of which none is zero, and statistics that fit them."""
    image = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    return randomised(model, image, seed)


def tried_again(name: str, model: nn.Module, anatomy: Anatomy, outcome: Tried) -> Tried:
    """`outcome` with those tensors alone dead that are so with other weights too.

    Random weights shut some gates for good: a hard sigmoid, or a ReLU of few channels.
    """
    for seed in SEEDS:
        if not outcome.dead:
            break
        again = tried(name, random_copy(model, anatomy.channels, anatomy.image_size, seed), anatomy)
        outcome = replace(outcome, dead=tuple(n for n in outcome.dead if n in again.dead))
    return outcome


def tried(name: str, model: nn.Module, anatomy: Anatomy) -> Tried:
    """Put a method with its defaults on a copy of `model`, and look.

    Args:
        model: with random weights, on the CPU.
        anatomy: of `model`.
    """
    generator = torch.Generator().manual_seed(0)
    method = METHODS[name](**QUICK.get(name, {}))
    try:
        prepared = _prepared(method, model, anatomy)
        tuned = apply(method, full_copy(model), anatomy, CLASSES, generator, prepared)
    except (Unsupported, NoEffect) as e:
        return Tried(refusal=str(e))
    _move(tuned)
    tuned.model.double()
    side = anatomy.image_size
    x = torch.randn(2, anatomy.channels, side, side, generator=generator, dtype=torch.float64)
    drifting = _drifting(tuned, x)
    tuned.model.eval()
    output: Tensor = tuned.model(x)
    assert output.shape == (2, CLASSES) and bool(output.isfinite().all())
    dead = _dead(tuned, x, output)
    if not METHODS[name].card.mergeable:
        return Tried(dead=dead, drifting=drifting)
    try:
        merged = tuned.method.merge(full_copy(tuned.model)).eval()
    except NotMergeable as e:
        return Tried(dead=dead, drifting=drifting, unmerged=str(e))
    with torch.no_grad():
        error = float((merged(x) - output).abs().max() / output.abs().max())
    return Tried(dead=dead, drifting=drifting, merge_error=error)


def _prepared(method: Method, model: nn.Module, anatomy: Anatomy) -> Preparation | None:
    """What the method learns of a few random images, where it looks at any."""
    if not method.looks_at_images:
        return None
    method.check(anatomy)
    shape = (4, anatomy.channels, anatomy.image_size, anatomy.image_size)
    seen = [(torch.randn(shape, generator=torch.Generator().manual_seed(3)), torch.arange(4) % 2)]
    generator = torch.Generator().manual_seed(4)
    return method.prepare(full_copy(model), anatomy, seen, generator)


@torch.no_grad()
def _move(tuned: Tuned) -> None:
    """Move the new tensors away from where they start, by what does not drown the rest."""
    generator = torch.Generator().manual_seed(1)
    for parameter in (*tuned.method_params.values(), *tuned.head_params.values()):
        size = 0.3 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2
        parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@torch.no_grad()
def _drifting(tuned: Tuned, x: Tensor) -> tuple[str, ...]:
    before = {n: b.clone() for n, b in tuned.model.named_buffers() if "running_" in n}
    tuned.train()
    tuned.model(x)
    after = dict(tuned.model.named_buffers())
    changed = {n for n, b in before.items() if not torch.equal(b, after[n])}
    return tuple(sorted(changed - tuned.changing_buffers.keys()))


def _dead(tuned: Tuned, x: Tensor, output: Tensor) -> tuple[str, ...]:
    """Tensors that the method added and that change nothing, by gradient, then by moving them.

    But for those of which the method says so.
    """
    unmoved = tuned.method.unmoved()
    parameters = {
        n: tuned.model.get_parameter(n)
        for n in tuned.method_params
        if not any(fnmatchcase(n, pattern) for pattern in unmoved)
    }
    if not parameters:
        return ()
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    gradients = torch.autograd.grad(
        (output * weight).sum(), list(parameters.values()), allow_unused=True
    )
    dead = []
    for (path, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is not None and bool((gradient != 0).any()):
            continue
        with torch.no_grad():
            old = parameter.clone()
            parameter.add_(torch.randn(old.shape, generator=generator, dtype=old.dtype))
            if torch.equal(tuned.model(x), output):
                dead.append(path)
            parameter.copy_(old)
    return tuple(dead)
