"""Low-rank adaptation: what it starts from, which rows it changes, fused and split projections."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from timm.models.eva import Eva
from tiny_backbones import anatomy_of, fill, fresh, images, randomise
from torch import Tensor

from peftbench.backbones.anatomy import describe
from peftbench.methods import METHODS, Tuned, apply, discover

discover()


def _apply(backbone: str, **options: object) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(METHODS["lora"](**options), fresh(backbone), anatomy_of(backbone), 7, generator)


@pytest.mark.parametrize(
    ("targets", "rows"),
    [
        (("q", "v"), {"q": (0, 24), "v": (48, 72)}),
        (("k",), {"k": (24, 48)}),
        (("qkv",), {"qkv": (0, 72)}),
    ],
)
@pytest.mark.parametrize("backbone", ["vit", "beit"])  # beside the layer, inside its weight
def test_the_merged_change_is_alpha_over_rank_times_b_a_on_the_rows_of_each_target(
    backbone: str, targets: tuple[str, ...], rows: dict[str, tuple[int, int]]
) -> None:
    tuned = _apply(backbone, rank=2, alpha=6.0, targets=targets)
    fill(tuned.trainable, seed=3)
    tuned.model.double()
    expected = fresh(backbone).double().get_parameter("blocks.1.attn.qkv.weight").detach()
    for target, (start, stop) in rows.items():
        (a,) = (
            p for n, p in tuned.method_params.items() if n.endswith(f"a.{target}") and ".1." in n
        )
        (b,) = (
            p for n, p in tuned.method_params.items() if n.endswith(f"b.{target}") and ".1." in n
        )
        expected[start:stop] += 6.0 / 2 * b.detach() @ a.detach()
    merged = tuned.method.merge(copy.deepcopy(tuned.model))
    weight = merged.get_parameter("blocks.1.attn.qkv.weight")
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backbone", ["vit", "beit"])
def test_merging_in_float32_rounds_once(backbone: str) -> None:
    tuned = _apply(backbone, rank=8, targets=("qkv",))
    fill(tuned.trainable, seed=3)
    (a,) = (
        p.detach().double()
        for n, p in tuned.method_params.items()
        if "blocks.0." in n and ".a." in n
    )
    (b,) = (
        p.detach().double()
        for n, p in tuned.method_params.items()
        if "blocks.0." in n and ".b." in n
    )
    weight = fresh(backbone).get_parameter("blocks.0.attn.qkv.weight").detach().double()
    merged = tuned.method.merge(tuned.model).get_parameter("blocks.0.attn.qkv.weight").detach()
    half_a_unit = 2.0**-24 * (1 + 1e-6)
    torch.testing.assert_close(merged.double(), weight + b @ a, rtol=half_a_unit, atol=0)


def test_a_is_kaiming_uniform_and_b_is_zero() -> None:
    tuned = _apply("vit", rank=16, targets=("q", "fc2"))
    for name, parameter in tuned.method_params.items():
        if ".delta.b." in name:
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def _copy_of_split(split: Eva, fused: Eva) -> None:
    """Give `fused` the weights of `split`."""
    state = dict(split.state_dict())
    for i in range(len(split.blocks)):
        attention = f"blocks.{i}.attn"
        parts = [state.pop(f"{attention}.{part}_proj.weight") for part in "qkv"]
        state[f"{attention}.qkv.weight"] = torch.cat(parts)
        for part in "qv":
            state[f"{attention}.{part}_bias"] = state.pop(f"{attention}.{part}_proj.bias")
    fused.load_state_dict(state)


def test_q_and_v_of_a_fused_projection_are_those_of_separate_ones() -> None:
    """The same EVA twice: fused and parametrized, split and beside the layers."""
    build = partial(
        Eva, img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, use_rot_pos_emb=True
    )
    split = randomise(build(qkv_fused=False), seed=0).eval()
    fused = build(qkv_fused=True).eval()
    _copy_of_split(split, fused)
    x = images("vit", 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x.float()), split(x.float()))
    outputs: list[Tensor] = []
    gradients: list[list[Tensor]] = []
    for model in (split, fused):
        generator = torch.Generator().manual_seed(0)
        tuned = apply(METHODS["lora"](rank=2), model, describe(model, 16), 7, generator)
        ordered = {  # the same order of sites in both: block, then factor, then q or v
            (name.split(".")[1], name.split(".")[-2], name.split(".")[-1]): parameter
            for name, parameter in tuned.method_params.items()
        }
        fill({str(k): ordered[k] for k in sorted(ordered)}, seed=4)
        fill(tuned.head_params, seed=5)
        model.double().eval()
        output = model(x)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append([g for k in sorted(ordered) if (g := ordered[k].grad) is not None])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    assert len(gradients[0]) == 8
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_parametrized_weights_are_noted() -> None:
    assert _apply("vit").notes == ()
    (note,) = _apply("beit").notes
    assert "2 weights are parametrized" in note


def test_the_frozen_weight_gets_no_gradient_on_the_activation_path() -> None:
    """W + dW would make autograd form the gradient of the whole weight."""
    tuned = _apply("vit")
    weight = tuned.model.get_parameter("blocks.0.attn.qkv.base.weight")
    shapes: list[torch.Size] = []
    for parameter in tuned.method_params.values():
        parameter.register_hook(lambda gradient: shapes.append(gradient.shape))
    tuned.model(images("vit", 2)).sum().backward()
    assert weight.grad is None
    assert len(shapes) == len(tuned.method_params)


def test_dropout_acts_on_the_factors_only_and_only_while_training() -> None:
    tuned = _apply("vit", dropout=0.5)
    fill(tuned.trainable, seed=3)
    x = images("vit", 2)
    torch.manual_seed(0)
    tuned.train()
    with torch.no_grad():
        assert not torch.allclose(tuned.model(x), tuned.model(x))
        fill({n: p for n, p in tuned.method_params.items() if ".b." in n}, seed=3)
        for name, parameter in tuned.method_params.items():
            if ".delta.b." in name:
                parameter.zero_()
        torch.testing.assert_close(tuned.model(x), tuned.model(x))
        tuned.model.eval()
        torch.testing.assert_close(tuned.model(x), tuned.model(x))
