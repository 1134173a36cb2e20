"""The scaled parallel adapter and its norms, written out by hand."""

from __future__ import annotations

import pytest
import torch
from support.counted_vit import vit_b
from support.tiny_backbones import anatomy_of, fill, fresh
from support.tiny_tuned import noise, start, tensors_at
from torch import Tensor

from peftbench.errors import ConfigError, UnknownName, Unsupported
from peftbench.methods import METHODS


def _layer_norm(x: Tensor, t: dict[str, Tensor]) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normed * t["norm.weight"] + t["norm.bias"]


@pytest.mark.parametrize("norm", ["none", "in", "out"])
@pytest.mark.parametrize("learned", [False, True])
def test_it_reads_what_the_mlp_reads_and_is_added_to_what_it_gives(
    norm: str, learned: bool
) -> None:
    tuned = start("parallel_adapter", "vit", bottleneck=5, norm=norm, learned_scale=learned)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    t = tensors_at(tuned, "blocks.1.block.norm2")
    bare = fresh("vit").double().eval().blocks[1]
    x = noise(2, 17, 24)
    y = x + bare.attn(bare.norm1(x))
    n = bare.norm2(y)
    read = _layer_norm(n, t) if norm == "in" else n
    hidden = (read @ t["down.weight"].T + t["down.bias"]).clamp(min=0)
    change = (t["scale"] if learned else 4.0) * (hidden @ t["up.weight"].T + t["up.bias"])
    change = _layer_norm(change, t) if norm == "out" else change
    block = tuned.model.get_submodule("blocks.1")
    torch.testing.assert_close(block(x), y + bare.mlp(n) + change, rtol=1e-10, atol=1e-10)


def test_the_count_on_vit_b_is_that_of_the_paper() -> None:
    anatomy = vit_b()
    # 2 d h + h + d in each of 12 blocks: 9.45 M for h = 512
    assert METHODS["parallel_adapter"]().expected_params(anatomy) == 9_452_544
    more = METHODS["parallel_adapter"](learned_scale=True, norm="out")
    assert more.expected_params(anatomy) == 9_452_544 + 12 * (1 + 2 * 768)


def test_mam_is_the_sum_of_its_parts() -> None:
    tuned = start("mam", "vit", num_tokens=4, mid_dim=6, bottleneck=5)
    prefix = start("prefix", "vit", num_tokens=4, mid_dim=6)
    adapter = start("parallel_adapter", "vit", bottleneck=5)
    names = {name.replace(".block.", ".") for name in tuned.method_params}
    parts = {n.replace(".block.", ".") for n in (*prefix.method_params, *adapter.method_params)}
    assert names == parts
    plain = METHODS["mam"](mid_dim=None)
    assert plain.expected_params(vit_b()) == 552_960 + 9_452_544


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UnknownName, match="norm"):
        METHODS["parallel_adapter"](norm="before")
    with pytest.raises(ConfigError, match=r"method=mam: bottleneck=0"):
        METHODS["mam"](bottleneck=0)
    with pytest.raises(ConfigError, match=r"method=mam: num_tokens=0"):
        METHODS["mam"](num_tokens=0)
    with pytest.raises(Unsupported, match="mam"):
        METHODS["mam"]().check(anatomy_of("mixer"))
