"""What of a run is computed once: the frozen part in front of everything that trains."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from peftbench import stopping
from peftbench.data.rows import SMALL, rows_of
from peftbench.errors import ActivationsChanged
from peftbench.run.activation_store import ActivationStore
from peftbench.run.prefix import Prefix, Suffix, activations_of
from peftbench.spec import Preprocessing
from peftbench.training.activations import AT_ONCE, ActivationRows, RowLayout, ViewedActivations
from peftbench.training.device import Compute, autocast
from peftbench.training.pixels import ModelInputs, Pixels
from peftbench.training.views import FixedViews, ViewedPixels

CHECKED = 4  # images, after training
# of outputs, for roundings in batches of another shape
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass
class FrozenPart:
    """The prefix of one tuned model, and its activations of the images of a run."""

    model: nn.Module
    prefix: Prefix
    compute: Compute
    preprocessing: Preprocessing
    facts: dict[str, Any]  # that decide its activations, but for the images
    store: ActivationStore
    found: int = 0  # images whose activations were stored already
    computed: int = 0
    views: FixedViews | None = None  # that training sees of the images, and their pictures' sizes
    sizes: np.ndarray | None = None
    passes: float | None = None  # over the images that train, where they were made elsewhere
    told: Callable[[int, int], object] = lambda done, images: None  # how many are computed
    suffix: nn.Module = field(init=False)
    _trains: int | None = None  # which of the images train
    _offered: dict[int, tuple[np.ndarray, bool]] = field(default_factory=dict)
    _inputs: dict[int, ActivationRows | ViewedActivations | None] = field(default_factory=dict)
    _spent: dict[int, tuple[float, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.suffix = Suffix(self.model, self.prefix)

    def anew(self) -> FrozenPart:
        """The same for another run of the same model: nothing is found or computed yet."""
        fresh = FrozenPart(
            self.model,
            self.prefix,
            self.compute,
            self.preprocessing,
            self.facts,
            self.store,
            views=self.views,
            sizes=self.sizes,
        )
        if self._trains is not None:
            fresh.offer(*self._offered[self._trains], trains=True)
        return fresh

    def offer(self, images: np.ndarray, often: bool, trains: bool = False) -> None:
        """Images (N, S, S, 3) that the model will see; those that it sees `often` may be large."""
        self._trains = id(images) if trains else self._trains
        known = self._offered.get(id(images), (images, False))
        self._offered[id(images)] = images, often or known[1]

    def inputs(self, images: np.ndarray) -> ModelInputs | None:
        """The activations of offered images (N, S, S, 3); `None` where they are not kept."""
        if id(images) not in self._offered:
            return None
        if id(images) not in self._inputs:
            self._inputs[id(images)] = self._stored(*self._offered[id(images)])
        return self._inputs[id(images)]

    def _stored(self, images: np.ndarray, often: bool) -> ActivationRows | ViewedActivations | None:
        views = self.views if id(images) == self._trains else None
        prefix, size = self.prefix, len(images) * self.prefix.row_bytes
        size *= 1 if views is None else views.count
        if not self.store.takes(size) or not (often or size <= SMALL):
            return None
        norm, device = self.preprocessing, self.compute.device
        pixels = Pixels(images, norm.mean, norm.std, device, keep=prefix.needs_images)
        facts = {**self.facts, "images": _digest(images)}
        if views is None:
            return self._rows(images, pixels, facts)
        if prefix.needs_images:  # which would have to be augmented in every epoch after all
            return None
        recipe, sizes = views.recipe, None if self.sizes is None else rows_of(self.sizes)
        facts["sizes"] = None if self.sizes is None else _digest(self.sizes)
        facts["augmentation"] = [recipe.augmentation, recipe.random_erasing, views.size]
        found = []
        for view in range(views.count):
            seen = ViewedPixels(pixels, views, view, sizes)
            rows = self._rows(images, seen, {**facts, "view": view})
            if rows is None:
                return None
            found.append(rows)
        return ViewedActivations(found)

    def _rows(
        self, images: np.ndarray, pixels: Pixels | ViewedPixels, facts: dict[str, Any]
    ) -> ActivationRows | None:
        """The activations of images (N, S, S, 3) as `pixels` show them."""
        layout, prefix = RowLayout.of(self.prefix.row), self.prefix
        entry = self.store.entry(
            facts,
            (len(images), prefix.row_bytes),
            lambda: self._counted(
                _computed(self.model, prefix, pixels, layout, self.compute), len(images)
            ),
        )
        if entry is None:
            return None
        seconds, was_found = self._spent.get(id(images), (0.0, True))
        self._spent[id(images)] = seconds + entry.seconds, was_found and entry.found
        if entry.found:
            self.found += len(images)
        else:
            self.computed += len(images)
        beside = pixels if prefix.needs_images and isinstance(pixels, Pixels) else None
        return ActivationRows(entry.rows, layout, beside, self.compute.device)

    def _counted(self, made: Iterator[np.ndarray], images: int) -> Iterator[np.ndarray]:
        """The same rows (n, bytes); says how many there were after some of them."""
        done = 0
        self.told(done, images)
        for rows in made:
            yield rows
            done += len(rows)
            self.told(done, images)

    @torch.no_grad()
    def check(self) -> None:
        """Compare what the trained model gives for a few images with the rest on their activations.

        A gradient shows what trains; this shows what changed all the same.

        Raises:
            ActivationsChanged: they differ by more than rounding.
        """
        images = self._offered[self._trains][0] if self._trains is not None else None
        inputs = None if images is None else self.inputs(images)
        if images is None or inputs is None:
            return
        self.model.eval()
        norm, index = self.preprocessing, torch.arange(min(CHECKED, len(images)))
        pixels = Pixels(images[: len(index)], norm.mean, norm.std, self.compute.device, keep=False)
        shown: Pixels | ViewedPixels = pixels
        if self.views is not None:
            sizes = None if self.sizes is None else rows_of(self.sizes)
            shown = ViewedPixels(pixels, self.views, 0, sizes)
        (whole,), (kept,) = shown.batches([index]), inputs.in_epoch(0).batches([index])
        with autocast(self.compute):
            expected, found = self.model(whole).float(), self.suffix(kept).float()
        tolerance = TOLERANCE[self.compute.dtype] * float(expected.abs().max().clamp(min=1))
        difference = float((expected - found).abs().max())
        if difference > tolerance:  # of outputs that are not finite the run itself will say so
            raise ActivationsChanged(
                f"training changed what {self.prefix.path!r} gives, which nothing that trains "
                f"seemed to reach: outputs differ by {difference:.2g}. Run it with cache=off, and "
                "report this as a bug."
            )

    def spared(self) -> dict[str, Any]:
        """What the record says of it, by fields of `Cost`; nothing where nothing was kept."""
        if not self._spent:
            return {}
        return {
            "frozen_until": self.prefix.path,
            "activations_found": self.found,
            "activations_computed": self.computed,
            "seconds_saved": self._seconds_saved(),
        }

    def _seconds_saved(self) -> float:
        """Of the passes of training that were not made, less the one that was."""
        total = 0.0
        for key, (seconds, was_found) in self._spent.items():
            rows = self._inputs[key]
            if rows is not None and key == self._trains:
                served = rows.served / max(1, len(rows))
                passes = served if self.passes is None else self.passes
                views = 1 if self.views is None else self.views.count  # `seconds` are of all
                total += seconds * (passes / views - (0 if was_found else 1))
        return max(0.0, total)


def _computed(
    model: nn.Module,
    prefix: Prefix,
    pixels: Pixels | ViewedPixels,
    layout: RowLayout,
    compute: Compute,
) -> Iterator[np.ndarray]:
    """Rows of bytes (n, bytes) of the activations of all images, in their order."""
    model.eval()
    asked = torch.arange(len(pixels)).split(AT_ONCE)
    with contextlib.closing(pixels.batches(asked)) as batches:
        for images in batches:
            if compute.world.is_single:
                stopping.check()
            with torch.inference_mode(), autocast(compute):
                values = activations_of(model, prefix, images)
            yield layout.to_bytes(values).cpu().numpy()


def _digest(images: np.ndarray) -> str:
    """SHA-256 of the bytes of an array (N, ...), of its type and of how many there are."""
    digest = hashlib.sha256(f"{images.dtype} {images.shape}\n".encode())
    for start in range(0, len(images), AT_ONCE):
        digest.update(np.ascontiguousarray(images[start : start + AT_ONCE]).data)
    return digest.hexdigest()
