"""What a recipe does to images on the device, from randomness of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from peftbench.spec import WHOLE_BY_INPUT, Recipe
from peftbench.training import crops

ERASED_SCALE = (0.02, 1 / 3)  # as timm erases, with noise in each pixel
ERASED_RATIO = (0.3, 1 / 0.3)


class Augmentation:
    """Crops, mirrors, mixes and erases batches, each step only where the recipe asks for it.

    All methods see the same images under one seed: nothing is drawn from the generator that
    dropout draws from. Crops are drawn in pictures as they were before they became squares.

    Args:
        size: side of what is cropped; that of the images unless given.
        limits: lowest and highest values of pixels, which a crop is clamped to.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        seed: int,
        size: int | None = None,
        limits: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.recipe = recipe
        self.size = size
        self.limits = limits
        self.num_classes = num_classes
        self.generator = torch.Generator().manual_seed(_other_seed(seed))
        self.erase = v2.RandomErasing(
            recipe.random_erasing, ERASED_SCALE, ERASED_RATIO, value="random"
        )
        mixers = {v2.MixUp: recipe.mixup, v2.CutMix: recipe.cutmix}
        chosen = [
            mixer(alpha=alpha, num_classes=num_classes) for mixer, alpha in mixers.items() if alpha
        ]
        self.mix = v2.RandomChoice(chosen) if chosen else None

    def state_dict(self) -> dict[str, Any]:
        """The state of its randomness."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw on from there."""
        self.generator.set_state(state["generator"])

    def needed(self, rows: Sequence[int], batch_size: int) -> list[int]:
        """Rows of a batch from which the augmented `rows` are made, sorted.

        An image is mixed with the one before it, and the first with the last.
        """
        before = [(row - 1) % batch_size for row in rows] if self.mix is not None else []
        return sorted({*rows, *before})

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        flip_draws: Tensor,
        rows: Sequence[int] | None = None,
        batch_size: int | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images and what the loss compares with: y, or shares of the classes if images mix.

        With `rows`, sorted, only these of a batch of `batch_size` are made, and they are what the
        whole batch would have there: what the others need is drawn all the same.

        Args:
            x: (B, 3, R, R) normalised images, or those that are `needed`.
            y: (B,) their classes; the targets of mixed images are (B, C) and sum to one.
            flip_draws: (B,) uniform in [0, 1); an image is mirrored where its draw is below 1/2.
            sizes: width and height of each picture of the whole batch, of which x are squashed
                copies; those of x unless given. Read by crops.
        """
        count = len(x) if batch_size is None else batch_size
        rows = range(count) if rows is None else rows
        given = self.needed(rows, count)
        if len(given) != len(x):
            raise ValueError(f"{len(x)} images for rows that are made from {len(given)}")
        with _drawing_from(self.generator):
            if self.recipe.augmentation in WHOLE_BY_INPUT:
                x = self._cropped(x, given, sizes or [(x.shape[-1], x.shape[-2])] * count)
            if self.recipe.augmentation != "none":
                x = torch.where(flip_draws.view(-1, 1, 1, 1) < 0.5, x.flip(-1), x)
            if self.mix is not None:
                x, y = self.mix(x, y)
                place = {row: i for i, row in enumerate(given)}
                kept = torch.tensor([place[row] for row in rows], device=x.device)
                x, y = x[kept], y[kept]
            if self.recipe.random_erasing:
                blank = torch.empty(x.shape[1:])
                x = _each(self.erase, lambda: self.erase(blank), x, rows, count)
        return x, y

    def _cropped(self, x: Tensor, given: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Tensor:
        size = self.size or x.shape[-1]
        boxes = crops.draw(self.recipe.augmentation, sizes, size)[list(given)]
        x = crops.cut(x, boxes, size)
        return x if self.limits is None else x.clamp(*self.limits)


def _each(
    change: Callable[[Tensor], Tensor],
    draw: Callable[[], object],
    x: Tensor,
    rows: Sequence[int],
    batch_size: int,
) -> Tensor:
    """`x`, the `rows` of a batch, each changed; for all others `draw` draws what `change` would."""
    images = iter(x)
    changed = []
    own = set(rows)
    for row in range(batch_size):
        if row in own:
            changed.append(change(next(images)))
        else:
            draw()
    return torch.stack(changed)


def _other_seed(seed: int) -> int:
    """A seed for another stream than the order of the images, which has `seed` itself."""
    return int.from_bytes(hashlib.sha256(f"augmentation {seed}".encode()).digest()[:7])


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Inside, what draws from the CPU's global generator, as torchvision does, uses this one."""
    outside = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(outside)
