"""Frozen attention with other keys and values, written out by hand for each kind of backbone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fresh, images
from support.tiny_tuned import noise
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftbench.methods.attention_sites import attention_paths
from peftbench.methods.layers.attention import CrossAttention, ExtendedAttention, Heads, heads_of

ROOM = 2  # learned keys


class Learned(nn.Module):
    """Keys and values that differ."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(noise(heads, ROOM, width))
        self.values = nn.Parameter(noise(heads, ROOM, width) + 1)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def _attention(backbone: str, depth: int = 0) -> nn.Module:
    """In float64, from a backbone whose norms, biases and tables are all away from zero."""
    model = fresh(backbone).double().eval()
    return model.get_submodule(attention_paths(anatomy_of(backbone))[depth])


def _heads(model: nn.Module, backbone: str) -> dict[int, Heads]:
    anatomy = anatomy_of(backbone)
    return heads_of(model, anatomy, attention_paths(anatomy))


def _extended(base: nn.Module, heads: int = 3, width: int = 8) -> ExtendedAttention:
    return ExtendedAttention(base, Learned(heads, width).double())


def _by_hand(q: Tensor, k: Tensor, v: Tensor, extra: Learned, bias: Tensor | float = 0) -> Tensor:
    """(B, N, heads d): what each query makes of the learned keys and of its own, in one softmax."""
    scale = 1 / math.sqrt(q.shape[-1])
    own = scale * q @ k.transpose(-2, -1) + bias
    learned = scale * q @ extra.keys.transpose(-2, -1)
    top = torch.exp(own) @ v + torch.exp(learned) @ extra.values
    total = torch.exp(own).sum(-1, keepdim=True) + torch.exp(learned).sum(-1, keepdim=True)
    return (top / total).transpose(1, 2).flatten(2)


