"""Multi-cognitive adapters, written out by hand on bare blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill
from support.tiny_tuned import noise, start
from torch import Tensor

from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned
from peftbench.spec import BackboneSpec


def _apply(backbone: str) -> Tuned:
    """In float64 and eval mode, all that trains far from zero."""
    tuned = start("mona", backbone, bottleneck=5)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    return tuned


def _tensors(tuned: Tuned, place: str) -> dict[str, Tensor]:
    start = f"{place}.adapter."
    return {
        n.removeprefix(start): p.detach()
        for n, p in tuned.model.named_parameters()
        if n.startswith(start)
    }


def _on_map(x: Tensor, t: dict[str, Tensor]) -> Tensor:
    """(B, H, W, C): x and what the definition adds to it, convolutions as sums of shifted maps."""
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    m = (normed * t["norm.weight"] + t["norm.bias"]) * t["gamma"] + x * t["gammax"]
    hidden = m @ t["down.weight"].T + t["down.bias"]
    height, width = x.shape[1:3]
    total = torch.zeros_like(hidden)
    for size in (3, 5, 7):
        padded = F.pad(hidden, (0, 0, size // 2, size // 2, size // 2, size // 2))
        for i in range(size):
            for j in range(size):
                moved = padded[:, i : i + height, j : j + width]
                total = total + moved * t[f"conv{size}.weight"][:, 0, i, j]
        total = total + t[f"conv{size}.bias"]
    filtered = total / 3 + hidden
    mixed = filtered + filtered @ t["mix.weight"][:, :, 0, 0].T + t["mix.bias"]
    active = mixed * (1 + torch.erf(mixed / 2**0.5)) / 2
    return x + active @ t["up.weight"].T + t["up.bias"]


def test_a_swin_block_has_one_behind_attention_and_one_behind_the_mlp() -> None:
    tuned = _apply("swin")
    block = tuned.model.get_submodule("layers.0.blocks.1")
    bare = block.base.block
    x = noise(2, 8, 8, 12)
    y = x + bare._attn(bare.norm1(x))
    y = _on_map(y, _tensors(tuned, "layers.0.blocks.1.base.block.norm2"))
    z = y + bare.mlp(F.layer_norm(y, (12,), bare.norm2.weight, bare.norm2.bias, bare.norm2.eps))
    expected = _on_map(z, _tensors(tuned, "layers.0.blocks.1"))
    found = block(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_tokens_in_front_of_the_patches_stay_as_they_are() -> None:
    tuned = _apply("vit_registers")
    adapter = tuned.model.get_submodule("blocks.0.adapter")
    x = noise(2, 5 + 16, 24)
    change = adapter(x)
    assert not change[:, :5].any()
    patches = x[:, 5:].reshape(2, 4, 4, 24)
    expected = _on_map(patches, _tensors(tuned, "blocks.0")) - patches
    torch.testing.assert_close(change[:, 5:], expected.reshape(2, 16, 24), rtol=1e-10, atol=1e-10)


def test_the_last_block_has_none_where_the_class_token_is_read() -> None:
    places = {site.path for site in METHODS["mona"]().sites(anatomy_of("vit"))}
    assert places == {"blocks.0", "blocks.0.norm2"}
    places = {site.path for site in METHODS["mona"]().sites(anatomy_of("vit_average"))}
    assert places == {"blocks.0", "blocks.0.norm2", "blocks.1", "blocks.1.norm2"}


def test_it_does_not_start_at_the_pretrained_function() -> None:
    """As released: gamma is 1e-6, gamma_x is 1, and no layer starts at zero."""
    tuned = start("mona", "swin")
    tensors = _tensors(tuned, "layers.0.blocks.0")
    assert tensors["gamma"].unique().tolist() == pytest.approx([1e-6])
    assert tensors["gammax"].unique().tolist() == [1.0]
    assert float(tensors["up.weight"].abs().max()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(tensors["conv7.weight"].abs().max()) == pytest.approx(1 / 7, rel=0.02)


def test_the_count_on_swin_b_is_that_of_the_definition() -> None:
    # a module of width C: LN 2 C, gammas 2 C, down 64 C + 64, up 64 C + C, 3 filters 64 (83 + 3),
    # mix 64^2 + 64; Swin-B has 2, 2, 18 and 2 blocks of width 128, 256, 512, 1024
    widths = (128, 256, 512, 1024)
    each = {width: 5 * width + 128 * width + 64 + 64 * 86 + 64**2 + 64 for width in widths}
    expected = 2 * (2 * each[128] + 2 * each[256] + 18 * each[512] + 2 * each[1024])
    spec = BackboneSpec("swin_base_patch4_window7_224", pretrained=False)
    loaded = load(spec, 2, device="meta")
    anatomy = describe(loaded.model, loaded.image_size)
    assert METHODS["mona"]().expected_params(anatomy) == expected == 3_667_456


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="bottleneck=0;"):
        METHODS["mona"](bottleneck=0)
    with pytest.raises(ConfigError, match=r"dropout=1\.0"):
        METHODS["mona"](dropout=1.0)
    one_block = anatomy_of("vit")
    one_block = type(one_block)(**{**vars(one_block), "depth": 1})
    with pytest.raises(Unsupported, match="class token"):
        METHODS["mona"]().check(one_block)
