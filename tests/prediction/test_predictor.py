"""`predict`, `transform` and `classes` of a loaded model."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.pictures import CLASSES, KINDS, WHITE, Finished
from timm.data import resolve_model_data_config
from torch import nn

import peftbench as pb
from peftbench.data import threads
from peftbench.data.images import Levels
from peftbench.errors import ConfigError, DataError
from peftbench.prediction import predictor as predictors
from peftbench.prediction import transform
from peftbench.prediction.answer import Prediction
from peftbench.prediction.predictor import AT_ONCE, Predictor
from peftbench.prediction.transform import Transform
from peftbench.run.export import export
from peftbench.spec import Preprocessing

PIXELS = Preprocessing(size=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), interpolation="bicubic")


@pytest.fixture(scope="module")
def model(finished: Finished) -> Any:
    return pb.load(finished.record.run_id, results_dir=finished.store.root)


# ------------------------------------------------------------------- what may be given


def alike(found: Prediction, expected: Prediction) -> None:
    """The same classes, with probabilities that differ as batches of another size do."""
    assert [name for name, _ in found.top] == [name for name, _ in expected.top]
    np.testing.assert_allclose(
        [share for _, share in found.top], [share for _, share in expected.top], atol=1e-6
    )


def test_one_picture_in_any_form_gets_one_prediction(finished: Finished, model: Any) -> None:
    for path in finished.pictures:
        expected = model.predict(path)
        assert isinstance(expected, Prediction)
        with Image.open(path) as lazy:
            alike(model.predict(lazy), expected)
        loaded = Image.open(path)
        loaded.load()
        for picture in (str(path), loaded):
            alike(model.predict(picture), expected)


def test_several_pictures_get_a_list_in_their_order(finished: Finished, model: Any) -> None:
    paths = finished.pictures
    found = model.predict(paths)
    assert [type(one) for one in found] == [Prediction] * len(paths)
    for one, path in zip(found, paths, strict=True):
        alike(one, model.predict(path))
    mixed = model.predict((paths[0], str(paths[1]), Image.open(paths[2])))
    for one, expected in zip(mixed, found, strict=False):
        alike(one, expected)
    assert model.predict([]) == []


def test_arrays_are_rgb_pictures_and_batches_of_them(model: Any) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 20, 31, 3), dtype=np.uint8)
    found = model.predict(batch)
    assert len(found) == 3
    for one, array in zip(found, batch, strict=True):
        alike(one, model.predict(array))
        alike(one, model.predict(Image.fromarray(array)))


def test_a_prediction_names_the_likeliest_classes_in_order(finished: Finished, model: Any) -> None:
    assert model.classes == CLASSES
    for found in model.predict(finished.pictures):
        names, shares = zip(*found.top, strict=True)
        assert sorted(names) == sorted(CLASSES)  # there are three, and five are asked for
        assert list(shares) == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-12)
        assert (found.class_name, found.probability) == found.top[0]
    assert len(model.predict(finished.pictures[0], top=2).top) == 2


def test_probabilities_are_those_of_the_logits(finished: Finished, model: Any) -> None:
    path = finished.pictures[0]
    with torch.inference_mode():
        shares = torch.softmax(model(model.transform(path)[None]).double(), dim=1)[0]
    found = dict(model.predict(path).top)
    for name, share in zip(CLASSES, shares.tolist(), strict=True):
        assert found[name] == pytest.approx(share, abs=1e-6)


class Level(nn.Module):
    """Logits that are all one: every class is as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), 3)


