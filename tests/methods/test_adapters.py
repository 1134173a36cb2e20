"""Bottleneck adapters: what each position computes, what they start from, what they leave behind.

Expected values are written out by hand on the modules of an untouched copy of the backbone.
"""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import noise, start, tensors_at
from torch import Tensor, nn

from peftbench.errors import ConfigError, UnknownName, Unsupported
from peftbench.methods import METHODS, Tuned, apply

Change = Callable[[Tensor], Tensor]


def _apply(backbone: str, method: str = "adapter", **options: object) -> Tuned:
    """In float64 and eval mode, all that trains far from zero."""
    tuned = start(method, backbone, **options)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    return tuned


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _adapter(
    x: Tensor, t: dict[str, Tensor], scale: float = 1.0, activation: Change = _gelu
) -> Tensor:
    """On the last axis, without a residual."""
    if "norm.weight" in t:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6) * t["norm.weight"] + t["norm.bias"]
    hidden = activation(x @ t["down.weight"].T + t["down.bias"])
    return (hidden @ t["up.weight"].T + t["up.bias"]) * t.get("scale", scale)


def _channels_first(x: Tensor, change: Change) -> Tensor:
    return change(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.no_grad()
def _assert_computes(tuned: Tuned, path: str, x: Tensor, expected: Tensor) -> None:
    actual = tuned.model.get_submodule(path)(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------- positions

# where the adapters of the second block of a ViT stand
PLACES = {
    "sequential": ("blocks.1.mlp.fc2",),
    "houlsby": ("blocks.1.attn.proj", "blocks.1.mlp.fc2"),
    "parallel": ("blocks.1.block.norm2",),
    "parallel_norm": ("blocks.1.block.norm2",),
    "pre": ("blocks.1.block.norm2",),
    "post": ("blocks.1",),
    "pfeiffer": ("blocks.1",),
}


def _by_hand(position: str, block: nn.Module, x: Tensor, adapters: list[Change]) -> Tensor:
    """One pre-norm block, its layer scales in front of the residuals."""
    a = adapters[-1]
    attended = block.attn(block.norm1(x))
    if position == "houlsby":
        attended = attended + adapters[0](attended)
    y = x + block.ls1(attended)
    if position == "pre":
        y = y + a(y)
    read = block.norm2(y)
    u = block.mlp(read)
    if position in ("sequential", "houlsby"):
        return y + block.ls2(u + a(u))
    z = y + block.ls2(u)
    seen = {"parallel": y, "parallel_norm": read, "post": z, "pfeiffer": z}
    return z + a(seen[position]) if position in seen else z


@pytest.mark.parametrize("backbone", ["vit", "vit_registers"])  # the second has layer scale
@pytest.mark.parametrize("position", PLACES)
def test_each_position_is_its_formula(position: str, backbone: str) -> None:
    tuned = _apply(backbone, position=position, bottleneck=5, scale=0.7)
    adapters = [partial(_adapter, t=tensors_at(tuned, p), scale=0.7) for p in PLACES[position]]
    block, x = fresh(backbone).double().blocks[1], noise(2, 9, 24)
    with torch.no_grad():
        expected = _by_hand(position, block, x, adapters)
    _assert_computes(tuned, "blocks.1", x, expected)


@pytest.mark.parametrize("position", ["parallel", "parallel_norm", "pre"])
def test_on_swin_the_adapter_sees_the_map_of_a_shifted_block(position: str) -> None:
    """Swin flattens the map in front of its MLP only."""
    tuned = _apply("swin", position=position)
    a = partial(_adapter, t=tensors_at(tuned, "layers.0.blocks.1.block.norm2"))
    block, x = fresh("swin").double().layers[0].blocks[1], noise(2, 8, 8, 12)
    with torch.no_grad():
        y = x + block._attn(block.norm1(x))
        if position == "pre":
            y = y + a(y)
        expected = y + block.mlp(block.norm2(y))
        if position != "pre":
            expected = expected + a(y if position == "parallel" else block.norm2(y))
    assert any(block.shift_size)
    _assert_computes(tuned, "layers.0.blocks.1", x, expected)


@pytest.mark.parametrize("backbone", ["convnext", "convnext_conv"])
@pytest.mark.parametrize("position", ["parallel", "pre"])
def test_on_convnext_the_adapter_stands_beside_or_in_front_of_the_whole_block(
    position: str, backbone: str
) -> None:
    tuned = _apply(backbone, position=position)
    t = tensors_at(tuned, "stages.2.blocks.1.block.conv_dw")
    block, x = fresh(backbone).double().stages[2].blocks[1], noise(2, 16, 4, 4)
    with torch.no_grad():
        change = _channels_first(x, partial(_adapter, t=t))
        expected = block(x) + change if position == "parallel" else block(x + change)
    _assert_computes(tuned, "stages.2.blocks.1", x, expected)


@pytest.mark.parametrize(
    ("backbone", "position", "place", "x"),
    [
        ("convnext", "sequential", "stages.2.blocks.1.mlp.fc2", noise(2, 4, 4, 64)),  # a linear
        ("convnext_conv", "sequential", "stages.2.blocks.1.mlp.fc2", noise(2, 64, 4, 4)),
        ("convnext", "post", "stages.2.blocks.1", noise(2, 16, 4, 4)),
        ("resnet_bottleneck", "pfeiffer", "layer3.0", noise(2, 24, 4, 4)),
        ("efficientnet", "post", "blocks.2.1", noise(2, 16, 4, 4)),
        ("swin", "post", "layers.1.blocks.0", noise(2, 4, 4, 24)),
        ("mixer", "post", "blocks.1", noise(2, 16, 16)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_acts_on_channels_in_either_layout(
    backbone: str, position: str, place: str, x: Tensor
) -> None:
    tuned = _apply(backbone, position=position)
    change = partial(_adapter, t=tensors_at(tuned, place))
    last = backbone in ("swin", "mixer") or (backbone, position) == ("convnext", "sequential")
    with torch.no_grad():
        z = fresh(backbone).double().get_submodule(place)(x)
        expected = z + (change(z) if last else _channels_first(z, change))
    _assert_computes(tuned, place, x, expected)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("gelu", _gelu),
        ("relu", lambda x: x.clamp(min=0)),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
    ],
)
def test_each_activation_is_its_formula(name: str, activation: Change) -> None:
    tuned = _apply("vit", position="post", activation=name)
    block, x = fresh("vit").double().blocks[0], noise(2, 17, 24)
    with torch.no_grad():
        z = block(x)
        expected = z + _adapter(z, tensors_at(tuned, "blocks.0"), activation=activation)
    _assert_computes(tuned, "blocks.0", x, expected)


@pytest.mark.parametrize(("learned", "shape"), [("scalar", ()), ("channel", (24,))])
def test_a_learned_scale_multiplies_the_change(learned: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["adapter"](position="post", learned_scale=learned, scale=0.3)
    started = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator).method_params
    assert torch.equal(started["blocks.0.adapter.scale"].detach(), torch.full(shape, 0.3))
    tuned = _apply("vit", position="post", learned_scale=learned, scale=0.3)
    assert tuned.method_params["blocks.0.adapter.scale"].shape == shape
    block, x = fresh("vit").double().blocks[0], noise(2, 17, 24)
    with torch.no_grad():
        z = block(x)
        expected = z + _adapter(z, tensors_at(tuned, "blocks.0"))
    _assert_computes(tuned, "blocks.0", x, expected)


def test_dropout_acts_on_the_bottleneck_and_only_while_training() -> None:
    tuned = _apply("vit", position="post", dropout=0.5)
    block, x = fresh("vit").double().blocks[1], noise(2, 17, 24)
    t = tensors_at(tuned, "blocks.1")
    tuned.train()
    for training in (True, False):
        torch.manual_seed(0)
        with torch.no_grad():
            z = block(x)  # the frozen drop-path is off
            drop = partial(F.dropout, p=0.5, training=training)
            expected = z + _adapter(z, t, activation=lambda h, drop=drop: drop(_gelu(h)))
        torch.manual_seed(0)
        _assert_computes(tuned, "blocks.1", x, expected)
        tuned.model.eval()


# ------------------------------------------------------------------- presets


def test_adapter_plus_starts_with_a_scale_of_one_for_each_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["adapter_plus"]()
    tuned = apply(method, fresh("swin"), anatomy_of("swin"), 7, generator)
    scales = {n: p.detach() for n, p in tuned.method_params.items() if n.endswith("scale")}
    widths = {"layers.0.blocks.0": 12, "layers.0.blocks.1": 12, "layers.1.blocks.0": 24}
    assert scales.keys() == {f"{path}.adapter.scale" for path in widths}
    for path, width in widths.items():
        assert torch.equal(scales[f"{path}.adapter.scale"], torch.ones(width))


def test_the_drop_path_of_adapter_plus_drops_whole_changes_and_only_while_training() -> None:
    tuned = _apply("vit", "adapter_plus", drop_path=0.5)
    x = noise(32, 5, 24)
    block = tuned.model.blocks[1]
    with torch.no_grad():
        z = fresh("vit").double().blocks[1](x)
        change = _adapter(z, tensors_at(tuned, "blocks.1"))
        torch.testing.assert_close(block(x), z + change, rtol=0, atol=1e-12)
        torch.manual_seed(0)
        tuned.train()
        dropped = block(x) - z
    kept = (dropped.abs().amax((1, 2)) > 1e-9).double()[:, None, None]
    assert 8 < kept.sum() < 24  # of 32, each with probability 1/2: outside once in 500
    torch.testing.assert_close(dropped, 2 * kept * change, rtol=0, atol=1e-12)


def test_the_adapter_of_vpt_is_dead_but_for_its_last_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["adapter_vpt"](reduction=4)
    tuned = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator)
    assert all(not p.any() for p in tuned.method_params.values())
    optimizer = torch.optim.AdamW(tuned.trainable.values(), lr=1e-2, weight_decay=1e-2)
    tuned.train()
    x, labels = images("vit", 4), torch.arange(4)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(tuned.model(x), labels).backward()
        optimizer.step()
    moved = {name for name, p in tuned.method_params.items() if p.any()}
    assert moved == {f"blocks.{i}.mlp.fc2.adapter.up.bias" for i in range(2)}


def test_the_released_head_of_adaptformer_normalises_without_an_affine() -> None:
    width, classes = 768, 100
    head = METHODS["adaptformer"](variant="released").head(
        width, classes, torch.Generator().manual_seed(0)
    )
    weight, bias = (p.detach() for p in head.parameters())
    assert weight.shape == (classes, width)
    # 76,800 draws give the deviation to a quarter of a percent
    assert weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert weight.mean().abs() < 2e-4
    assert not bias.any()
    x = 3 * noise(8, width) + 1
    fill({"weight": weight, "bias": bias}, seed=1)
    head.double()
    weight, bias = (p.detach() for p in head.parameters())
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    expected = (x - mean) / torch.sqrt(variance + 1e-6) @ weight.T + bias
    torch.testing.assert_close(head.train()(x).detach(), expected, rtol=0, atol=1e-12)
    # running statistics started at 0 and 1 and have moved by a tenth
    mean, variance = 0.1 * mean, 0.9 + 0.1 * x.var(0)
    expected = (x - mean) / torch.sqrt(variance + 1e-6) @ weight.T + bias
    torch.testing.assert_close(head.eval()(x).detach(), expected, rtol=0, atol=1e-12)


def test_train_norms_trains_the_affine_of_every_norm_of_the_backbone() -> None:
    tuned = _apply("vit_registers", position="houlsby", train_norms=True)
    in_blocks = ("norm1", "attn.q_norm", "attn.k_norm", "norm2")
    norms = {"norm_pre", "norm"} | {f"blocks.{i}.{n}" for i in range(2) for n in in_blocks}
    assert tuned.unfrozen_params.keys() == {f"{n}.{p}" for n in norms for p in ("weight", "bias")}
    assert norms < set(tuned.touched)
    assert not _apply("vit_registers", position="houlsby").unfrozen_params


# ------------------------------------------------------------------- initial values

CUT = 0.87963  # deviation of a standard normal cut at two deviations


@pytest.mark.parametrize(
    ("init", "largest", "deviation"),
    [
        ("lora", 1 / math.sqrt(24), 1 / math.sqrt(3 * 24)),
        ("houlsby", 0.02, 0.01 * CUT),
        ("noah", 0.04, 0.02 * CUT),
    ],
)
def test_matrices_start_with_the_bound_and_the_deviation_of_their_init(
    init: str, largest: float, deviation: float
) -> None:
    """3,072 draws come within a percent of the bound and within five of the deviation."""
    generator = torch.Generator().manual_seed(0)
    method = METHODS["adapter"](bottleneck=64, init=init)
    params = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator).method_params
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in params.items():
        groups.setdefault(".".join(name.split(".")[-2:]), []).append(parameter.detach().flatten())
    drawn = {name: torch.cat(parts) for name, parts in groups.items()}
    assert not drawn["down.bias"].any() and not drawn["up.bias"].any()
    if init == "lora":
        assert not drawn.pop("up.weight").any()
    for name in drawn.keys() & {"down.weight", "up.weight"}:
        assert drawn[name].numel() == 2 * 64 * 24
        assert 0.99 * largest < drawn[name].abs().max() <= largest
        assert drawn[name].std().item() == pytest.approx(deviation, rel=0.05)
        assert drawn[name].mean().abs() < 0.05 * deviation + 1e-9


def test_the_init_of_bert_is_normal_and_not_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["adapter"](bottleneck=64, init="bert")
    params = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator).method_params
    drawn = torch.cat([p.detach().flatten() for n, p in params.items() if n.endswith("weight")])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.03)
    # 4.55 percent lie beyond two deviations; 6,144 draws give that to 0.27 percent
    assert (drawn.abs() > 0.04).double().mean().item() == pytest.approx(0.0455, abs=0.01)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("adapter", {"position": "before"}, "position of method=adapter: 'before'"),
        ("adapter", {"activation": "tanh"}, "activation of method=adapter: 'tanh'"),
        ("adapter", {"init": "xavier"}, "init of method=adapter: 'xavier'"),
        ("adapter", {"learned_scale": "token"}, "learned_scale of method=adapter: 'token'"),
        ("adapter_plus", {"init": "xavier"}, "init of method=adapter_plus: 'xavier'"),
        ("adaptformer", {"variant": "official"}, "variant of method=adaptformer: 'official'"),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(
    method: str, options: dict, found: str
) -> None:
    with pytest.raises(UnknownName, match=f"^Unknown {found}.* Known: "):
        METHODS[method](**options)


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("adapter", {"bottleneck": 0}, "bottleneck=0"),
        ("adapter", {"dropout": 1.0}, "dropout=1.0"),
        ("adapter", {"init": "zero"}, "init=zero"),
        ("adapter_plus", {"init": "zero"}, "init=zero"),  # as dead as that of VPT
        ("adapter_plus", {"bottleneck": 0}, "bottleneck=0"),
        ("adapter_plus", {"drop_path": 1.0}, "drop_path=1.0"),
        ("adaptformer", {"bottleneck": -1}, "bottleneck=-1"),
        ("adaptformer", {"dropout": -0.1}, "dropout=-0.1"),
        ("adapter_vpt", {"reduction": 0}, "reduction=0"),
    ],
)
def test_senseless_values_are_refused_by_name(method: str, options: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=f"^method={method}: {found}"):
        METHODS[method](**options)


