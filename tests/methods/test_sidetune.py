"""Side-tuning: what is blended, where the side network comes from, what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fresh, images
from torch import nn

from peftbench.errors import ConfigError, Unsupported, WeightsError
from peftbench.methods import Tuned, apply
from peftbench.methods.layers.side import AlexNetTrunk, SideTuned
from peftbench.methods.sidetune import SideTune

TRUNK = (0, 3, 6, 8, 10)  # convolutions of torchvision's AlexNet


def _apply(backbone: str, **options: Any) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(SideTune(**options), fresh(backbone), anatomy_of(backbone), 7, generator)


def _model(tuned: Tuned) -> SideTuned:
    assert isinstance(tuned.model, SideTuned)
    return tuned.model.eval()


@pytest.mark.parametrize("backbone", ["vit_map", "swin", "convnext", "efficientnet", "regnet"])
@pytest.mark.parametrize(("alpha", "share"), [(0.0, 0.5), (math.log(3), 0.75)])
def test_the_head_sees_the_share_of_each_feature(backbone: str, alpha: float, share: float) -> None:
    model, x = _model(_apply(backbone, alpha=alpha)).double(), images(backbone, 2).double()
    plain = fresh(backbone).double()
    feature = plain.forward_head(plain.forward_features(x), pre_logits=True)
    beside = model.projection(model.side(x))
    head = model.backbone.get_submodule(anatomy_of(backbone).head)
    expected = head(share * feature + (1 - share) * beside)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)  # alpha was a float32


@pytest.mark.parametrize(
    "backbone", ["vit", "vit_map", "swin", "convnext", "resnet_basic", "mixer"]
)
def test_timms_own_feature_is_blended_where_it_is_what_the_classifier_receives(
    backbone: str,
) -> None:
    """Only then can what lies in front of it be computed once and kept."""
    assert not _model(_apply(backbone)).at_head


def test_a_small_image_is_enlarged_and_a_large_one_is_not() -> None:
    side = _model(_apply("vit")).side
    assert isinstance(side, AlexNetTrunk)
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 80, 72)
    enlarged = F.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(side(small), side(enlarged))
    assert side(small).shape == side(large).shape == (1, 9216)
    assert torch.equal(side(large), side.pool(side.features(large)).flatten(1))
    (note,) = _apply("vit").notes
    assert "16 pixels are enlarged to 64" in note


def test_new_tensors_have_pytorchs_distributions_and_leave_its_generator_alone() -> None:
    backbone, anatomy = fresh("vit"), anatomy_of("vit")
    before = torch.random.get_rng_state()
    attachment = SideTune().attach(backbone, anatomy, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    model = attachment.model
    assert isinstance(model, SideTuned)
    layers = [model.projection, *(m for m in model.side.modules() if isinstance(m, nn.Conv2d))]
    assert len(layers) == 6
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                assert 0.9 * bound < tensor.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("backbone", "options", "index"),
    [
        ("vit_registers", {}, 0),
        ("eva_split", {"side_depth": 2}, 1),
        ("swin", {}, 0),
        ("resnet_basic", {}, 1),  # output 0 is the stem
    ],
)
def test_the_copy_gives_the_backbones_own_first_features(
    backbone: str, options: dict, index: int
) -> None:
    model = _model(_apply(backbone, side="backbone", **options)).double()
    x = images(backbone, 2, dtype=torch.float64)
    expected = (
        fresh(backbone)
        .double()
        .forward_intermediates(x, indices=[index], output_fmt="NCHW", intermediates_only=True)[0]
    )
    torch.testing.assert_close(model.side(x), expected.mean((2, 3)), rtol=0, atol=1e-10)
    shared = {p.data_ptr() for p in model.backbone.parameters()}
    assert not shared & {p.data_ptr() for p in model.side.parameters()}


def test_a_copy_of_blocks_that_nobody_knows_is_refused() -> None:
    anatomy = dataclasses.replace(anatomy_of("regnet"), sites=(), depth=0)
    with pytest.raises(Unsupported, match=r"to know the blocks.* Use method\.side=alexnet\.$"):
        SideTune(side="backbone").check(anatomy)


@pytest.mark.parametrize(
    ("backbone", "options", "reason"),
    [
        ("vit", {"side": "backbone", "side_depth": 3}, r"first 3 blocks.* has 2\. Set method"),
    ],
)
def test_a_copy_that_cannot_be_made_is_refused(backbone: str, options: dict, reason: str) -> None:
    with pytest.raises(Unsupported, match=f"^sidetune .*{reason}"):
        SideTune(**options).check(anatomy_of(backbone))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"side": "alex"}, "side='alex'"),
        ({"weights": "pretrained"}, "weights='pretrained'"),
        ({"side": "backbone", "weights": "imagenet"}, "with side=backbone"),
        ({"side_depth": 0}, "side_depth=0"),
    ],
)
def test_senseless_values_are_refused_by_name(options: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=r"^method=sidetune: ") as caught:
        SideTune(**options)
    assert found in str(caught.value)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_pretrained_weights_are_those_of_the_cached_file(checkpoints: Path) -> None:
    trunk = _model(_apply("vit")).side
    assert isinstance(trunk, AlexNetTrunk)
    file = {f"features.{k}": torch.randn_like(t) for k, t in trunk.features.state_dict().items()}
    file["classifier.1.bias"] = torch.zeros(4096)
    torch.save(file, checkpoints / "alexnet-owt-7be5be79.pth")
    loaded = _model(_apply("vit", weights="imagenet")).side
    assert isinstance(loaded, AlexNetTrunk)
    for index in TRUNK:
        for name in ("weight", "bias"):
            assert torch.equal(
                loaded.features.get_parameter(f"{index}.{name}"), file[f"features.{index}.{name}"]
            )


def test_pretrained_weights_out_of_reach_are_an_error_with_advice(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match="no route") as caught:
        _apply("vit", weights="imagenet")
    message = str(caught.value)
    assert str(checkpoints) in message and message.endswith("or use method.weights=random.")