def test_of_equal_classes_the_first_is_told_as_the_test_counts() -> None:
    found = Predictor(Level(), ("a", "b", "c"), Transform(PIXELS)).predict(
        np.zeros((4, 4, 3), np.uint8), top=2
    )
    assert found == Prediction("a", 1 / 3, (("a", 1 / 3), ("b", 1 / 3)))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (np.zeros((4, 4), np.uint8), ConfigError, r"array \(4, 4\) of uint8 is no picture\. Give"),
        (np.zeros((4, 4, 4), np.uint8), ConfigError, r"array \(4, 4, 4\) of uint8 is no picture"),
        (np.zeros((4, 4, 3)), ConfigError, r"array \(4, 4, 3\) of float64 is no picture\. Give"),
        (np.zeros((0, 4, 3), np.uint8), ConfigError, r"array \(0, 4, 3\) of uint8 is no picture"),
        (torch.zeros(3, 4, 4), ConfigError, r"^A Tensor is no picture\. Give the path of a file,"),
        (iter(["a.png"]), ConfigError, r"is no picture\. Give the path"),
        (None, ConfigError, r"A NoneType is no picture"),
        ("gone.png", DataError, r"^Cannot decode image gone\.png: .*No such file"),
        (["gone.png"], DataError, r"^Cannot decode image gone\.png: "),
        (Image.new("F", (3, 3)), DataError, r"in memory: floating-point pixels have no agreed"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(
    model: Any, given: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        model.predict(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("top", [0, -1, True, 2.0, "2"])
def test_a_number_of_classes_that_is_none_is_refused(model: Any, top: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no number of classes\. Use 1 or more"):
        model.predict("a.png", top=top)


# ------------------------------------------------------------------- the transform


def test_pixels_are_normalised_by_mean_and_deviation() -> None:
    """By hand: (p / 255 - mean) / std of each channel."""
    array = np.array([[[255, 255, 255], [0, 0, 0]], [[51, 102, 204], [51, 102, 204]]], np.uint8)
    tensor = Transform(PIXELS)(array)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 2, 2)
    expected = [
        [[1.0, -1.0], [-0.6, -0.6]],
        [[3.0, -1.0], [0.6, 0.6]],
        [[1.0, 0.0], [0.8, 0.8]],
    ]
    torch.testing.assert_close(tensor, torch.tensor(expected), rtol=0, atol=1e-6)


def test_pictures_are_upright_on_white_and_of_the_range_of_their_data(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (Transform(PIXELS).pixels(clear) == 255).all()
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))  # a fifth of black on white
    assert (Transform(PIXELS).pixels(half) == 204).all()
    wide = Image.fromarray(np.array([[0, WHITE], [WHITE // 5, WHITE]], np.uint16))
    scaled = Transform(PIXELS, Levels(0, WHITE)).pixels(wide)
    assert scaled[:, :, 0].tolist() == [[0, 255], [51, 255]]
    turned = Image.fromarray(np.array([[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    seen = Transform(PIXELS).pixels(tmp_path / "turned.png")[:, :, 0]
    assert seen.tolist() == [[3, 1], [4, 2]]


def test_of_wide_pictures_that_the_data_had_none_of_a_line_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transform._warn_of_wide.cache_clear()
    wide = Image.fromarray(np.full((2, 2), WHITE, np.uint16))
    for _ in range(2):  # 4095 of 65535 is 15.9 of 255
        assert (Transform(PIXELS).pixels(wide) == 16).all()
    assert [record.message for record in caplog.records] == [
        "A picture has more than 8 bits a pixel, and the data of this model had none like it: 0 is "
        "taken as black and 65,535 as white."
    ]
    transform._warn_of_wide.cache_clear()
    caplog.clear()
    Transform(PIXELS, Levels(0, WHITE)).pixels(wide)
    assert caplog.records == []


def test_the_transform_can_be_sent_to_another_process(model: Any, finished: Finished) -> None:
    again = pickle.loads(pickle.dumps(model.transform))
    assert torch.equal(again(finished.pictures[0]), model.transform(finished.pictures[0]))


# ------------------------------------------------------------------- the model meanwhile


def test_predicting_leaves_the_mode_of_every_module(finished: Finished, model: Any) -> None:
    tuned = copy.deepcopy(model).train()
    before = [module.training for module in tuned.modules()]
    assert any(before)
    found = tuned.predict(finished.pictures[0])
    assert [module.training for module in tuned.modules()] == before
    alike(found, model.predict(finished.pictures[0]))


def test_pictures_are_read_as_they_are_needed_however_many_there_are() -> None:
    asked = itertools.count()
    array = np.zeros((4, 4, 3), np.uint8)

    def endless() -> Iterator[np.ndarray]:
        for _ in asked:
            yield array

    stream = Predictor(Level(), ("a", "b", "c"), Transform(PIXELS)).stream(endless())
    for _ in range(2 * AT_ONCE):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert next(asked) <= 2 * AT_ONCE + threads.AHEAD * threads.count()


@pytest.mark.parametrize(
    ("tested", "exact", "fast", "expected"),
    [
        ("float32", False, True, torch.float32),
        ("bfloat16", False, True, torch.bfloat16),
        ("bfloat16", False, False, torch.float32),  # chosen for its speed, and slow here
        ("bfloat16", True, False, torch.bfloat16),  # asked for
    ],
)
def test_the_arithmetic_is_that_of_the_test(
    tested: str, exact: bool, fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    here = torch.bfloat16 if fast else torch.float32
    monkeypatch.setattr(predictors, "choose_dtype", lambda precision, device: here)

    def watched(model: Any, images: np.ndarray, pixels: Any, compute: Any, task: Any) -> np.ndarray:
        seen.append(compute.dtype)
        return np.zeros((len(images), 3), np.float32)

    monkeypatch.setattr(predictors, "predict", watched)
    one = Predictor(Level(), CLASSES, Transform(PIXELS), getattr(torch, tested), exact)
    one.predict(np.zeros((4, 4, 3), np.uint8))
    assert seen == [expected]


# ------------------------------------------------------------------- kinds of models


def test_a_merged_folder_is_a_plain_model_that_predicts(finished: Finished, tmp_path: Path) -> None:
    folder = export(finished.record.run_id, finished.store.root, tmp_path / "whole", merged=True)
    merged = pb.load(folder)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert type(merged) is type(plain) and merged.classes == CLASSES
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert str(merged) == str(plain)
    twin = copy.deepcopy(merged)
    nn.init.zeros_(twin.head.weight)
    nn.init.zeros_(twin.head.bias)
    picture = finished.pictures[0]
    assert twin.predict(picture).probability == pytest.approx(1 / 3)  # a model of its own
    assert merged.predict(picture).probability != pytest.approx(1 / 3, abs=1e-4)
    alike(pickle.loads(pickle.dumps(merged)).predict(picture), merged.predict(picture))


def test_timm_is_told_the_pixels_of_models_in_memory(finished: Finished, model: Any) -> None:
    for told in (model, pb.merge(model)):
        settings = resolve_model_data_config(told)
        assert tuple(settings["input_size"]) == (3, 32, 32)
        assert (settings["crop_mode"], settings["crop_pct"]) == ("squash", 1.0)
        assert told.pretrained_cfg["num_classes"] == 3
    backbone = model.model
    assert tuple(backbone.pretrained_cfg["input_size"]) != (3, 32, 32)  # is left as it was


def test_a_run_is_found_by_the_beginning_of_its_id(finished: Finished, model: Any) -> None:
    found = pb.load(finished.record.run_id[:6], results_dir=finished.store.root)
    picture = finished.pictures[len(KINDS)]
    assert found.predict(picture) == model.predict(picture)
    with pytest.raises(ConfigError, match="Unknown run 'zzz'"):
        pb.load("zzz", results_dir=finished.store.root)


def test_a_model_that_was_not_loaded_says_why_it_does_not_predict() -> None:
    tuned = pb.tune(timm.create_model("test_vit", img_size=32), "bias", 3)
    for use in (lambda: tuned.classes, lambda: tuned.transform, lambda: tuned.predict("a.png")):
        with pytest.raises(ConfigError, match=r"was tuned in memory and does not know its classes"):
            use()
    pb.detach(tuned)
    with pytest.raises(ConfigError, match="was detached from its backbone"):
        tuned.predict("a.png")
