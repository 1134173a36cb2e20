"""Prompt blocks at the ends of stages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.counted_vit import vit_b
from support.tiny_backbones import anatomy_of, fill
from support.tiny_tuned import noise, start
from torch import Tensor, nn

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS


def _prompt(x: Tensor, adapter: nn.Module) -> Tensor:
    """The prompt of a map (B, H, W, C): the depthwise convolution as a sum of shifted maps."""
    t = {name: p.detach() for name, p in adapter.named_parameters()}
    hidden = F.gelu(x @ t["down.weight"][:, :, 0, 0].T + t["down.bias"])
    height, width = x.shape[1:3]
    padded = F.pad(hidden, (0, 0, 2, 2, 2, 2))
    filtered = t["filter.bias"] + torch.zeros_like(hidden)
    for i in range(5):
        for j in range(5):
            moved = padded[:, i : i + height, j : j + width]
            filtered = filtered + moved * t["filter.weight"][:, 0, i, j]
    return F.gelu(filtered) @ t["up.weight"][:, :, 0, 0].T + t["up.bias"]


def test_a_prompt_of_the_map_is_added_behind_the_last_block_of_each_stage() -> None:
    tuned = start("pro_tuning", "swin")
    assert tuned.touched == ("layers.0.blocks.1", "layers.1.blocks.0")
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    block = tuned.model.get_submodule("layers.0.blocks.1")
    x = noise(2, 8, 8, 12)
    y = block.base(x)
    expected = y + _prompt(y, block.adapter)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_channels_may_come_first_and_tokens_keep_their_rows() -> None:
    tuned = start("pro_tuning", "convnext")
    fill(tuned.trainable, seed=2)
    adapter = tuned.model.get_submodule("stages.1.blocks.0.adapter").double()
    x = noise(2, 12, 4, 3)
    expected = _prompt(x.permute(0, 2, 3, 1), adapter).permute(0, 3, 1, 2)
    torch.testing.assert_close(adapter(x), expected, rtol=1e-10, atol=1e-10)
    tuned = start("pro_tuning", "vit_registers")
    fill(tuned.trainable, seed=2)
    adapter = tuned.model.get_submodule("blocks.0.adapter").double()
    x = noise(2, 5 + 16, 24)
    prompt = adapter(x)
    assert not prompt[:, :5].any()
    expected = _prompt(x[:, 5:].reshape(2, 4, 4, 24), adapter).reshape(2, 16, 24)
    torch.testing.assert_close(prompt[:, 5:], expected, rtol=1e-10, atol=1e-10)


def test_a_net_of_one_stage_is_cut_into_runs_of_blocks() -> None:
    depths = [site.depth for site in METHODS["pro_tuning"]().sites(vit_b())]
    assert depths == [2, 5, 8]  # behind the last run the class token is read
    depths = [site.depth for site in METHODS["pro_tuning"](stages=5).sites(vit_b())]
    assert depths == [1, 3, 6, 8]
    # 768 to 192 and back, 192 filters of 25, and biases
    each = 2 * 768 * 192 + 192 * 25 + 2 * 192 + 768
    assert METHODS["pro_tuning"]().expected_params(vit_b()) == 3 * each


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_size=4"):
        METHODS["pro_tuning"](kernel_size=4)
    with pytest.raises(ConfigError, match="stages=0"):
        METHODS["pro_tuning"](stages=0)
    with pytest.raises(Unsupported, match="reach what is read"):
        METHODS["pro_tuning"](stages=1).check(anatomy_of("vit"))
