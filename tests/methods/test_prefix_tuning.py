"""Prefixes: how keys and values are made, and how many numbers that takes."""

from __future__ import annotations

import pytest
import torch
from support.counted_vit import vit_b
from support.tiny_backbones import anatomy_of, fill, images
from support.tiny_tuned import start

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS


def test_a_network_makes_keys_and_values_of_each_attention() -> None:
    tuned = start("prefix", "vit", num_tokens=4, mid_dim=6)
    fill(tuned.trainable, seed=2)
    for depth in range(2):
        extra = tuned.model.get_submodule(f"blocks.{depth}.attn.extra")
        encoder = extra.encoder
        hidden = torch.tanh(encoder.embedding @ encoder.fc1.weight.T + encoder.fc1.bias)
        made = hidden @ extra.fc2.weight.T + extra.fc2.bias
        keys, values = extra()
        for head in range(3):  # keys of all heads come first, 8 channels each
            torch.testing.assert_close(keys[head], made[:, 8 * head : 8 * head + 8])
            torch.testing.assert_close(values[head], made[:, 24 + 8 * head : 32 + 8 * head])
    assert tuned.model.blocks[0].attn.extra.encoder is tuned.model.blocks[1].attn.extra.encoder


def test_without_a_network_they_are_learned_as_they_are() -> None:
    tuned = start("prefix", "swin", num_tokens=4, mid_dim=None)
    shapes = {name: tuple(p.shape) for name, p in tuned.method_params.items()}
    assert shapes["layers.0.blocks.1.attn.extra.keys"] == (2, 4, 6)
    assert shapes["layers.1.blocks.0.attn.extra.values"] == (3, 4, 8)
    assert len(shapes) == 6


@pytest.mark.parametrize("method", ["prefix", "mam"])
def test_a_finished_task_stores_what_the_network_makes(method: str) -> None:
    tuned = start(method, "vit", num_tokens=4)  # 800 hidden units for 4 keys
    fill(tuned.trainable, seed=2)
    tuned.model.eval()
    stored = tuned.stored()
    kept = tuned.method.stored_as(tuned.anatomy)
    assert kept == METHODS[method](num_tokens=4, mid_dim=None)
    again = start(method, "vit", num_tokens=4, mid_dim=None)
    again.load_state(stored)
    again.model.eval()
    x = images("vit", 3)
    with torch.no_grad():
        assert torch.equal(again.model(x), tuned.model(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(again.model(x), tuned.model(x))
    prefixes = sum(t.numel() for name, t in stored.items() if ".extra." in name)
    assert prefixes == 2 * 2 * 4 * 24  # keys and values of two blocks


def test_a_network_that_is_less_than_what_it_makes_is_stored_itself() -> None:
    tuned = start("prefix", "vit", num_tokens=50, mid_dim=2)
    assert tuned.method.stored_as(tuned.anatomy) == tuned.method
    assert tuned.stored().keys() == tuned.state().keys()


def test_counts_on_vit_b() -> None:
    anatomy = vit_b()
    # 2 l d in each of 12 blocks: 0.55 M for l = 30
    assert METHODS["prefix"](num_tokens=30, mid_dim=None).expected_params(anatomy) == 552_960
    # rows 30 x 768, 768 x 800 + 800, and 800 x 18,432 + 18,432
    made = 30 * 768 + 768 * 800 + 800 + 800 * 18_432 + 18_432
    assert METHODS["prefix"](num_tokens=30).expected_params(anatomy) == made


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="mid_dim=0"):
        METHODS["prefix"](mid_dim=0)
    with pytest.raises(ConfigError, match="num_tokens=0"):
        METHODS["prefix"](num_tokens=0)
    with pytest.raises(Unsupported, match="no attention"):
        METHODS["prefix"]().check(anatomy_of("resnet_basic"))
    with pytest.raises(Unsupported, match="scaled_dot_product_attention"):
        start("prefix", "swin_v2")
