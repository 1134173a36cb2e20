"""What official code chose in images, and losses of its own, compared value by value."""

from __future__ import annotations

import pytest
import torch
from support.golden import EXACT, Run, assert_close, build, exact, read, selected

from peftbench.backbones.describe import describe
from peftbench.methods.layers.channels import saliency
from peftbench.methods.sct import SalientChannels


def test_sct_finds_the_official_strength_of_every_channel_and_chooses_the_same() -> None:
    golden = read("sct_attn_vit")
    backbone = build(golden).double()
    anatomy = describe(backbone, 32)
    seen = [(x.double(), labels) for x, labels in selected(golden)]
    method = SalientChannels(channels=8)
    found, classes = saliency(backbone, method.looks(anatomy), seen)
    chosen = method.prepare(backbone, anatomy, seen, torch.Generator()).tensors
    assert classes == 4  # of five, one has no image
    for block in range(3):
        path = f"blocks.{block}.norm2"
        assert_close(found[path], golden.tensors[f"saliency/blocks.{block}"], EXACT)
        assert torch.equal(chosen[path], golden.tensors[f"index/blocks.{block}.sct_attn"])


@pytest.mark.parametrize("name", ["dyt_eval_vit", "dyt_train_vit"])
def test_dyt_routes_the_official_tokens_and_its_losses_are_the_official_ones(name: str) -> None:
    run = Run(name, torch.float64)
    masks: list[torch.Tensor] = []
    for block in range(len(run.model.blocks)):
        router = run.model.get_submodule(f"blocks.{block}.block.norm2.adapter.router")
        router.register_forward_hook(lambda _, args, mask: masks.append(mask.detach()))
    run.set_mode()
    run.forward()
    official = run.golden.tensors["out64/dyt_token_select"]  # (B, blocks, N, 1)
    assert torch.equal(torch.stack(masks, 1), official)
    losses = torch.stack([exact(name)[0]["losses"][str(step)] for step in range(3)])
    assert_close(losses, run.golden.tensors["out64/losses"], EXACT)


def test_dyt_at_inference_gives_what_it_gives_when_all_tokens_are_computed() -> None:
    run = Run("dyt_eval_vit", torch.float64)
    run.model.eval()
    with torch.no_grad():
        assert_close(run.model(run.x), run.golden.tensors["out64/logits"], EXACT)


def test_the_losses_of_da_vpt_are_the_official_ones() -> None:
    losses = torch.stack([exact("da_vpt_vit")[0]["losses"][str(step)] for step in range(3)])
    assert_close(losses, read("da_vpt_vit").tensors["out64/losses"], EXACT)
