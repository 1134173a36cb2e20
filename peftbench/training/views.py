"""A fixed number of augmented views of each image, of which epochs take turns."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from peftbench.data.rows import RowSource, take
from peftbench.spec import WHOLE_BY_INPUT, Recipe
from peftbench.training import crops
from peftbench.training.augment import ERASED_RATIO, ERASED_SCALE
from peftbench.training.pixels import Pixels


@dataclass(frozen=True)
class FixedViews:
    """What is drawn once for each image and view: a crop, whether it is mirrored, what is erased.

    It depends on the number of the image and of the view, and not on the seed of the run, its order
    of images or its batches: runs of several seeds and methods train on the same views.

    Args:
        recipe: whose `fixed_views` epochs take turns.
        size: side of what is cropped.
        limits: lowest and highest values of pixels, which a crop is clamped to.
    """

    recipe: Recipe
    size: int
    limits: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """How many there are of each image."""
        assert self.recipe.fixed_views is not None
        return self.recipe.fixed_views

    def __call__(
        self, x: Tensor, numbers: Sequence[int], view: int, sizes: Sequence[tuple[int, int]] | None
    ) -> Tensor:
        """One view of each image: (B, 3, S, S).

        Args:
            x: (B, 3, R, R) normalised images.
            numbers: which images of the split they are.
            view: which of the views, counted from 0.
            sizes: width and height of the pictures that x are squashed copies of; those of x unless
                given.
        """
        recipe, boxes, mirrored = self.recipe, [], []
        cropped = recipe.augmentation in WHOLE_BY_INPUT
        sizes = sizes or [(x.shape[-1], x.shape[-2])] * len(x)
        for number, extent in zip(numbers, sizes, strict=True):
            with _drawing(f"view {view} of image {number}"):
                if cropped:
                    boxes.append(crops.draw(recipe.augmentation, [extent], self.size))
                mirrored.append(bool(torch.rand(()) < 0.5))
        if cropped:
            x = crops.cut(x, torch.cat(boxes), self.size)
            x = x if self.limits is None else x.clamp(*self.limits)
        if recipe.augmentation != "none":
            flip = torch.tensor(mirrored).to(x.device, non_blocking=True)
            x = torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)
        if recipe.random_erasing:
            erase = v2.RandomErasing(
                recipe.random_erasing, ERASED_SCALE, ERASED_RATIO, value="random"
            )
            erased = []
            for number, image in zip(numbers, x, strict=True):
                with _drawing(f"erased of view {view} of image {number}"):
                    erased.append(erase(image))
            x = torch.stack(erased)
        return x


class ViewedPixels:
    """One view of each image, batch by batch."""

    def __init__(
        self, pixels: Pixels, views: FixedViews, view: int, sizes: RowSource | None
    ) -> None:
        self.pixels, self.views, self.view, self.sizes = pixels, views, view, sizes

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, asked: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """(B, 3, S, S) of the images at each index (B,); see `DeviceRows.batches`."""
        index = list(asked)
        with contextlib.closing(self.pixels.batches(index)) as batches:
            for numbers, x in zip(index, batches, strict=True):
                sizes = None if self.sizes is None else take(self.sizes, numbers.cpu().numpy())
                given = None if sizes is None else sizes.tolist()
                yield self.views(x, numbers.tolist(), self.view, given)


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    """Inside, the CPU's global generator draws what belongs to `name`."""
    outside = torch.get_rng_state()
    torch.default_generator.manual_seed(
        int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])  # of seeds it takes 32 bits
    )
    try:
        yield
    finally:
        torch.set_rng_state(outside)