def test_a_reduction_larger_than_the_width_is_refused() -> None:
    """Swin's first stage has 12 channels and its second 24."""
    METHODS["adapter_vpt"](reduction=12).check(anatomy_of("swin"))
    with pytest.raises(Unsupported, match=r"reduction=13 .* 12 channels of this swin backbone"):
        METHODS["adapter_vpt"](reduction=13).check(anatomy_of("swin"))


# ------------------------------------------------------------------- between the branches

CARRYING = pytest.mark.parametrize(
    ("backbone", "method", "options"),
    [
        ("vit", "adapter", {"position": "pre"}),
        ("convnext", "adapter", {"position": "parallel"}),
        ("swin", "adaptformer", {}),
        ("swin", "convpass", {}),  # at both entries of each block
    ],
)


def _changes_of(tuned: Tuned) -> list[weakref.ref[Tensor]]:
    """Fills with what the adapters compute from now on, without keeping it alive."""
    made: list[weakref.ref[Tensor]] = []
    for adapter in tuned.train_modules[:-1]:  # the last one is the head
        adapter.register_forward_hook(lambda _, args, out: made.append(weakref.ref(out)))
    return made


@CARRYING
@pytest.mark.parametrize("gradients", [True, False])
def test_a_model_can_be_copied_after_a_pass_and_keeps_no_tensor_of_it(
    backbone: str, method: str, options: dict, gradients: bool
) -> None:
    tuned = _apply(backbone, method, **options)
    made = _changes_of(tuned)
    x = images(backbone, 2, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        out = tuned.model(x)
    twin = copy.deepcopy(tuned.model)  # fails on a tensor with a history
    assert len(made) == len(tuned.train_modules) - 1
    torch.testing.assert_close(twin(x), out, rtol=0, atol=1e-12)
    del out
    gc.collect()
    assert not [change for change in made if change() is not None]


@CARRYING
def test_an_exception_inside_a_block_leaves_no_change_behind(
    backbone: str, method: str, options: dict
) -> None:
    tuned = _apply(backbone, method, **options)
    x = images(backbone, 2, dtype=torch.float64)
    before = tuned.model(x).detach()
    made = _changes_of(tuned)

    def fail(module: nn.Module, args: object) -> None:
        raise KeyboardInterrupt

    # the MLP of the last block: all its adapters have run by then
    *_, last = (m for n, m in tuned.model.named_modules() if n.endswith(".mlp.fc2"))
    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tuned.model(x)
    handle.remove()
    gc.collect()
    assert len(made) == len(tuned.train_modules) - 1
    assert not [change for change in made if change() is not None]
    twin = copy.deepcopy(tuned.model)
    torch.testing.assert_close(twin(x).detach(), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["vit", "swin"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adapter", {"position": "pre", "dropout": 0.2}),
        ("adapter_plus", {"drop_path": 0.5}),
        ("adaptformer", {}),
        ("convpass", {}),
    ],
)
def test_gradient_checkpointing_gives_the_same_gradients(
    backbone: str, method: str, options: dict
) -> None:
    """Each block is computed once more on the way back, up to the last tensor needed there."""
    x = images(backbone, 3, dtype=torch.float64)
    passes: list[int] = []
    gradients = []
    for enabled in (False, True):
        tuned = _apply(backbone, method, **options)
        tuned.model.set_grad_checkpointing(enabled)
        tuned.train()
        passes.append(0)

        def count(module: nn.Module, args: object) -> None:
            passes[-1] += 1

        for adapter in tuned.train_modules[:-1]:
            adapter.register_forward_pre_hook(count)
        torch.manual_seed(0)  # dropout and drop-path are the same in both
        F.cross_entropy(tuned.model(x), torch.arange(3)).backward()
        gradients.append({n: p.grad for n, p in tuned.trainable.items()})
    assert passes[1] == 2 * passes[0]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)
