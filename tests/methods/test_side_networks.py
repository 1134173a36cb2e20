"""Networks beside a frozen backbone, written out by hand, and counted on the papers' backbones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import start
from torch import Tensor

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS
from peftbench.spec import BackboneSpec


@cache
def anatomy_at_scale(architecture: str) -> Anatomy:
    """Of a backbone without memory."""
    loaded = load(BackboneSpec(architecture, pretrained=False), 2, device="meta")
    return describe(loaded.model, loaded.image_size)


def count(method: str, architecture: str = "vit_base_patch16_224", **options: Any) -> int:
    return METHODS[method](**options).expected_params(anatomy_at_scale(architecture))


# ------------------------------------------------------------------- DTL


def test_dtl_has_the_published_number_of_parameters() -> None:
    """0.04 M: 12 blocks of 4 x 768; DTL+ has one kernel of 768 x 3 x 3 more."""
    assert count("dtl") == 36_864
    assert count("dtl", fusion_size=3) == 43_776


def test_dtl_on_swin_leaves_out_blocks_that_nothing_reads() -> None:
    """Swin-B adds from block 12 of 24 on: stages 2 (18 blocks of 512) and 3 (2 of 1024)."""
    assert count("dtl", "swin_base_patch4_window7_224") == 4 * (18 * 512 + 2 * 1024)


def test_dtl_adds_what_it_gathers_and_reads_the_mean_of_the_patches() -> None:
    tuned = start("dtl", "vit", beta=3.0)
    fill(tuned.trainable, seed=2)
    model = tuned.model.double().eval()
    blocks: Any = fresh("vit").double().eval()
    x = images("vit", 2, dtype=torch.float64)
    factors = [
        (model.get_parameter(f"blocks.{i}.gather.a"), model.get_parameter(f"blocks.{i}.gather.b"))
        for i in range(2)
    ]
    tokens = blocks._pos_embed(blocks.patch_embed(x))
    (a0, b0), (a1, b1) = factors
    after = blocks.blocks[0](tokens)  # the first half adds nothing
    h = tokens @ a0.T @ b0.T + after @ a1.T @ b1.T
    out = blocks.blocks[1](after) + h / (1 + torch.exp(-3 * h))
    feature = blocks.norm(out[:, 1:].mean(1))
    head: Any = model.get_submodule("head")
    torch.testing.assert_close(model(x), head(feature), rtol=0, atol=1e-12)


def test_the_first_half_of_dtl_needs_no_gradients() -> None:
    tuned = start("dtl", "vit")
    tuned.train()
    seen: list[Tensor] = []
    block = tuned.model.get_submodule("blocks.0")
    block.register_forward_hook(lambda module, args, out: seen.append(out))
    assert tuned.model(images("vit", 2)).requires_grad
    assert not seen[0].requires_grad


def test_dtl_holds_no_tensor_of_a_pass_behind_it() -> None:
    tuned = start("dtl", "swin", fusion_size=3)
    tuned.model(images("swin", 2))
    states = [m.state for m in tuned.model.modules() if hasattr(m, "gather")]  # type: ignore[union-attr]
    assert states and all(state.h is None for state in states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_blocks": [7]}, r"block 7 is none of this vit backbone.*Set method\.add_blocks"),
        ({"gather_blocks": [1], "add_blocks": [0, 1]}, r"in front of which no block of its stage"),
    ],
)
def test_dtl_refuses_blocks_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        METHODS["dtl"](**options).check(anatomy_of("vit"))


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"fusion_size": 2}, {"read_out": "mean"}, {"add_blocks": [1, 1]}, {"beta": 0.0}],
)
def test_dtl_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method=dtl"):
        METHODS["dtl"](**options)


def test_the_kernel_of_dtl_plus_leaves_the_prefix_alone() -> None:
    """A kernel of zeros silences the patches, and the class token is given what was gathered."""
    tuned = start("dtl", "vit", fusion_size=3, read_out="backbone", beta=1.0)
    fill(tuned.trainable, seed=2)
    block: Any = tuned.model.get_submodule("blocks.1")
    h = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.fusion.weight.zero_()
        given = block._given(h)
    assert torch.equal(given[:, 1:], torch.zeros(2, 16, 24))
    torch.testing.assert_close(given[:, :1], F.silu(h[:, :1]))


# ------------------------------------------------------------------- LST


def test_lst_has_the_published_size() -> None:
    """V-PETL Bench counts 2.38 M on ViT-B; by hand, width 96 and 12 layers:

    attention 4 x 96² and three biases, MLP 2 x 96 x 384 with 384 + 96 biases, norms 4 x 96, down
    768 x 96, a gate; and 768 x 96 in front and behind.
    """
    layer = 4 * 96**2 + 3 * 96 + 2 * 96 * 384 + 384 + 96 + 4 * 96
    assert count("lst") == 12 * (layer + 768 * 96 + 1) + 2 * 768 * 96 == 2_373_132
    gates, key_biases = 12, 12 * 96
    assert count("lst", norm="post", gate="none") == 2_373_132 - gates + key_biases


def test_no_gradient_enters_the_backbone_beside_a_ladder() -> None:
    tuned = start("lst", "vit")
    seen: list[Tensor] = []
    for name, module in tuned.model.named_modules():
        if name.endswith(".block"):
            module.register_forward_hook(lambda module, args, out: seen.append(out))
    assert tuned.model(images("vit", 2)).requires_grad
    assert len(seen) == 2 and not any(out.requires_grad for out in seen)


def test_a_ladder_of_one_layer_is_the_formula() -> None:
    """Only block 1 has a side layer, a mean of what climbed and its output at a gate of 0."""
    tuned = start("lst", "vit", side_layers=[1], reduction=4)
    ladder: Any = tuned.model.get_submodule("blocks.0.ladder").double()
    model = tuned.model.double().eval()
    bare: Any = fresh("vit").double().eval()
    x = images("vit", 2, dtype=torch.float64)
    tokens = bare._pos_embed(bare.patch_embed(x))
    out = bare.blocks[1](bare.blocks[0](tokens))
    rung = ladder.rungs[1]
    side = rung.layer((ladder.first(tokens) + rung.down(out)) / 2)
    feature = bare.norm(ladder.up(side))[:, 0]
    head: Any = model.get_submodule("head")
    torch.testing.assert_close(model(x), head(feature), rtol=0, atol=1e-12)


def test_lst_refuses_what_does_not_fit() -> None:
    with pytest.raises(Unsupported, match=r"does not divide the width 24.*method\.reduction"):
        METHODS["lst"](reduction=7).check(anatomy_of("vit"))
    with pytest.raises(Unsupported, match=r"has 2 blocks from 0.*method\.side_layers"):
        METHODS["lst"](side_layers=[2]).check(anatomy_of("vit"))
    plain = anatomy_of("vit")
    (*_, last) = plain.where(Role.BLOCK)
    wide = replace(last, width=48)  # as in Hiera, whose blocks widen the stream
    widening = replace(plain, sites=tuple(wide if s is last else s for s in plain.sites))
    with pytest.raises(Unsupported, match="tokens of one number and width"):
        METHODS["lst"]().check(widening)
    with pytest.raises(ConfigError, match="method=lst: norm='batch'"):
        METHODS["lst"](norm="batch")


# ------------------------------------------------------------------- HST


def test_hst_has_as_many_parameters_as_its_definition_gives() -> None:
    """0.76 M, where the paper prints 0.78; widths 32, 48, 64, 72 with three blocks a stage."""
    stem = 32 * 27 + 2 * 32 + 32 * 32 * 4 + 32 + 2 * 32
    shrinks = sum(9 * a * b + 3 * b for a, b in ((32, 48), (48, 64), (64, 72)))
    blocks = sum(12 * d * d + (4 + 4 + 1) * d + 4 * d + 2 * d + 768 for d in (32, 48, 64, 72))
    stages = sum(769 * d + 2 * d for d in (32, 48, 64, 72))
    new = stem + shrinks + 3 * blocks + stages
    assert count("hst", train_norms=False) == new
    assert count("hst") == new + 12 * 4 * 768


def test_hst_shares_blocks_among_its_stages_and_refuses_other_ends() -> None:
    anatomy = anatomy_at_scale("vit_base_patch16_224")
    assert METHODS["hst"]()._sizes(anatomy) == (3, 3, 3, 3)
    assert METHODS["hst"](stage_ends=[1, 3, 7, 11])._sizes(anatomy) == (2, 2, 4, 4)
    with pytest.raises(Unsupported, match=r"the last block of this vit backbone is 11"):
        METHODS["hst"](stage_ends=[1, 3, 7, 10]).check(anatomy)
    with pytest.raises(ConfigError, match=r"5 side_heads do not divide side_widths of 48"):
        METHODS["hst"](side_heads=[2, 5, 8, 12])


def test_hst_holds_no_tensor_of_a_pass_behind_it() -> None:
    tuned = start("hst", "vit")
    tuned.model(images("vit", 2))
    state: Any = tuned.model.state
    assert state.outputs == []
