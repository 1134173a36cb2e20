"""Every module of timm: `linear` and `full` train, reload, merge and are read by timm again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support.timm_modules import OTHER, SMALLEST, build, chosen, side_of

import peftbench as pb
from peftbench.artefacts import task_file
from peftbench.backbones.classifier import heads_of

CLASSES = 5  # of the new classifier

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_each_module_of_timm_is_asked() -> None:
    ours = {"hornet", "revcol", "internimage", "hat_net", "g_ghost"}  # registered there by us
    assert SMALLEST.keys() == set(timm.list_modules()) - ours


@pytest.mark.parametrize("module", list(SMALLEST))
def test_classifiers_are_those_that_timm_names(module: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(SMALLEST[module], num_classes=OTHER)
    named = model.pretrained_cfg["classifier"]
    named = (named,) if isinstance(named, str) else named
    there = {path for path, _ in model.named_modules()}
    assert [head.path for head in heads_of(model)] == [path for path in named if path in there]


@pytest.mark.parametrize("method", ["linear", "full"])
@pytest.mark.parametrize("module", chosen())
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
