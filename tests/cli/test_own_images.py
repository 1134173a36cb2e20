"""One's own images from the command line: what is told before training, and how often."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.tiny_runs import write_images

from peftbench.results.store import ResultsStore
from peftbench.sweep.launchers import pool
from peftbench.sweep.queues.pool import Command

QUICK = (
    "backbone.image_size=12",
    "recipe.epochs=1",
    "recipe.warmup_epochs=0",
    "recipe.batch_size=4",
)


def pets(work: Path) -> Path:
    """Ten cats, and five times the same dog."""
    root = write_images(work / "pets", per_class=10)
    for index in range(1, 10):
        (root / "dog" / f"{index}.png").unlink()
        if index < 5:
            shutil.copy(root / "dog" / "0.png", root / "dog" / f"{index}.png")
    return root


# of ten cats 1 is val and 2 test; the five dogs are one picture, which can only train
TOLD = (
    "pets: 15 images of 2 classes in {root} (class folders). Split drawn here: train 12, val 1, "
    "test 2 (dataset.split_seed=0).",
    "4 of 15 images are copies of others, or nearly: copies stay in one split "
    "(dataset.group_copies=false draws them like any image).",
    "1 of 2 classes has no image in test, first 'dog'.",
    "Smallest class 'dog' has 5 images, largest 'cat' 10 (2.0 to 1): read mean per-class accuracy "
    "beside top-1, or choose by it with selection.metric=mean_per_class.",
)
COPIES = ("4 of 12 images of train repeat another one of train byte for byte.",)
SIZES = "Input 12 x 12 px; the pictures' shorter side is 6 px (median)."
TORN = (  # of five dogs one is val and one test
    "1 of 3 test images is byte for byte in train or val as well: results flatter. "
    "Remove the copies.",
    "2 of 10 images of train repeat another one of train byte for byte.",
)


def told(root: Path) -> str:
    return "".join(f"{line}\n" for line in (*TOLD, *COPIES, SIZES)).format(root=root)


def test_a_folder_of_pictures_is_told_of_and_scored_in_one_command(cli, work: Path) -> None:
    root = pets(work)
    done = cli("run", "dataset=folder", "dataset.root=pets", *QUICK)
    assert done.status == 0
    assert done.err == told(root)
    (record,) = ResultsStore("results").records()
    assert record.notes == list(COPIES)
    top1, mean = (100 * record.metrics[f"test/{name}"] for name in ("top1", "mean_per_class"))
    assert f": {top1:.1f} % top-1, {mean:.1f} % mean per class of 2 test images, " in done.out
    again = cli("run", "dataset=folder", "dataset.root=pets", *QUICK)
    assert (again.status, again.err) == (0, "")  # nothing trains, so nothing is told


def test_copies_that_are_drawn_apart_are_told_of(cli, work: Path) -> None:
    pets(work)
    apart = ("dataset.group_copies=false", "dataset.limit=4")
    done = cli("run", "dataset=folder", "dataset.root=pets", *QUICK, *apart)
    assert done.status == 0
    assert "Split drawn here: train 10, val 2, test 3 (dataset.split_seed=0)." in done.err
    (record,) = ResultsStore("results").records()
    assert record.notes[: len(TORN)] == list(TORN)


def test_a_sweep_tells_of_each_data_set_once_and_its_jobs_do_not(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pets(work)
    commands: list[Command] = []

    class Nothing:
        left = 0

        def add(self, batch: Iterable[Command], *, first: bool = False) -> None:
            commands.extend(batch)

        def run(self) -> Iterator[None]:
            return iter(())

    monkeypatch.setattr(pool, "Pool", lambda *args, **options: Nothing())
    sweep = ("-m", "dataset=folder", "dataset.root=pets", "method=linear,lora", "seed=0,1")
    done = cli("run", *sweep, *QUICK)
    assert done.status == 0
    assert done.err == told(root)
    assert len(commands) == 4
    assert all(command.arguments[1] == "quiet=true" for command in commands)
    commands.clear()
    assert cli("run", *sweep, *QUICK, "quiet=true").err == ""
    assert cli("plan", *sweep, *QUICK).err == ""


@pytest.mark.parametrize("quiet", ["quiet=true", "dataset=mini/digits"])
def test_quiet_runs_and_shipped_data_sets_are_not_told_of(cli, work: Path, quiet: str) -> None:
    pets(work)
    chosen = ("dataset=folder", "dataset.root=pets") if quiet == "quiet=true" else ()
    done = cli("run", *chosen, *QUICK, quiet, "dataset.limit=4")
    assert (done.status, done.err) == (0, "")
