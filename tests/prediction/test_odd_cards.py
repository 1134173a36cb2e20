"""Cards that say of pictures what no export writes: refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import Finished

import peftbench as pb
from peftbench.errors import ConfigError, WeightsError
from peftbench.run.export import export

PIXELS = ("provenance", "preprocessing")
ODD: list[tuple[tuple[str, ...], Any, str]] = [
    ((*PIXELS, "resize"), "cut", "resize is 'cut', not one of squash, crop"),
    ((*PIXELS, "interpolation"), "x" * 99, "interpolation is 'xx"),
    ((*PIXELS, "mean"), [0.5], "mean is no list of three numbers"),
    ((*PIXELS, "std"), [0.5, 0, 1], "std has a number that is not above 0"),
    ((*PIXELS, "std"), ["a", 1, 1], "std is no list of three numbers"),
    ((*PIXELS, "crop_fraction"), 7, "crop_fraction is 7"),
    (("provenance", "data"), {"levels": [9, 9]}, "levels is a list, not black and white"),
    (("provenance", "data"), {"levels": [0, 2**70]}, "levels is a list, not black and white"),
    (("dtype",), "float8", "its dtype is 'float8', not float32 or bfloat16"),
]


def changed(source: Path, folder: Path, *where: str, to: Any) -> Path:
    """A copy of a folder with another value at `where` in its card."""
    shutil.copytree(source, folder)
    card = json.loads((folder / "card.json").read_text())
    place = card
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = to
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def task(finished: Finished) -> Path:
    return finished.store.artefacts(finished.record)


@pytest.fixture(scope="module")
def whole(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("odd") / "whole"
    return export(finished.record.run_id, finished.store.root, out, merged=True)


@pytest.mark.parametrize(("where", "value", "said"), ODD)
def test_pixels_that_no_export_writes_are_refused(
    task: Path, whole: Path, tmp_path: Path, where: tuple[str, ...], value: Any, said: str
) -> None:
    loaded = pb.load(changed(task, tmp_path / "task", *where, to=value))  # it is a model still
    merged = changed(whole, tmp_path / "whole", *where, to=value)
    for use in (
        lambda: loaded.transform,
        lambda: loaded.predict("a.png"),
        lambda: pb.merge(loaded),
        lambda: pb.load(merged),
    ):
        with pytest.raises(WeightsError, match="cannot be predicted with: its ") as caught:
            use()
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_card_from_before_levels_and_arithmetic_predicts(task: Path, tmp_path: Path) -> None:
    folder = changed(task, tmp_path / "old", "provenance", "data", to={"classes": 3})
    card = json.loads((folder / "card.json").read_text())
    del card["dtype"]
    (folder / "card.json").write_text(json.dumps(card))
    loaded = pb.load(folder)
    assert loaded.transform.levels is None and loaded.predictor.dtype is torch.float32
    assert loaded.predict(np.zeros((9, 7, 3), np.uint8)).class_name in loaded.classes


def test_a_task_of_another_kind_does_not_predict_classes(task: Path, tmp_path: Path) -> None:
    loaded = pb.load(changed(task, tmp_path / "other", "spec", "task", to="regression"))
    with pytest.raises(ConfigError, match="of task=regression; only classes are predicted"):
        loaded.predict("a.png")
