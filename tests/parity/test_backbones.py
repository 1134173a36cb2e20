"""Architectures that timm lacks against what their official code computed, map by map.

`tests/golden/README.md` says what the files hold, where they come from and why these tolerances.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.ghostnet import GhostNet
from torch import Tensor, nn

from peftbench.backbones.models.g_ghost import GGhostRegNet
from peftbench.backbones.models.hat_net import HATNet
from peftbench.backbones.models.hornet import HorNet
from peftbench.backbones.models.internimage import InternImage, PostNormInternImage
from peftbench.backbones.models.revcol import RevCol

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = 5
EXACT = 1e-10  # of float64 outputs, absolute
EXACT_GRADIENT = 1e-9
# timm's GhostNet gates with PyTorch's hard sigmoid, whose gradient has 1 / 6 rounded to float32
ROUNDED_GRADIENT = {"cghostnet": 1e-7}


@dataclass(frozen=True)
class Case:
    """How a model is built of a file's hyper-parameters, and which of its modules give what."""

    build: Callable[[Mapping[str, Any]], nn.Module]
    outputs: Mapping[str, str]  # key of a file -> path of a module


def _stages(path: str, first: int = 0) -> dict[str, str]:
    return {f"stage.{i}": path.format(i + first) for i in range(4)}


def _hornet(h: Mapping[str, Any]) -> nn.Module:
    filters = [None if grid is None else tuple(grid) for grid in h["filters"]]
    sizes = {"depths": h["depths"], "base_dim": h["base_dim"], "orders": h["orders"]}
    return HorNet(**sizes, filters=filters, scale=h["s"], num_classes=CLASSES)


def _revcol(h: Mapping[str, Any]) -> nn.Module:
    sizes = {key: h[key] for key in ("channels", "layers", "num_subnet", "kernel_size")}
    return RevCol(**sizes, supervised=h["inter_supv"], num_classes=CLASSES)


def _internimage(h: Mapping[str, Any]) -> nn.Module:
    shared = ("channels", "depths", "groups", "offset_scale", "layer_scale", "mlp_ratio")
    options = {key: h[key] for key in shared}
    further = ("dw_kernel_size", "res_post_norm", "center_feature_scale")
    options |= {key: h[key] for key in further if key in h}
    options["norms_behind"] = h.get("level2_post_norm_block_ids", ())
    options["clip"] = tuple(h["clip"]) if "clip" in h else None
    cls = PostNormInternImage if h["post_norm"] else InternImage
    return cls(**options, num_classes=CLASSES)


def _hat_net(h: Mapping[str, Any]) -> nn.Module:
    return HATNet(**h, num_classes=CLASSES)


def _g_ghost(h: Mapping[str, Any]) -> nn.Module:
    return GGhostRegNet(**h, num_classes=CLASSES)


def _ghostnet(h: Mapping[str, Any]) -> nn.Module:
    return GhostNet(h["cfgs"], num_classes=CLASSES, width=h["width"])


_INTERNIMAGE = {
    "patch_embed": "patch_embed",
    **_stages("levels.{}"),
}
CASES: Mapping[str, Case] = {
    "hornet": Case(_hornet, _stages("stages.{}")),
    "hornet_gf": Case(_hornet, _stages("stages.{}")),
    "revcol": Case(_revcol, {"stem": "stem"}),
    "revcol_plain": Case(_revcol, {"stem": "stem"}),
    "internimage": Case(_internimage, _INTERNIMAGE),
    "internimage_prenorm": Case(_internimage, _INTERNIMAGE),
    "internimage_h": Case(_internimage, _INTERNIMAGE),
    "hatnet": Case(
        _hat_net,
        {"patch_embed": "patch_embed", "attn.stage0": "blocks.0.0.attn"}
        | {f"stage.{i}": f"blocks.{i}.{last}" for i, last in enumerate((0, 0, 1, 0))},
    ),
    "gghost_regnet": Case(
        _g_ghost,
        {"layer3.base": "layer3.base", "layer3.merge": "layer3.merge"} | _stages("layer{}", 1),
    ),
    "cghostnet": Case(_ghostnet, {f"blocks.{i}": f"blocks.{i}" for i in range(5)}),
}


@dataclass(frozen=True)
class File:
    """One file of `tests/golden`."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Its tensors below `prefix`, by the rest of their name."""
        return {
            key.removeprefix(f"{prefix}/"): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{prefix}/")
        }


