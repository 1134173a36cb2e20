"""Every module of timm: `linear` and `full` train, reload, merge and are read by timm again."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support.timm_modules import SMALLEST
from torch import nn

import peftbench as pb
from peftbench.artefacts import task_file
from peftbench.backbones.classifier import heads_of

CLASSES, OTHER = 5, 3  # of the new classifier, and of the one that the model comes with
SIDES = (64, 96, 128, 160, 224, 240, 256)  # pixels, of which the least that works is taken
# more than 160 million parameters: too much for a machine that runs tests
LARGE = frozenset({"deepseek_vit", "gemma4_vit"})

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def build(name: str, side: int | None, num_classes: int = OTHER) -> nn.Module:
    """The architecture with random tensors, none of which is zero; in eval mode."""
    try:
        model = timm.create_model(name, num_classes=num_classes, img_size=side)
    except TypeError:  # of convolutions, which take any size
        model = timm.create_model(name, num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 / fan_in**0.5)
            if parameter.ndim == 1 and path.endswith("weight"):  # the scale of a norm
                parameter.add_(1.0)
    return model.eval()


@cache
def side_of(name: str) -> int:
    """The least side in pixels at which the architecture works."""
    own = timm.get_pretrained_cfg(name).input_size[-1]
    for side in (*(side for side in SIDES if side < own), own):
        try:
            with torch.no_grad():
                build(name, side)(torch.zeros(2, 3, side, side))
        except Exception:  # whatever it says of an image that is too small
            continue
        return side
    raise AssertionError(f"{name} works at no size")


def test_each_module_of_timm_is_asked() -> None:
    assert SMALLEST.keys() == set(timm.list_modules())


@pytest.mark.parametrize("module", list(SMALLEST))
def test_classifiers_are_those_that_timm_names(module: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(SMALLEST[module], num_classes=OTHER)
    named = model.pretrained_cfg["classifier"]
    named = (named,) if isinstance(named, str) else named
    there = {path for path, _ in model.named_modules()}
    assert [head.path for head in heads_of(model)] == [path for path in named if path in there]


@pytest.mark.parametrize("method", ["linear", "full"])
@pytest.mark.parametrize("module", [name for name in SMALLEST if name not in LARGE])
def test_it_trains_reloads_merges_and_is_read_by_timm(
    module: str, method: str, tmp_path: Path
) -> None:
    name = SMALLEST[module]
    side = side_of(name)
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    model = pb.tune(build(name, side), method, CLASSES, image_size=side)
    F.cross_entropy(model(x), torch.arange(3)).backward()
    heads = [model.model.get_parameter(path) for path in model.tuned.head_params]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads)
    torch.optim.SGD(pb.trainable(model), lr=1e-4).step()
    with torch.no_grad():
        expected = model.eval()(x)
        assert expected.shape == (3, CLASSES) and expected.isfinite().all()
        close = 1e-4 * float(expected.abs().max())
        merged = pb.merge(model)
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=close)
        task_file.save(model.tuned, tmp_path, {})
        again = pb.tune(build(name, side), method, CLASSES, image_size=side).eval()
        task_file.load(again.tuned, tmp_path)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=close)
        del again
        plain = build(name, side, CLASSES)
        plain.load_state_dict(merged.state_dict(), strict=True)
        torch.testing.assert_close(plain(x), expected, rtol=0, atol=close)
