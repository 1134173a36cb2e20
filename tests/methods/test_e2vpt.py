"""Prompts under masks, and learned keys and values beside them."""

from __future__ import annotations

import math

import pytest
import torch
from support.counted_vit import vit_b
from support.tiny_backbones import anatomy_of, fill, fresh
from support.tiny_tuned import noise, start
from torch import Tensor

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS


def test_a_channel_belongs_to_the_piece_of_its_number_modulo_their_count() -> None:
    tuned = start("e2vpt", "vit", num_tokens=2, pieces=5)
    fill(tuned.trainable, seed=2)
    prompts = tuned.model.get_submodule("blocks.1.prompts").eval()
    tokens, of_tokens, of_pieces = prompts.tokens, prompts.token_mask, prompts.piece_mask
    found = prompts(3)
    for p in range(2):
        for c in range(24):
            expected = tokens[p, c] * of_tokens[p] * of_pieces[p, c % 5]
            torch.testing.assert_close(found[:, p, c], expected.expand(3))


def test_all_blocks_share_the_masks_which_start_at_one() -> None:
    tuned = start("e2vpt", "vit")
    blocks = [tuned.model.get_submodule(f"blocks.{i}.prompts") for i in range(2)]
    assert blocks[0].token_mask is blocks[1].token_mask
    assert blocks[0].piece_mask is blocks[1].piece_mask
    assert blocks[0].piece_mask.shape == (10, 16) and bool((blocks[0].piece_mask == 1).all())
    assert bool((blocks[0].token_mask == 1).all())


@pytest.mark.parametrize("shared", [True, False])
def test_keys_and_values_are_one_tensor_or_two(shared: bool) -> None:
    tuned = start("e2vpt", "vit", share_kv=shared, num_kv_tokens=40)
    extra = tuned.model.get_submodule("blocks.0.block.attn.extra")
    keys, values = extra()
    assert keys.shape == values.shape == (3, 40, 8)
    assert (keys is values) == shared
    largest = float(keys.detach().abs().max())
    assert largest == pytest.approx(math.sqrt(6 / (40 * 8)), rel=0.01)  # fan-in t d


def test_they_are_in_the_first_block_alone_unless_deep() -> None:
    tuned = start("e2vpt", "vit", deep_kv=False)
    kv = {name for name in tuned.method_params if ".extra." in name}
    assert kv == {"blocks.0.block.attn.extra.keys"}


def test_in_windows_of_swin_each_has_the_same_keys_and_no_bias() -> None:
    """Attention of one window, whose prompts and patches both meet the learned keys."""
    tuned = start("e2vpt", "swin", num_tokens=2, num_kv_tokens=3)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    block = tuned.model.get_submodule("layers.0.blocks.0")
    layer = fresh("swin").double().eval().layers[0].blocks[0].attn
    keys = block.block.attn.extra.keys.detach()
    x = noise(2, 4, 2 + 16, 12)
    q, k, v = (part.unflatten(-1, (2, 6)).transpose(2, 3) for part in layer.qkv(x).chunk(3, dim=-1))
    bias = torch.zeros(2, 18, 3 + 18).double()
    table = layer.relative_position_bias_table[layer.relative_position_index.flatten()]
    bias[:, 2:, 5:] = table.view(16, 16, 2).permute(2, 0, 1)
    own = keys.expand(2, 4, -1, -1, -1)
    k, v = torch.cat((own, k), 3), torch.cat((own, v), 3)
    weights: Tensor = (q @ k.transpose(-2, -1) / math.sqrt(6) + bias).softmax(-1)
    expected = layer.proj((weights @ v).transpose(2, 3).flatten(3))
    found = block.attention_in_windows(x, 2, None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_count_on_vit_b_is_that_of_the_definition() -> None:
    method = METHODS["e2vpt"](num_tokens=20, num_kv_tokens=10)
    # 12 blocks of 20 prompts and 10 keys of 768, and masks of 20 tokens with 16 pieces each
    assert method.expected_params(vit_b()) == 12 * (20 + 10) * 768 + 20 + 20 * 16


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="pieces=0"):
        METHODS["e2vpt"](pieces=0)
    with pytest.raises(ConfigError, match="num_kv_tokens=0"):
        METHODS["e2vpt"](num_kv_tokens=0)
    for backbone in ("beit", "mixer", "convnext", "swin_v2"):
        with pytest.raises(Unsupported, match="e2vpt"):
            METHODS["e2vpt"]().check(anatomy_of(backbone))
