"""Convolutional bypasses and foldable linear adapters, written out by hand on bare blocks."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, randomise
from support.tiny_tuned import noise, start, tensors_at
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.backbones.describe import describe
from peftbench.errors import ConfigError, NotMergeable, UnknownName, Unsupported
from peftbench.methods import METHODS, Tuned, apply

SCALE = 0.7


def _apply(method: str, backbone: str, **options: object) -> Tuned:
    """In float64 and eval mode, all that trains far from zero."""
    tuned = start(method, backbone, scale=SCALE, **options)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    return tuned


# ------------------------------------------------------------------- convpass


def _quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def _convolve(grid: Tensor, t: dict[str, Tensor]) -> Tensor:
    """(B, H, W, h): the sum over nine shifted copies of the map, zeros around it."""
    height, width = grid.shape[1:3]
    padded = F.pad(grid, (0, 0, 1, 1, 1, 1))
    out = t["conv.bias"].expand_as(grid).clone()
    for i in range(3):
        for j in range(3):
            out += padded[:, i : i + height, j : j + width] @ t["conv.weight"][:, :, i, j].T
    return out


def _on_map(n: Tensor, t: dict[str, Tensor]) -> Tensor:
    hidden = _convolve(_quick_gelu(n @ t["down.weight"].T + t["down.bias"]), t)
    return SCALE * (_quick_gelu(hidden) @ t["up.weight"].T + t["up.bias"])


def _on_tokens(
    n: Tensor, t: dict[str, Tensor], num_prefix: int, grid: tuple[int, int] = (4, 4)
) -> Tensor:
    """Each prefix token is a map of one; the patches stand row by row."""
    alone = [_on_map(n[:, i, None, None], t)[:, 0] for i in range(num_prefix)]
    patches = _on_map(n[:, num_prefix:].reshape(len(n), *grid, -1), t)
    return torch.cat((*alone, patches.flatten(1, 2)), dim=1)


@pytest.mark.parametrize(
    ("backbone", "num_prefix"), [("vit", 1), ("vit_registers", 5), ("vit_average", 0)]
)
@pytest.mark.parametrize("branches", ["both", "attention"])
def test_convpass_convolves_the_grid_of_the_patches_and_each_prefix_token_alone(
    branches: str, backbone: str, num_prefix: int
) -> None:
    tuned = _apply("convpass", backbone, branches=branches)
    bypass = partial(_on_tokens, num_prefix=num_prefix)
    block, x = fresh(backbone).double().blocks[1], noise(2, num_prefix + 16, 24)
    with torch.no_grad():
        n = block.norm1(x)
        y = x + block.ls1(block.attn(n)) + bypass(n, tensors_at(tuned, "blocks.1.block.norm1"))
        n = block.norm2(y)  # sees what the first bypass changed
        expected = y + block.ls2(block.mlp(n))
        if branches == "both":
            expected += bypass(n, tensors_at(tuned, "blocks.1.block.norm2"))
        actual = tuned.model.blocks[1](x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_convpass_convolves_a_grid_with_more_columns_than_rows() -> None:
    """Patches of 4 x 2 pixels: 4 rows of 8. A square of as many would have 5.7."""
    model = VisionTransformer(
        img_size=16, patch_size=(4, 2), embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    anatomy = describe(randomise(model, seed=0), 16)
    block, x = copy.deepcopy(model).double().eval().blocks[1], noise(2, 1 + 32, 24)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["convpass"](scale=SCALE), model, anatomy, 7, generator)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    bypass = partial(_on_tokens, num_prefix=1, grid=(4, 8))
    with torch.no_grad():
        n = block.norm1(x)
        y = x + block.attn(n) + bypass(n, tensors_at(tuned, "blocks.1.block.norm1"))
        n = block.norm2(y)
        expected = y + block.mlp(n) + bypass(n, tensors_at(tuned, "blocks.1.block.norm2"))
        actual = tuned.model.blocks[1](x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_convpass_refuses_tokens_of_unknown_rows() -> None:
    anatomy = anatomy_of("vit")
    assert anatomy.tokens is not None and anatomy.tokens.grid == (4, 4)
    lost = dataclasses.replace(anatomy, tokens=dataclasses.replace(anatomy.tokens, grid=None))
    with pytest.raises(Unsupported, match=r"rows of patches.* not known to be in rows"):
        METHODS["convpass"]().check(lost)


@pytest.mark.parametrize("branches", ["both", "attention"])
def test_convpass_convolves_the_whole_map_of_swin_over_the_borders_of_windows(
    branches: str,
) -> None:
    tuned = _apply("convpass", "swin", branches=branches)
    place = "layers.0.blocks.1.block"
    block, x = fresh("swin").double().layers[0].blocks[1], noise(2, 8, 8, 12)
    assert block.window_size == (4, 4)
    with torch.no_grad():
        n = block.norm1(x)
        y = x + block._attn(n) + _on_map(n, tensors_at(tuned, f"{place}.norm1"))
        n = block.norm2(y)
        expected = y + block.mlp(n)
        if branches == "both":
            expected += _on_map(n, tensors_at(tuned, f"{place}.norm2"))
        actual = tuned.model.layers[0].blocks[1](x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("init", ["identity", "xavier"])
def test_convpass_starts_from_an_identity_kernel_or_a_random_one(init: str) -> None:
    h = 8
    tuned = start("convpass", "vit", bottleneck=h, conv_init=init)
    identity = torch.zeros(h, h, 3, 3)
    for i in range(h):
        identity[i, i, 1, 1] = 1
    for name, parameter in tuned.method_params.items():
        tensor, last = parameter.detach(), ".".join(name.split(".")[-2:])
        if last == "down.weight":
            bound = math.sqrt(6 / (24 + h))  # 192 draws
            assert 0.95 * bound < tensor.abs().max() <= bound
        elif last == "conv.weight" and init == "xavier":
            bound = math.sqrt(6 / (9 * h + 9 * h))  # 576 draws
            assert 0.98 * bound < tensor.abs().max() <= bound
        elif last == "conv.weight":
            assert torch.equal(tensor, identity)
        else:
            assert not tensor.any()


# ------------------------------------------------------------------- repadapter


def _matrices(t: dict[str, Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """M and c of n + M n + c: half g of the output reads half g of the hidden units."""
    width, hidden = len(t["up.weight"]), len(t["down.weight"])
    up = torch.zeros(width, hidden, dtype=torch.float64)
    for g in range(groups):
        rows = slice(g * width // groups, (g + 1) * width // groups)
        columns = slice(g * hidden // groups, (g + 1) * hidden // groups)
        up[rows, columns] = t["up.weight"][rows]
    return SCALE * up @ t["down.weight"], SCALE * (up @ t["down.bias"] + t["up.bias"])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layer", ["attn.qkv", "mlp.fc1"])
def test_repadapter_changes_the_input_of_attention_and_mlp_group_by_group(
    layer: str, groups: int
) -> None:
    tuned = _apply("repadapter", "vit", bottleneck=8, groups=groups)
    t = tensors_at(tuned, f"blocks.1.{layer}")
    assert t["up.weight"].shape == (24, 8 // groups)
    matrix, constant = _matrices(t, groups)
    base, n = fresh("vit").double().get_submodule(f"blocks.1.{layer}"), noise(2, 17, 24)
    with torch.no_grad():
        expected = base(n + n @ matrix.T + constant)
        actual = tuned.model.get_submodule(f"blocks.1.{layer}")(n)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["vit", "swin", "convnext", "mixer"])
def test_repadapter_folds_into_w_times_one_plus_m_and_b_plus_w_c(backbone: str) -> None:
    tuned = _apply("repadapter", backbone)
    expected = {name: t.clone() for name, t in fresh(backbone).double().state_dict().items()}
    for path in tuned.touched:
        matrix, constant = _matrices(tensors_at(tuned, path), groups=2)
        weight, bias = expected[f"{path}.weight"], expected[f"{path}.bias"]
        eye = torch.eye(len(matrix), dtype=torch.float64)
        expected[f"{path}.weight"] = weight @ (eye + matrix)
        expected[f"{path}.bias"] = bias + weight @ constant
    head = tuned.anatomy.head
    state = tuned.method.merge(tuned.model).state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.startswith(f"{head}."):
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-13)


def test_repadapter_starts_from_a_xavier_matrix_and_zeros() -> None:
    tuned = start("repadapter", "vit", bottleneck=64)
    for name, parameter in tuned.method_params.items():
        if not name.endswith("down.weight"):
            assert not parameter.any()
            continue
        bound = math.sqrt(6 / (24 + 64))  # 1,536 draws
        assert 0.99 * bound < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_repadapter_refuses_several_projections_side_by_side() -> None:
    with pytest.raises(Unsupported, match="several side by side"):
        METHODS["repadapter"]().check(anatomy_of("eva_split"))


def test_repadapter_refuses_channels_that_do_not_divide_into_the_groups() -> None:
    METHODS["repadapter"](bottleneck=12, groups=12).check(anatomy_of("swin"))
    with pytest.raises(Unsupported, match=r"cannot cut the 12 channels .* into 5 groups"):
        METHODS["repadapter"](bottleneck=10, groups=5).check(anatomy_of("swin"))


def test_repadapter_that_cannot_be_merged_is_left_as_it_was() -> None:
    """Without a bias of qkv the constant has no place; fc1 could take its own."""
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5, qkv_bias=False
    )
    anatomy = describe(randomise(model, seed=0), 16)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["repadapter"](), model, anatomy, 7, generator)
    fill(tuned.trainable, seed=2)
    modules = list(tuned.model.named_modules())
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    with pytest.raises(NotMergeable, match=r"'blocks\.0\.attn\.qkv', which has no bias"):
        tuned.method.merge(tuned.model)
    assert list(tuned.model.named_modules()) == modules
    after = tuned.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ------------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("method", "place"),
    [("convpass", "blocks.1.block.norm1"), ("repadapter", "blocks.1.attn.qkv")],
)
def test_dropout_acts_on_the_bottleneck_and_only_while_training(method: str, place: str) -> None:
    """Of a bottleneck of two, most tokens keep nothing but the last bias."""
    tuned = _apply(method, "vit", dropout=0.75, bottleneck=2)
    t, n = tensors_at(tuned, place), noise(4, 17, 24)
    adapter = tuned.model.get_submodule(f"{place}.adapter")
    full = adapter(n).detach()
    torch.manual_seed(0)
    tuned.train()
    dropped = adapter(n).detach()
    nothing = SCALE * t["up.bias"] + (n if method == "repadapter" else 0)
    empty = ((dropped - nothing).abs() < 1e-12).all(-1)
    # both units of a token are dropped with probability 9/16; 68 tokens, four standard errors
    assert abs(empty.double().mean() - 9 / 16) < 4 * math.sqrt(9 * 7 / 68) / 16
    tuned.model.eval()
    torch.testing.assert_close(adapter(n).detach(), full, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("convpass", {"bottleneck": 0}, "bottleneck=0"),
        ("convpass", {"dropout": 1.0}, r"dropout=1\.0"),
        ("repadapter", {"bottleneck": 0}, "bottleneck=0"),
        ("repadapter", {"groups": 0}, "bottleneck=8 is not a positive multiple of groups=0"),
        ("repadapter", {"bottleneck": 9}, "bottleneck=9 is not a positive multiple of groups=2"),
        ("repadapter", {"dropout": -0.5}, r"dropout=-0\.5"),
    ],
)
def test_senseless_values_are_refused_by_name(method: str, options: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=f"^method={method}: {found}"):
        METHODS[method](**options)


@pytest.mark.parametrize("option", ["branches", "conv_init"])
def test_unknown_choices_of_convpass_are_refused(option: str) -> None:
    with pytest.raises(UnknownName, match=f"{option} of method=convpass: 'mlp'"):
        METHODS["convpass"](**{option: "mlp"})