def _split(rows: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values (B, heads, N, d) of the rows (B, N, 3 heads d) of one projection."""
    each = rows.chunk(3, dim=-1)
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in each]


def test_on_a_vit_with_norms_of_its_queries_and_keys_they_are_not_normalised() -> None:
    base = _attention("vit_registers")
    x = noise(2, 21, 24)
    q, k, v = _split(base.qkv(x), 3)
    extended = _extended(base)
    expected = base.proj(_by_hand(base.q_norm(q), base.k_norm(k), v, extended.extra))
    torch.testing.assert_close(extended(x), expected, rtol=1e-10, atol=1e-10)


def test_in_shifted_windows_of_swin_they_have_no_bias_and_no_mask() -> None:
    base = _attention("swin", 1)
    x, mask = noise(8, 16, 12), torch.zeros(4, 16, 16).double()
    mask[:, :8, 8:] = -100.0  # four windows of each of two images
    mask[:, 8:, :8] = -100.0
    q, k, v = _split(base.qkv(x), 2)
    table = base.relative_position_bias_table[base.relative_position_index.flatten()]
    bias = table.view(16, 16, 2).permute(2, 0, 1)[None] + mask.repeat(2, 1, 1)[:, None]
    extended = _extended(base, 2, 6)
    expected = base.proj(_by_hand(q, k, v, extended.extra, bias))
    torch.testing.assert_close(extended(x, mask=mask), expected, rtol=1e-10, atol=1e-10)


def test_on_beit_they_have_no_relative_position() -> None:
    base = _attention("beit")
    x = noise(2, 17, 24)
    biases = torch.cat((base.q_bias, base.k_bias, base.v_bias))
    q, k, v = _split(F.linear(x, base.qkv.weight, biases), 3)
    extended = _extended(base)
    expected = base.proj(_by_hand(q, k, v, extended.extra, base._get_rel_pos_bias()))
    torch.testing.assert_close(extended(x), expected, rtol=1e-10, atol=1e-10)


def test_on_eva_they_are_not_rotated() -> None:
    base = _attention("eva_split")
    x, rope = noise(2, 17, 24), noise(16, 16)
    q, k, v = (
        layer(x).unflatten(-1, (3, -1)).transpose(1, 2)
        for layer in (base.q_proj, base.k_proj, base.v_proj)
    )
    q, k = (
        torch.cat((t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], rope, half=base.rotate_half)), 2)
        for t in (q, k)
    )
    extended = _extended(base)
    expected = base.proj(base.norm(_by_hand(q, k, v, extended.extra)))
    torch.testing.assert_close(extended(x, rope=rope), expected, rtol=1e-10, atol=1e-10)


def test_tokens_alone_ask_and_prompts_alone_answer() -> None:
    base = _attention("vit")
    x, prompts = noise(2, 17, 24), noise(4, 24) + 1
    q = _split(base.qkv(x), 3)[0]
    _, k, v = (part.expand(2, -1, -1, -1) for part in _split(base.qkv(prompts[None]), 3))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    expected = base.proj((weights @ v).transpose(1, 2).flatten(2))
    cross = CrossAttention(base, prompts, 0.5).eval()
    torch.testing.assert_close(cross(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("backbone", "rows", "options"),
    [("vit", (2, 17, 24), {}), ("swin", (4, 16, 12), {"mask": True}), ("beit", (2, 17, 24), {})],
)
def test_both_ways_to_compute_attention_give_the_same_and_stay_as_chosen(
    backbone: str, rows: tuple[int, ...], options: dict[str, bool]
) -> None:
    base = _attention(backbone)
    heads, width = (2, 6) if backbone == "swin" else (3, 8)
    extended = _extended(base, heads, width)
    x = noise(*rows)
    given = {"mask": torch.zeros(4, 16, 16).double()} if options else {}
    found = []
    for fused in (True, False):
        base.fused_attn = fused
        found.append(extended(x, **given))
        assert base.fused_attn is fused
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_the_choice_survives_an_error() -> None:
    base = _attention("vit")
    base.fused_attn = False
    with pytest.raises(RuntimeError):
        _extended(base)(noise(2, 17, 23))
    assert base.fused_attn is False


def test_a_copy_asks_its_own_attention() -> None:
    block = nn.Module()
    block.attn = _attention("vit")
    block.cross = CrossAttention(block.attn, noise(4, 24), 0.0)
    twin = copy.deepcopy(block)
    x = noise(2, 17, 24)
    before = block.cross(x)
    with torch.no_grad():
        twin.attn.qkv.weight.mul_(2)
    assert torch.equal(block.cross(x), before)
    assert not torch.allclose(twin.cross(x), before)
    assert {name for name, _ in block.cross.named_parameters()} == {"tokens"}


def test_checkpointing_gives_the_same_gradients() -> None:
    extended = _extended(_attention("vit"))
    x = noise(2, 17, 24)
    gradients = []
    for use in (False, True):
        x = x.detach().requires_grad_()
        out = checkpoint(extended, x, use_reentrant=False) if use else extended(x)
        found = torch.autograd.grad(out.square().sum(), (x, *extended.extra.parameters()))
        gradients.append(found)
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_in_bfloat16_learned_keys_take_the_type_of_the_others() -> None:
    base = _attention("vit").float()
    extended = _extended(base).float()
    x = noise(2, 17, 24).float()
    for fused in (True, False):
        base.fused_attn = fused
        with torch.autocast("cpu", torch.bfloat16):
            out = extended(x)
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.float(), extended(x), rtol=0.1, atol=0.1)


def test_heads_are_found_without_weights_where_the_one_call_is_made() -> None:
    found = _heads(fresh("swin"), "swin")
    assert {depth: (heads.count, heads.width) for depth, heads in found.items()} == {
        0: (2, 6),
        1: (2, 6),
        2: (3, 8),
    }
    assert found[2].path == "layers.1.blocks.0.attn"
    assert not _heads(fresh("swin_v2"), "swin_v2")  # cosines, no such call
    assert not _heads(fresh("convnext"), "convnext")


def test_a_whole_model_computes_in_both_ways_alike() -> None:
    model = fresh("eva_fused").double().eval()
    for heads in _heads(model, "eva_fused").values():
        block = model.get_submodule(heads.path.removesuffix(".attn"))
        block.attn = _extended(block.attn)
    x = images("eva_fused", 2, dtype=torch.float64)
    plain = model(x)
    for module in model.modules():
        if "fused_attn" in vars(module):
            module.fused_attn = True
    torch.testing.assert_close(model(x), plain, rtol=1e-10, atol=1e-10)
