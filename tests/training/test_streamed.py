"""Images that stay in their file: read ahead of the device, and the same numbers in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.together import together
from torch import Tensor, nn

from peftbench.data import TrainSplit, rows
from peftbench.data.images import row_type
from peftbench.errors import DataError
from peftbench.spec import Preprocessing, Recipe
from peftbench.training import pixels as module
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.device import Compute, seeded
from peftbench.training.evaluate import predict
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Callbacks, fit
from peftbench.training.pixels import Pixels, room
from peftbench.training.world import ALONE, World, from_environment, join, leave

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are read by preadv")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE, CLASSES, COUNT = 6, 3, 23
HOW = Preprocessing(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.5))
PLAIN = Recipe(optimizer="adamw", lr=0.01, epochs=3, warmup_epochs=0, batch_size=5)
EVERYTHING = dataclasses.replace(
    PLAIN, augmentation="crop_flip", mixup=0.8, cutmix=1.0, random_erasing=0.5, ema_decay=0.7
)
Change = Callable[[int], object]


class Small(nn.Module):
    """A classifier with dropout; `then` is called with the number of each forward pass."""

    def __init__(self, then: Change = lambda call: None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()
        self.then, self.calls = then, 0

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S)."""
        self.calls += 1
        self.then(self.calls)
        return self.head(nn.functional.dropout(x.flatten(1), 0.2, self.training))


def stored(folder: Path, whole: bool) -> TrainSplit:
    """A map of noise; `whole` pictures are larger, and their sizes stand beside them."""
    path, side = folder / f"{whole}.npy", 2 * SIZE if whole else SIZE
    if not path.exists():
        generator = np.random.default_rng(0)
        noise = generator.integers(0, 256, (COUNT + 2, side, side, 3), dtype=np.uint8)
        array: Any = noise
        if whole:
            array = np.zeros(len(noise), dtype=row_type(side, whole))
            array["pixels"], array["size"] = noise, generator.integers(5, 50, (len(noise), 2))
        np.save(path, array)
    mapped = np.load(path, mmap_mode="r")[2:]
    names = tuple(map(str, range(COUNT)))
    labels = np.arange(COUNT) % CLASSES
    if whole:
        return TrainSplit(mapped["pixels"], labels, names, mapped["size"])
    return TrainSplit(mapped, labels, names)


