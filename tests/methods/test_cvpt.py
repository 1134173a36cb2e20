"""Where cross attention to prompts enters a block."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh
from support.tiny_tuned import noise, start
from torch import Tensor, nn

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS


@pytest.mark.parametrize("insert", [1, 2, 3, 4, 5])
def test_it_enters_where_the_insert_says(insert: int) -> None:
    tuned = start("cvpt", "vit_registers", num_tokens=3, insert=insert)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    bare = fresh("vit_registers").double().eval().blocks[0]
    place = {1: "", 2: "block.norm1.", 3: "block.norm2.", 4: "norm2.", 5: ""}[insert]
    cross = tuned.model.get_submodule(f"blocks.0.{place}adapter")

    def attention(x: Tensor) -> Tensor:
        return bare.ls1(bare.attn(bare.norm1(x)))

    def mlp(x: Tensor, more: Tensor | float = 0) -> Tensor:
        return bare.ls2(bare.mlp(bare.norm2(x) + more))

    x = noise(2, 21, 24)
    if insert == 1:
        x1 = x + cross(x)
        y = x1 + attention(x1)
        z = y + mlp(y)
    else:
        y = x + attention(x) + (cross(x) if insert == 2 else 0)
        y = y + cross(y) if insert == 3 else y
        z = y + mlp(y, cross(y) if insert == 4 else 0)
        z = z + cross(z) if insert == 5 else z
    block: nn.Module = tuned.model.get_submodule("blocks.0")
    torch.testing.assert_close(block(noise(2, 21, 24)), z, rtol=1e-10, atol=1e-10)


def test_prompts_start_uniform_with_the_bound_of_all_blocks_together() -> None:
    tuned = start("cvpt", "vit", num_tokens=50)
    bound = math.sqrt(6 / ((50 + 2) * 24))  # (L, p, D) with L = 2
    for tokens in tuned.method_params.values():
        assert tokens.shape == (50, 24)
        largest = float(tokens.detach().abs().max())
        assert largest == pytest.approx(bound, rel=0.01) and largest <= bound


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="insert=6"):
        METHODS["cvpt"](insert=6)
    with pytest.raises(Unsupported, match="no attention"):
        METHODS["cvpt"]().check(anatomy_of("convnext"))
    with pytest.raises(Unsupported, match="scaled_dot_product_attention"):
        start("cvpt", "swin_v2")
    with pytest.raises(Unsupported, match=r"method\.insert=5"):
        METHODS["cvpt"](insert=2).check(anatomy_of("swin_v2"))
