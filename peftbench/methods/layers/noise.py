"""Noise on what a method adds to the outputs of layers, for objectives that compare noisy passes.

PACE (Ni et al., 2024, arXiv 2409.17137): a(x) becomes a(x) (1 + sigma z), where a(x) is what an
adapter adds and z is drawn for each sample and channel and is the same for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.methods import surgery
from peftbench.methods.layers.passes import PassNote
from peftbench.methods.layers.stream import StreamBlock, StreamInput

# modules that know what they add; of a `StreamInput` only those with an adapter add something
ADDING = (surgery.OutputAdapter, surgery.InputAdapter, surgery.DeltaLayer, StreamInput)
CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d)


class ChangeNoise:
    """Multiplies a change with noise while a pass is noisy."""

    def __init__(self, sigma: float, noisy: PassNote[int], axis: int = -1) -> None:
        self.sigma = sigma
        self.noisy = noisy  # how many views of each image a noisy pass has
        self.axis = axis  # of the channels
        self.draw: Callable[[Tensor], Tensor] = torch.randn_like

    def __bool__(self) -> bool:
        """Whether the pass under way has noise here."""
        return self.sigma != 0 and self.noisy.value is not None

    def __call__(self, change: Tensor) -> Tensor:
        """change (B, ..., C) or (B, C, H, W), as it goes on."""
        if not self:
            return change
        shape = [1] * change.ndim
        shape[0], shape[self.axis] = change.shape[0], change.shape[self.axis]
        z = self.draw(change.detach().new_empty(shape))
        return change * (1 + self.sigma * z)


class SharedDropPath(DropPath):
    """Drop-path with one mask for all views of an image, divided by its mean, in noisy passes."""

    noisy: PassNote[int] | None = None

    def share(self, noisy: PassNote[int]) -> None:
        """From now on the views of a noisy pass have one mask."""
        self.noisy = noisy

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...), of which whole images are zero where they are dropped."""
        views = None if self.noisy is None else self.noisy.value
        if views is None or not self.training or self.drop_prob == 0:
            return super().forward(x)
        mask = x.new_empty(len(x) // views, *(1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        mask = torch.cat([mask] * views)
        return x * (mask / mask.mean().clamp(min=torch.finfo(mask.dtype).eps))


class DisturbedTuner(nn.Module):
    """A layer of Hugging Face `peft` as it computes, with what it adds to its base disturbed."""

    disturb: Callable[[Tensor], Tensor] | None = None

    def disturb_by(self, disturb: Callable[[Tensor], Tensor]) -> None:
        """Let training change what is added here, (...)."""
        self.disturb = disturb

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer gives for x (B, ...)."""
        out: Tensor = super().forward(x, *args, **kwargs)
        if not self.disturb:
            return out
        base: Any = getattr(self, "layer", self)
        y: Tensor = base.get_base_layer()(x)
        return y + self.disturb(out - y)


def sigma_at(depth: int, anatomy: Anatomy, sigma: float) -> float:
    """Of a block, or of the classifier at the depth behind the last one.

    It falls in equal steps to the classifier. The first block of a plain ViT has none, as in the
    released code; elsewhere it has the whole sigma.
    """
    first = 0 if anatomy.tokens is None else 1
    steps = anatomy.depth - first + 1
    place = max(depth, 0) - first
    return 0.0 if place < 0 else sigma * (steps - place) / steps


def disturb(
    model: nn.Module, anatomy: Anatomy, sigma: float, noisy: PassNote[int]
) -> dict[str, ChangeNoise]:
    """Give each module of `model` that knows what a method adds its noise; they are by path."""
    found: dict[str, ChangeNoise] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, DropPath):
            surgery.become(module, SharedDropPath)
            module.share(noisy)  # type: ignore[operator]
        inside = path.rpartition(".")[0] in found  # of a layer that has noise as a whole
        if inside or not _adds(module):
            continue
        if not isinstance(module, (*ADDING, DisturbedTuner)):
            kind = type(module)
            surgery.become(module, type(f"Disturbed{kind.__name__}", (DisturbedTuner, kind), {}))
        bare = bare_path(model, path)
        noise = ChangeNoise(
            sigma_at(_depth(bare, anatomy), anatomy, sigma), noisy, _axis(module, bare, anatomy)
        )
        module.disturb_by(noise)
        found[path] = noise
    return found


def _adds(module: nn.Module) -> bool:
    """Whether a module knows what a method adds in it, or is a layer of a tuner of `peft`."""
    if isinstance(module, StreamInput):
        return module.adapter is not None
    if isinstance(module, ADDING):
        return True
    inner = module if hasattr(module, "get_base_layer") else getattr(module, "layer", None)
    return inner is not None and hasattr(inner, "get_base_layer")


def bare_path(model: nn.Module, path: str) -> str:
    """Where a module of a tuned model was in the bare backbone."""
    names, module = [], model
    for name in path.split("."):
        within = isinstance(module, surgery.Around) and name == "base"
        within |= isinstance(module, StreamBlock) and name == "block"
        if not within:
            names.append(name)
        module = module.get_submodule(name)
    return ".".join(names)


def _depth(bare: str, anatomy: Anatomy) -> int:
    """Of the block that a module is in, or that is in front of it."""
    sites = (*anatomy.where(Role.BLOCK), *anatomy.sites)
    for site in sites:
        if f"{bare}.".startswith(f"{site.path}."):
            return min(site.depth, anatomy.depth - 1)
    return 0


def _axis(module: nn.Module, bare: str, anatomy: Anatomy) -> int:
    """The axis of the channels of what is added."""
    last = [site.channels_last for site in anatomy.sites if site.path == bare]
    base = getattr(module, "base", None)
    first = isinstance(base, CHANNELS_FIRST) if not last else not last[0]
    return 1 if first else -1
