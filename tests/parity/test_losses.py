"""What official code chose in images, and losses of its own, compared value by value."""

from __future__ import annotations

import torch
from support.golden import EXACT, assert_close, build, read, selected

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
