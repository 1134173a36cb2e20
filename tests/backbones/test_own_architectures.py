"""Architectures that timm lacks: published sizes, timm's interface, files under released names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.tiny_backbones import TINY, fill, images, randomise
from torch import Tensor, nn

from peftbench.backbones.checkpoints import fitting
from peftbench.backbones.classifier import heads_of
from peftbench.backbones.load import load
from peftbench.backbones.models.architectures import ARCHITECTURES, PAPERS
from peftbench.backbones.models.registry import is_own, register_all
from peftbench.backbones.models.revcol import LEAST_ALPHA, RevCol, ReversibleColumn
from peftbench.errors import ConfigError, UnknownName, WeightsError
from peftbench.prediction import timm_form
from peftbench.prediction.transform import Transform
from peftbench.run.usage import usage
from peftbench.spec import BackboneSpec, Preprocessing

register_all()
OWN = (
    "hornet",
    "hornet_gf",
    "revcol",
    "internimage",
    "internimage_post_norm",
    "hat_net",
    "g_ghost",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_size_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    # what nothing reads is in files and in published numbers, but is no parameter here
    counted = [t.numel() for n, t in model.state_dict().items() if not _is_statistic(n)]
    published = ARCHITECTURES[name].millions
    # those above a billion are printed with three digits
    assert sum(counted) / 1e6 == pytest.approx(
        published, abs=0.006 if published < 1000 else 0.03 * published
    )


def _is_statistic(name: str) -> bool:
    return ".running_" in f".{name}" or name.endswith("num_batches_tracked")


def test_each_module_cites_its_paper() -> None:
    assert {size.module for size in ARCHITECTURES.values()} == PAPERS.keys()


@pytest.mark.parametrize("name", OWN)
def test_a_model_has_the_interface_of_timm(name: str) -> None:
    model = randomise(TINY[name].build(), seed=0).eval()
    x = images(name, 2)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
        torch.testing.assert_close(model.forward_head(features), model(x))
        model.reset_classifier(9)
        assert (model.num_classes, model(x).shape) == (9, (2, 9))
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled)
    assert model.global_pool == "avg"
    with pytest.raises(ValueError, match="'avg' alone"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize("name", OWN)
def test_parameters_of_a_stage_have_other_channels_where_feature_info_says_so(name: str) -> None:
    model = TINY[name].build().eval()
    side = TINY[name].image_size
    seen: dict[str, Tensor] = {}
    for info in model.feature_info:
        path = info["module"]
        module = model.get_submodule(path)
        target = module[-1] if isinstance(module, nn.ModuleList) else module
        target.register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    with torch.no_grad():
        model(images(name, 1))
    for info in model.feature_info:
        reduced = side // info["reduction"]
        assert {info["num_chs"], reduced} <= set(seen[info["module"]].shape[1:])


def test_timm_knows_them_with_their_pixels_once_they_are_registered() -> None:
    assert timm.is_model("hornet_base_gf_img384") and is_own("hornet_base_gf_img384.tag")
    assert not is_own("resnet50")
    cfg = timm.get_pretrained_cfg("hornet_base_gf_img384")
    assert cfg is not None and cfg.input_size == (3, 384, 384)
    assert set(ARCHITECTURES) <= set(timm.list_models())
    assert {"hornet", "revcol", "internimage", "hat_net", "g_ghost"} <= set(timm.list_modules())


def test_reading_the_sizes_loads_no_model_library() -> None:
    code = (
        "import sys; import peftbench.backbones.models.architectures, peftbench.backbones.families;"
        "print(sorted({'torch', 'timm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_backbone_of_ours_is_loaded_by_its_name_with_random_weights() -> None:
    loaded = load(BackboneSpec("g_ghost_regnetx_002", pretrained=False), 3)
    assert (loaded.image_size, loaded.preprocessing.interpolation) == (224, "bilinear")
    assert heads_of(loaded.model)[0].path == "fc"
    again = load(BackboneSpec("g_ghost_regnetx_002", pretrained=False), 3)
    assert loaded.sha256 == again.sha256


def test_a_name_without_weights_says_how_to_give_them() -> None:
    with pytest.raises(WeightsError, match=r"no pretrained weights for 'revcol_tiny'.*checkpoint="):
        load(BackboneSpec("revcol_tiny"), 3)
    with pytest.raises(UnknownName, match="hornet_tiny_7x7"):
        load(BackboneSpec("hornet_tiny_7x8"), 3)


@pytest.mark.parametrize("name", ["g_ghost_regnetx_002", "ghostnet_050"])
def test_stochastic_depth_that_an_architecture_lacks_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"drop_path=0.1, but '{name}' has no stochastic depth"):
        load(BackboneSpec(name, pretrained=False, drop_path=0.1), 3)


def test_hat_net_takes_images_that_its_windows_cover() -> None:
    with torch.device("meta"):
        model = timm.create_model("hat_net_tiny").eval()
        # windows of 8 and 7 patches of 4 and 8 pixels, and on the next map 7 of 16
        assert model(torch.empty(1, 3, 448, 224)).shape == (1, 1000)
        with pytest.raises(ConfigError, match=r"48 x 48 pixels .* backbone\.image_size=224"):
            model(torch.empty(1, 3, 48, 48))


def test_what_is_told_of_a_merged_model_that_timm_alone_cannot_build(tmp_path: Path) -> None:
    built = {"architecture": "internimage_t", "num_classes": 3, "kwargs": {}}
    (tmp_path / timm_form.CONFIG).write_text(json.dumps(built))
    transform = Transform(Preprocessing(224, (0.5,) * 3, (0.5,) * 3), None)
    reason = timm_form.difference(tmp_path, {}, transform)
    assert reason == "internimage_t is an architecture of peftbench"
    origin = {"preprocessing": {"size": 224}}
    card = {"kind": "merged", "timm": built, "provenance": origin}
    told = usage(card)
    assert told.index("register_all()") < told.index("timm.create_model('internimage_t'")
    other = usage(card | {"timm": built | {"architecture": "resnet18"}})
    assert "create_model('resnet18'" in other and "register_all" not in other


# ------------------------------------------------------------------- files


def _released(name: str, model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random tensors under the names of a released file, its classifier of 1000 classes too."""
    state = {n: torch.empty_like(t) for n, t in model.state_dict().items()}
    fill(state, seed)
    return {n: t.abs() + 0.1 if n.endswith("running_var") else t for n, t in state.items()}


