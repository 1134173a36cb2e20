"""Norm tuning: exactly the scales and shifts of norms train, and statistics stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fresh, images

from peftbench.methods import METHODS, Tuned, apply, discover

discover()


def _apply(backbone: str) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(METHODS["norm"](), fresh(backbone), anatomy_of(backbone), 7, generator)


def _inside(blocks: list[str], names: str) -> set[str]:
    return {f"{block}.{name}" for block in blocks for name in names.split()}


VIT_BLOCKS = ["blocks.0", "blocks.1"]
RESNET_BLOCKS = ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
NORMS = {
    "vit": {"norm"} | _inside(VIT_BLOCKS, "norm1 norm2"),
    "vit_registers": {"norm_pre", "norm"}
    | _inside(VIT_BLOCKS, "norm1 attn.q_norm attn.k_norm norm2"),
    "vit_map": {"norm", "attn_pool.norm"} | _inside(VIT_BLOCKS, "norm1 norm2"),
    "convnext": {"stem.1", "head.norm"}
    | {f"stages.{i}.downsample.0" for i in (1, 2, 3)}
    | {f"stages.{i}.blocks.0.norm" for i in range(4)}
    | {"stages.2.blocks.1.norm"},
    "resnet_bottleneck": {"bn1"}
    | _inside(RESNET_BLOCKS, "bn1 bn2 bn3 downsample.1")
    | _inside(["layer4.1"], "bn1 bn2 bn3"),
    # no family describes it
    "regnet": {"stem.bn"}
    | _inside([f"s{i}.b1" for i in (1, 2, 3, 4)], "conv1.bn conv2.bn conv3.bn downsample.bn"),
}


@pytest.mark.parametrize("backbone", NORMS)
def test_exactly_the_scales_and_shifts_of_all_norms_train(backbone: str) -> None:
    tuned = _apply(backbone)
    names = {f"{path}.{name}" for path in NORMS[backbone] for name in ("weight", "bias")}
    assert tuned.unfrozen_params.keys() == names
    assert set(tuned.touched) == NORMS[backbone]
    assert not tuned.method_params


@pytest.mark.parametrize("backbone", ["resnet_bottleneck", "efficientnet", "regnet"])
def test_statistics_stay_those_of_pretraining(backbone: str) -> None:
    tuned = _apply(backbone)
    before = {name: buffer.clone() for name, buffer in tuned.model.named_buffers()}
    weights = {name: p.detach().clone() for name, p in tuned.unfrozen_params.items()}
    assert any(name.endswith("running_var") for name in before)
    optimizer = torch.optim.SGD(tuned.trainable.values(), lr=0.1)
    tuned.train()
    for seed in range(3):
        optimizer.zero_grad()
        F.cross_entropy(tuned.model(images(backbone, 4, seed)), torch.arange(4)).backward()
        optimizer.step()
    after = dict(tuned.model.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
    assert not [n for n, p in tuned.unfrozen_params.items() if torch.equal(p, weights[n])]
    assert not tuned.changing_buffers