def trained(
    train: TrainSplit, recipe: Recipe, model: Small | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """All that a training leaves behind: tensors, losses, accuracies."""
    model = model or Small()
    compute = Compute(CPU, torch.float32, options.pop("world", ALONE), options.pop("micro", None))
    fittable = Fittable(model, list(model.parameters()), model.train, HOW, num_classes=CLASSES)
    with seeded(1, compute):
        fitted = fit(
            fittable, train, recipe, seed=1, compute=compute, callbacks=Callbacks(**options)
        )
    told = np.array([(row.loss, row.accuracy) for row in fitted.history])
    return {"told": told} | {k: v.numpy().copy() for k, v in model.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@contextlib.contextmanager
def streaming() -> Iterator[None]:
    """Inside, no array is small enough to be kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "SMALL", 0)
        patch.setattr(module, "SMALL", 0)
        yield


def readers() -> list[str]:
    """Threads that read images."""
    return [t.name for t in threading.enumerate() if t.name.startswith("peftbench-images")]


def batches(pixels: Pixels, *asked: list[int]) -> list[Tensor]:
    return list(pixels.batches(torch.tensor(index) for index in asked))


def test_pixels_are_normalised_channel_by_channel() -> None:
    images = np.zeros((2, 1, 2, 3), dtype=np.uint8)
    images[0, 0, 0] = (255, 51, 0)
    images[1, 0, 1] = (102, 0, 204)
    pixels = Pixels(images, mean=(0.5, 0.2, 0.0), std=(0.25, 0.1, 2.0), device=CPU)
    assert len(pixels) == 2
    [x] = batches(pixels, [1, 0])
    assert x.shape == (2, 3, 1, 2)
    assert x.dtype is torch.float32
    # (value / 255 - mean) / std; 255, 51, 102 and 204 are 1, 0.2, 0.4 and 0.8
    expected = [
        [[[-2.0, (0.4 - 0.5) / 0.25]], [[-2.0, -2.0]], [[0.0, 0.4]]],
        [[[(1 - 0.5) / 0.25, -2.0]], [[0.0, -2.0]], [[0.0, 0.0]]],
    ]
    torch.testing.assert_close(x, torch.tensor(expected), rtol=0, atol=1e-6)
    lowest, highest = pixels.limits
    torch.testing.assert_close(lowest, torch.tensor([-2.0, -2.0, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(highest, torch.tensor([2.0, 8.0, 0.5]).view(1, 3, 1, 1))


@pytest.mark.parametrize("whole", [False, True])
def test_images_that_are_too_many_to_be_kept_stay_in_their_file(
    tmp_path: Path, whole: bool
) -> None:
    images = stored(tmp_path, whole).images
    kept = Pixels(images, HOW.mean, HOW.std, CPU)
    with streaming():
        streamed = Pixels(images, HOW.mean, HOW.std, CPU)
        in_memory = Pixels(np.array(images), HOW.mean, HOW.std, CPU)
    assert kept.images is not None and kept.images.shape == images.shape
    assert streamed.images is None and streamed.rows.waits and len(streamed) == COUNT
    assert in_memory.images is None and not in_memory.rows.waits  # no copy of what is there
    asked = [3, 0, 3, 22], [7], list(range(9))
    for other in (streamed, in_memory):
        pairs = zip(batches(kept, *asked), batches(other, *asked), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_is_a_copy_that_a_model_may_write_into(tmp_path: Path, streamed: bool) -> None:
    images = stored(tmp_path, False).images
    before = np.array(images)
    with streaming() if streamed else contextlib.nullcontext():
        pixels = Pixels(images, HOW.mean, HOW.std, CPU)
    first, second = batches(pixels, [1, 2], [1, 2])
    assert torch.equal(first, second)
    first.zero_()
    assert torch.equal(batches(pixels, [1, 2])[0], second)
    assert np.array_equal(images, before)


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("recipe", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_training_on_streamed_images_gives_the_very_same_tensors(
    tmp_path: Path, recipe: Recipe, micro: int | None
) -> None:
    train = stored(tmp_path, whole=recipe.augmentation == "crop_flip")
    kept = trained(train, recipe, micro=micro)
    with streaming():
        assert same(trained(train, recipe, micro=micro), kept)
    assert np.isfinite(kept["told"]).all() and len(kept["told"]) == 3


@pytest.mark.parametrize("at", [1, 7, 10])  # first of all, in and at the end of the second epoch
def test_a_training_that_was_cut_goes_on_with_the_images_that_were_left(
    tmp_path: Path, at: int
) -> None:
    train = stored(tmp_path, whole=True)
    whole = trained(train, EVERYTHING)

    def cut(call: int) -> None:
        if call == at:
            raise ZeroDivisionError

    def kept(model: Small) -> dict[str, np.ndarray]:
        place = Checkpoints(tmp_path / "state", steps=2)
        return trained(train, EVERYTHING, model, checkpoints=place)

    with streaming():
        with pytest.raises(ZeroDivisionError):
            kept(Small(cut))
        model = Small()
        assert same(kept(model), whole)
    assert model.calls == 15 - (at - 1) // 2 * 2  # 5 steps an epoch; every second is saved


@pytest.mark.skipif(sys.platform != "linux", reason="forks after torch has started")
def test_processes_that_share_batches_read_what_they_would_keep(tmp_path: Path) -> None:
    train = stored(tmp_path, whole=True)

    def compare(rank: int) -> None:
        world: World = from_environment()
        join(world, CPU)
        kept = trained(train, EVERYTHING, world=world)
        with streaming():
            assert same(trained(train, EVERYTHING, world=world), kept)
        leave(world)

    assert together(2, compare) == [0, 0]


def test_predictions_of_streamed_images_are_the_very_same(tmp_path: Path) -> None:
    images, model = stored(tmp_path, False).images, Small()
    compute = Compute(CPU, torch.float32)
    held = predict(model, np.array(images), HOW, compute, batch_size=4)
    with streaming():
        assert np.array_equal(predict(model, images, HOW, compute, batch_size=4), held)
    assert held.shape == (COUNT, CLASSES)
    assert readers() == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_no_thread_is_left_when_a_step_fails_or_is_interrupted(
    tmp_path: Path, error: type[BaseException]
) -> None:
    seen: list[list[str]] = []

    def fail(call: int) -> None:
        seen.append(readers())
        if call == 2:
            raise error

    with streaming(), pytest.raises(error):
        trained(stored(tmp_path, False), PLAIN, Small(fail))
    assert [len(names) for names in seen] == [1, 1]
    assert readers() == []


def test_no_thread_is_left_when_training_ends_early_or_as_it_should(tmp_path: Path) -> None:
    model = Small()
    with streaming():
        trained(stored(tmp_path, False), PLAIN, model, on_epoch=lambda row: row.epoch == 2)
        assert readers() == []
    assert model.calls == 10


def test_images_that_are_kept_need_no_thread(tmp_path: Path) -> None:
    seen: list[str] = []
    trained(stored(tmp_path, False), PLAIN, Small(lambda call: seen.extend(readers())))
    assert seen == []


def test_an_error_of_the_reader_ends_the_training_and_names_the_file(tmp_path: Path) -> None:
    train = stored(tmp_path, False)

    def cut_short(call: int) -> None:
        if call == 1:
            os.truncate(tmp_path / "False.npy", 128 + 4 * 3 * SIZE * SIZE)  # two of its images

    model = Small(cut_short)
    with streaming(), pytest.raises(DataError, match="was cut short while it was read"):
        trained(train, PLAIN, model)
    assert 1 <= model.calls <= 4  # those that had been read already
    assert readers() == []


class Slow:
    """Rows that are read at once, and remembered."""

    shape, dtype, waits = (100, 1, 1, 3), np.dtype(np.uint8), True

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.arrived = threading.Condition()

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        out[...] = index[:, None, None, None]
        with self.arrived:
            self.asked.append(int(index[0]))
            self.arrived.notify_all()

    def wait_for(self, count: int) -> list[int]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.asked) >= count, timeout=30)
            return list(self.asked)


def test_two_batches_are_read_while_one_is_computed_and_no_more() -> None:
    slow = Slow()
    pixels = Pixels(slow, (0.0,) * 3, (1 / 255,) * 3, CPU)
    given = pixels.batches(torch.tensor([number]) for number in range(100))
    assert slow.asked == []  # nothing before the first is wanted
    assert next(given).flatten().tolist() == pytest.approx([0, 0, 0])
    assert slow.wait_for(3) == [0, 1, 2]
    assert next(given).flatten().tolist() == pytest.approx([1, 1, 1])
    assert slow.wait_for(4) == [0, 1, 2, 3]
    given.close()
    assert slow.asked == [0, 1, 2, 3]
    assert readers() == []


def test_a_gpu_keeps_what_fits_a_quarter_of_its_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert room(GPU) == 400  # 1000 are free, and 600 that torch holds and does not use
    assert room(CPU) == 2**26
