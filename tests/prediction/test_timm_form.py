"""What a merged model tells timm of itself, and what is found where that does not suffice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from peftbench.prediction import timm_form
from peftbench.prediction.transform import Transform
from peftbench.spec import Preprocessing

SQUASH = Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "bilinear")
CROP = Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "lanczos", "crop", 0.9)
LISTS = ("input_size", "mean", "std")
BUILT = {"architecture": "test_vit", "num_classes": 2, "kwargs": {"img_size": 32}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with random weights, in the form that timm reads."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2, img_size=32)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    told = timm_form.config(BUILT, model, ["a", "b"], SQUASH)
    (tmp_path / "config.json").write_text(json.dumps(told))
    return tmp_path


def state(folder: Path) -> dict[str, torch.Tensor]:
    return timm_form.load(folder).state_dict()


def test_a_folder_says_all_that_timm_needs(folder: Path) -> None:
    assert timm_form.difference(folder, state(folder), Transform(SQUASH)) is None
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    told = resolve_model_data_config(model)
    assert {key: list(value) if key in LISTS else value for key, value in told.items()} == {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    assert list(model.pretrained_cfg["label_names"]) == ["a", "b"]
    told = json.loads((folder / "config.json").read_text())
    assert told["pretrained_cfg"].keys().isdisjoint({"url", "hf_hub_id", "test_input_size", "tag"})


@pytest.mark.parametrize("local_dir", [True, False], ids=["timm 1.0.16", "timm 1.0.12"])
def test_both_ways_to_build_it_give_the_same(
    folder: Path, local_dir: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = state(folder)
    monkeypatch.setattr(timm_form, "reads_folders", lambda: local_dir)
    assert timm_form.difference(folder, expected, Transform(SQUASH)) is None


def test_the_nearest_transform_is_told_of_a_crop() -> None:
    told = timm_form.pretrained_cfg(CROP, 7)
    assert (told["crop_mode"], told["crop_pct"], told["num_classes"]) == ("center", 0.9, 7)
    settings = {k: told[k] for k in ("input_size", "interpolation", "crop_mode", "crop_pct")}
    resize, cut = create_transform(**settings, is_training=False).transforms[:2]
    assert (resize.size, cut.size) == (35, (32, 32))  # floor(32 / 0.9)


def test_what_timm_would_do_otherwise_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = state(folder)
    other = {name: tensor + 1 for name, tensor in held.items()}
    assert timm_form.difference(folder, other, Transform(SQUASH)) == (
        "it changes the weights while it reads them"
    )
    assert timm_form.difference(folder, held, Transform(CROP)) == (
        "its transform gives other pixels"
    )

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("of its own")

    monkeypatch.setattr(timm, "create_model", refuse)
    assert timm_form.difference(folder, held, Transform(SQUASH)) == (
        "it cannot build the model (RuntimeError)"
    )
