"""`pb.tune` on models that are not float32 RGB models of timm: tuned, or refused for the cause."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from support import tuners
from support.tiny_backbones import NUM_CLASSES, fresh, randomise
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import peftbench as pb
from peftbench.errors import ConfigError, PeftbenchError, Unsupported, WeightsError
from peftbench.methods import METHODS, discover

discover()

TRAINED = [name for name in METHODS if not METHODS[name].card.solved]
VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=NUM_CLASSES)
BUILD: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], int]] = {
    "vit": (VisionTransformer, VIT, 16),
    "convnext": (
        ConvNeXt,
        dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=NUM_CLASSES),
        32,
    ),
    "resnet": (
        ResNet,
        dict(block=BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=NUM_CLASSES),
        32,
    ),
}


def build(family: str, channels: int, **more: Any) -> tuple[nn.Module, int]:
    make, options, size = BUILD[family]
    return randomise(make(**options, in_chans=channels, **more), seed=0).eval(), size


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# ------------------------------------------------------------------- channels and types


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize(("family", "channels"), [("vit", 1), ("convnext", 4), ("resnet", 13)])
def test_images_of_other_channels_are_tuned_or_named(
    family: str, channels: int, method: str
) -> None:
    model, size = build(family, channels)
    x = noise(4, channels, size, size)
    try:
        more = tuners.options(method, 8, channels, size, size)
        tuned = pb.tune(model, method, 3, image_size=size, **more)
    except Unsupported as e:
        rgb = method in ("sidetune", "vpt_pad")
        assert "image_size" not in str(e)
        if rgb and (family != "vit" or method == "sidetune"):
            assert "3 channels" in str(e) and f"have {channels}" in str(e)
        return
    logits = tuned(x)
    assert logits.shape == (4, 3)
    logits.sum().backward()
    assert all(p.grad is not None for p in tuned.tuned.head_params.values())
    if METHODS[method].card.mergeable:
        tuned.eval()
        torch.testing.assert_close(pb.merge(tuned)(x), tuned(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_type_is_tuned_in_it(dtype: torch.dtype, method: str) -> None:
    if method in ("vpt_pad", "conv_adapter"):
        model, size = build("convnext", 3)
    else:
        model, size = build("vit", 3)
    model.to(dtype)
    more = tuners.options(method, 8, 3, size, size, dtype=dtype)
    tuned = pb.tune(model, method, 3, image_size=size, **more)
    assert {p.dtype for p in tuned.parameters()} == {dtype}
    logits = tuned(noise(4, 3, size, size, dtype=dtype))
    assert logits.dtype == dtype and logits.shape == (4, 3)
    logits.sum().backward()
    assert all(p.grad is not None for p in tuned.tuned.head_params.values())
    assert {p.dtype for p in pb.detach(tuned).parameters()} == {dtype}


def test_two_types_in_one_model_are_named() -> None:
    model, _ = build("vit", 3)
    model.blocks.bfloat16()
    with pytest.raises(ConfigError, match=r"of dtypes bfloat16 and float32\. Convert the model"):
        pb.tune(model, "lora", 3)


# ------------------------------------------------------------------- wrappers


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def compiled_inside() -> nn.Module:
    model = fresh("vit")
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


def foreign_adapter() -> nn.Module:
    kind = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    model = fresh("vit")
    model.blocks[0].attn.proj = kind(24, 24)
    return model


def quantised() -> nn.Module:
    kind = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.dynamic.modules"})
    model = fresh("vit")
    model.blocks[1].mlp.fc1 = kind(24, 96)
    return model


def integers() -> nn.Module:
    model = fresh("vit")
    weight = torch.zeros(24, 24, dtype=torch.int8)
    model.blocks[0].attn.proj.weight = nn.Parameter(weight, requires_grad=False)
    return model


def without_numbers(value: float) -> nn.Module:
    model = fresh("resnet_basic")
    model.layer2[0].conv1.weight.data[0, 0, 0, 0] = value
    return model


def broken_statistics() -> nn.Module:
    model = fresh("resnet_basic")
    model.layer2[0].bn1.running_var[0] = float("nan")
    return model


def with_lock() -> nn.Module:
    model = fresh("vit")
    model.blocks[0].guard = threading.Lock()
    return model


def distilling() -> nn.Module:
    model = VisionTransformerDistilled(**VIT)
    model.set_distilled_training(True)
    return model


def transformers_model() -> nn.Module:
    kind = type("ViTForImageClassification", (nn.Module,), {"__module__": "transformers.models"})
    model = kind()
    model.classifier = nn.Linear(3, 2)
    return model


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return VisionTransformer(**VIT)


def tuned_twice() -> nn.Module:
    return copy.deepcopy(pb.tune(fresh("vit"), "lora", 3)).model


def unpooled() -> nn.Module:
    return VisionTransformer(**VIT | dict(global_pool="", fc_norm=False))


REFUSED: list[tuple[str, Callable[[], object], type[PeftbenchError], str]] = [
    ("compiled", lambda: torch.compile(fresh("vit"), backend="eager"), ConfigError, "torch.compil"),
    ("compiled inside", compiled_inside, ConfigError, r"its 'blocks.0' is compiled by torch\.comp"),
    ("parallel", lambda: nn.DataParallel(fresh("vit")), ConfigError, r"DataParallel\. .*\.module"),
    ("sequential", lambda: nn.Sequential(fresh("vit")), Unsupported, "VisionTransformer .* at '0'"),
    ("own module", lambda: Around(fresh("resnet_basic")), Unsupported, "ResNet .* at 'backbone'"),
    ("torchvision", torchvision.models.squeezenet1_1, Unsupported, "of torchvision .* timm"),
    ("transformers", transformers_model, Unsupported, r"of transformers .*timm\.create_model"),
    ("scripted", lambda: torch.jit.script(nn.Linear(2, 2)), ConfigError, r"traced by torch\.jit"),
    ("traced", lambda: torch.fx.symbolic_trace(fresh("resnet_basic")), ConfigError, r"torch\.fx"),
    ("peft", foreign_adapter, ConfigError, r"'blocks.0.attn.proj' .* package peft\. .*unload"),
    ("quantised", quantised, ConfigError, r"'blocks.1.mlp.fc1' is quantised"),
    ("int8", integers, ConfigError, r"'blocks.0.attn.proj.weight' .* dtype int8, as of a quant"),
    ("NaN", lambda: without_numbers(float("nan")), WeightsError, r"'layer2.0.conv1.weight' of"),
    ("infinity", lambda: without_numbers(float("inf")), WeightsError, "values that are not finit"),
    ("statistics", broken_statistics, WeightsError, r"'layer2.0.bn1.running_var' .* not finite"),
    ("distilling", distilling, ConfigError, r"distilled_training of the model is True\. Set it"),
    ("uncopyable", with_lock, ConfigError, r"cannot be copied.* 'blocks.0.guard' says cannot pi"),
    ("inference", made_in_inference_mode, ConfigError, r"made in torch\.inference_mode"),
    ("tuned", lambda: pb.tune(fresh("vit"), "bias", 3), ConfigError, r"tuned model already\. Call"),
    ("copy of a tuned one", tuned_twice, ConfigError, "this VisionTransformer carries one already"),
    ("unpooled", unpooled, Unsupported, r"3 dimensions .* global_pool=''"),
    ("name", lambda: "vit_base_patch16_224", ConfigError, r"is a str, not a module\. Give a model"),
    ("no parameters", nn.ReLU, Unsupported, "no single classifier"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", ["lora", "vpt_deep"])
@pytest.mark.parametrize(
    ("make", "kind", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_refusal_names_the_cause(
    make: Callable[[], Any], kind: type[PeftbenchError], message: str, method: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        pb.tune(make(), method, 3, image_size=16)
    text = str(caught.value)
    assert "\n" not in text
    assert "num_classes > 0" not in text and "image_size" not in text


def test_methods_that_take_no_steps_are_refused_before_the_model_is_touched() -> None:
    solved = [name for name in METHODS if name not in TRAINED]
    assert {"majority", "logistic", "knn"} <= set(solved)
    for name in solved:
        model = fresh("vit")
        with pytest.raises(ConfigError) as caught:
            pb.tune(model, name, 3)
        assert str(caught.value) == (
            f"method {name} takes no training steps: a run computes its head of the features of "
            f"all training images. Use linear, or run: peftbench run method={name}"
        )
        assert pb.detach(pb.tune(model, "linear", 3)) is model  # it carries nothing


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_model_of_features_alone_is_named(name: str) -> None:
    model = timm.create_model(name, features_only=True)
    with pytest.raises(Unsupported, match="built with features_only=True"):
        pb.tune(model, "bias", 3, image_size=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"^num_classes=0 makes no sense\. Give a number"),
        ({"num_classes": 2.0}, r"^num_classes=2\.0 makes no sense"),
        ({"image_size": (16, 16)}, r"^image_size=\(16, 16\) makes no sense\. Give one side"),
    ],
)
def test_numbers_that_make_no_sense_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pb.tune(fresh("vit"), "bias", **arguments)


# ------------------------------------------------------------------- odd, and right


def with_hooks() -> nn.Module:
    model = fresh("vit")
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: None)
    return model


def frozen() -> nn.Module:
    return fresh("vit").requires_grad_(False)


def masked() -> nn.Module:
    model = fresh("vit")
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    return model


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "bias"])
@pytest.mark.parametrize(
    "make",
    [
        with_hooks,
        frozen,
        masked,
        lambda: fresh("vit").train(),
        lambda: VisionTransformer(**VIT, dynamic_img_size=True),
        lambda: VisionTransformer(**VIT | dict(num_classes=0)),
        lambda: copy.deepcopy(fresh("vit")),
        lambda: type("Mine", (VisionTransformer,), {})(**VIT),
        lambda: pb.merge(pb.tune(fresh("vit"), "ssf", 3)),
    ],
    ids=["hooks", "frozen", "mask", "train", "dynamic", "headless", "copy", "subclass", "merged"],
)
def test_these_are_tuned(make: Callable[[], nn.Module], method: str) -> None:
    tuned = pb.tune(make(), method, 3, image_size=16)
    logits = tuned(noise(2, 3, 16, 16))
    assert logits.shape == (2, 3) and bool(logits.isfinite().all())
    logits.sum().backward()
    assert any(p.grad is not None for p in tuned.tuned.head_params.values())