@pytest.mark.parametrize("name", OWN)
def test_a_released_file_fills_the_model_to_the_last_tensor(name: str, tmp_path: Path) -> None:
    model = TINY[name].build()
    state = _released(name, model, seed=3)
    torch.save({"model": state}, tmp_path / "released.pth")
    fitted = fitting.fit(tmp_path / "released.pth", model)
    head = f"{heads_of(model)[0].path}."
    wanted = {n: t for n, t in state.items() if not n.startswith(head)}
    assert fitted.state.keys() == wanted.keys()
    assert all(torch.equal(fitted.state[n], t) for n, t in wanted.items())


def test_what_only_the_training_of_revcol_needs_stays_out_and_is_named(tmp_path: Path) -> None:
    sizes = {"channels": (8, 12, 16, 24), "layers": (1, 1, 1, 1), "num_subnet": 4}
    released = RevCol(**sizes, supervised=True, num_classes=5)
    state = _released("revcol", released, seed=4)
    save_file(state, tmp_path / "released.safetensors")
    model = RevCol(**sizes, num_classes=3)
    fitted = fitting.fit(tmp_path / "released.safetensors", model)
    for name in ("weight", "bias"):  # of the norm in front of the last head
        assert torch.equal(
            fitted.state[f"cls.classifier.0.{name}"], state[f"cls_blocks.3.classifier.0.{name}"]
        )
    assert "decoder" in " ".join(fitted.notes)


# ------------------------------------------------------------------- reversible columns


def test_what_a_column_was_given_follows_from_what_it_gives() -> None:
    column = ReversibleColumn((4, 6, 8, 10), (1, 1, 1, 1), 3, first=False, drops=[0.0] * 4)
    randomise(column, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    old = tuple(
        torch.randn(2, width, side, side, generator=generator, dtype=torch.float64)
        for width, side in ((4, 16), (6, 8), (8, 4), (10, 2))
    )
    with torch.no_grad():
        found = column.undo(x, column(x, old))
    for level in range(4):
        torch.testing.assert_close(found[level], old[level], rtol=0, atol=1e-10)


def test_the_weight_of_an_old_map_is_held_away_from_zero_with_its_gradient() -> None:
    column = ReversibleColumn((4, 6, 8, 10), (1, 1, 1, 1), 3, first=False, drops=[0.0] * 4)
    with torch.no_grad():
        column.alpha0.copy_(torch.tensor([0.0, -1e-5, 1e-5, 0.3]).reshape(1, 4, 1, 1))
    (_, alpha), *_ = column.levels()
    assert alpha.flatten().tolist() == pytest.approx([LEAST_ALPHA, -LEAST_ALPHA, LEAST_ALPHA, 0.3])
    alpha.sum().backward()
    assert column.alpha0.grad.flatten().tolist() == [1.0] * 4