@cache
def opened(name: str) -> File:
    with np.load(GOLDEN / f"backbone_{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        tensors = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    return File(tensors, meta)


def _built(name: str, dtype: torch.dtype) -> nn.Module:
    """The model of a file, with its weights loaded strictly, in eval mode."""
    file = opened(name)
    model = CASES[name].build(file.meta["hparams"])
    model.load_state_dict(file.below("backbone"), strict=True)
    return model.to(dtype).eval()


def _run(name: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs by the keys of the file, of one forward pass; the loss is that of the file."""
    found: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            found.setdefault(key, output)

        return hook

    for key, path in CASES[name].outputs.items():
        model.get_submodule(path).register_forward_hook(keep(key))
    if isinstance(model, RevCol):
        found |= _columns(model, x)
    if isinstance(model, InternImage):  # the operator alone, on what no norm has seen
        found["dcn.block0"] = model.get_submodule("levels.0.blocks.0.dcn")(model.patch_embed(x))
    features = model.forward_features(x)  # type: ignore[operator]
    found["pooled"] = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    found["logits"] = model(x)
    return found | {"loss": _loss(name, found)}


def _columns(model: RevCol, x: Tensor) -> dict[str, Tensor]:
    columns = list(model.columns(x))
    found = {
        f"column.{k}.level.{level}": columns[k][level]
        for k in (0, 1, len(columns) - 1)
        for level in range(4)
    }
    if model.supervised:
        logits, images = model.forward_supervised(x)
        found |= {f"logits.cls{j}": each for j, each in enumerate(logits)}
        found |= {f"image.{j}": each for j, each in enumerate(images)}
    return found


def _loss(name: str, found: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the logits, or what `meta.loss_fn` says of supervised columns."""
    labels = opened(name).tensors["labels"]
    if "logits.cls0" not in found:
        return F.cross_entropy(found["logits"], labels)
    losses = [(j + 1) / 4 * F.cross_entropy(found[f"logits.cls{j}"], labels) for j in range(4)]
    losses += [0.1 * (1 - (j + 1) / 4) * found[f"image.{j}"].square().mean() for j in range(3)]
    return torch.stack(losses).sum()


def _stored(key: str, output: Tensor) -> Tensor:
    """As the file has it: images thinned out."""
    return output[:, :, ::3, ::3] if key.startswith("image.") else output


def test_every_golden_file_of_a_backbone_is_compared() -> None:
    files = {path.stem.removeprefix("backbone_") for path in GOLDEN.glob("backbone_*.npz")}
    assert files == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_every_map_logit_and_gradient_is_the_official_one(name: str) -> None:
    file, model = opened(name), _built(name, torch.float64)
    found = _run(name, model, file.tensors["x"].double())
    expected = file.below("out64")
    if name in ("gghost_regnet", "cghostnet"):  # of the stem, behind what is no module
        expected.pop("stem")
    assert expected.keys() - found.keys() == set()
    for key, value in expected.items():
        torch.testing.assert_close(
            _stored(key, found[key]), value, rtol=0, atol=EXACT, msg=lambda m, k=key: f"{k}: {m}"
        )
    found["loss"].backward()
    parameters = dict(model.named_parameters())
    for key, value in file.below("grad64").items():
        given = parameters[key].grad if key in parameters else None
        torch.testing.assert_close(
            torch.zeros_like(value) if given is None else given,
            value,
            rtol=0,
            atol=ROUNDED_GRADIENT.get(name, EXACT_GRADIENT),
            msg=lambda m, k=key: f"{k}: {m}",
        )
    for key, norm in file.meta["grad_norm64"].items():
        own = parameters[key].grad if key in parameters else None
        assert (0.0 if own is None else float(own.norm())) == pytest.approx(
            norm, rel=1e-7, abs=1e-9
        )


@pytest.mark.parametrize("name", CASES)
def test_only_what_the_official_code_never_reads_is_no_parameter(name: str) -> None:
    file, model = opened(name), _built(name, torch.float32)
    assert set(model.state_dict()) == set(file.meta["state_dict_order"])
    names = dict(model.named_parameters()).keys()
    unread = {
        key
        for key, tensor in model.state_dict().items()
        if key not in names and tensor.is_floating_point() and "running_" not in key
    }
    assert unread == set(file.meta["unused_or_zero_grad"])


@pytest.mark.parametrize("name", CASES)
def test_float32_differs_by_rounding_alone(name: str) -> None:
    file, model = opened(name), _built(name, torch.float32)
    with torch.no_grad():
        logits = model(file.tensors["x"])
    exact = file.tensors["out64/logits"]
    # the files' own float32 runs differ by up to 1.8e-5 where logits are near 10
    assert float((logits.double() - exact).abs().max()) <= 4e-6 * float(exact.abs().max()) + 2e-5
