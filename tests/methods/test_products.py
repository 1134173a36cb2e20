"""Functions with gradients in closed form: against plain autograd of their formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from peftbench.methods import METHODS, apply, discover, surgery
from peftbench.methods.layers.frozen_conv import keep_no_inputs
from peftbench.methods.layers.products import Input, add_factorised, add_low_rank
from peftbench.methods.layers.scale_shift import ScaleShift
from peftbench.methods.readings import NotedActivation

discover()

ROWS = ((0, 4), (8, 12))  # the first and the last block of 12 outputs
R, D = 3, 4
Formula = Callable[..., Tensor]


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return add_low_rank(y * 1, Input(x), a, [b, c], ROWS)


def low_rank_plain(y: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    q, v = x @ a[:R].T @ b.T, x @ a[R:].T @ c.T
    return y + torch.cat((q, torch.zeros_like(q), v), -1)


def low_rank_of_source(y: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return add_low_rank(y * 1, Input(F.gelu(x), x.detach(), nn.GELU()), a, [b, c], ROWS)


def low_rank_of_source_plain(y: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return low_rank_plain(y, F.gelu(x), a, b, c)


DROPPED = _random(2, 5, 3 * R, seed=9) > -0.7


def by_rows(y: Tensor, x: Tensor, u: Tensor, m: Tensor, v: Tensor) -> Tensor:
    return add_factorised(y * 1, Input(x), (u, m, v), DROPPED)


def by_rows_plain(y: Tensor, x: Tensor, u: Tensor, m: Tensor, v: Tensor) -> Tensor:
    mixed = (x @ u.T @ m.T) * DROPPED
    return y + torch.cat([mixed[..., i * R : (i + 1) * R] @ v.T for i in range(3)], -1)


def by_columns(y: Tensor, x: Tensor, u: Tensor, m: Tensor, v: Tensor) -> Tensor:
    return add_factorised(y * 1, Input(F.gelu(x), x.detach(), nn.GELU()), (u, m, v), None)


def by_columns_plain(y: Tensor, x: Tensor, u: Tensor, m: Tensor, v: Tensor) -> Tensor:
    x = F.gelu(x)
    hidden = torch.cat([x[..., i * D : (i + 1) * D] @ u.T for i in range(3)], -1)
    return y + hidden @ m.T @ v.T


def _pair(channels_last: bool, output_is_kept: bool) -> Formula:
    pair = ScaleShift(4, channels_last, 0.0, torch.Generator(), output_is_kept)

    def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional_call(pair, {"scale": scale, "shift": shift}, x)

    return scale_and_shift


scaled = _pair(channels_last=True, output_is_kept=False)
scaled_from_output = _pair(channels_last=True, output_is_kept=True)
scaled_map = _pair(channels_last=False, output_is_kept=False)


def scaled_plain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale + shift


def scaled_map_plain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


FACTORS = [(R, D), (3 * R, R), (D, R)]
CASES: dict[str, tuple[Formula, Formula, list[tuple[int, ...]]]] = {
    "low_rank": (low_rank, low_rank_plain, [(2, 5, 12), (2, 5, 6), (2 * R, 6), (4, R), (4, R)]),
    "low_rank_of_source": (
        low_rank_of_source,
        low_rank_of_source_plain,
        [(2, 5, 12), (2, 5, 6), (2 * R, 6), (4, R), (4, R)],
    ),
    "by_rows": (by_rows, by_rows_plain, [(2, 5, 3 * D), (2, 5, D), *FACTORS]),
    "by_columns": (
        by_columns,
        by_columns_plain,
        [(2, 5, D), (2, 5, 3 * D), (R, D), (R, 3 * R), (D, R)],
    ),
    "scaled": (scaled, scaled_plain, [(2, 5, 4), (4,), (4,)]),
    "scaled_from_output": (scaled_from_output, scaled_plain, [(2, 5, 4), (4,), (4,)]),
    "scaled_map": (scaled_map, scaled_map_plain, [(2, 4, 3, 5), (4,), (4,)]),
}


def _inputs(name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    tensors = [_random(*s, seed=i, dtype=dtype) for i, s in enumerate(CASES[name][2])]
    if name.startswith("scaled"):  # no scale near zero
        tensors[1] = tensors[1].sign() * (0.5 + tensors[1].abs())
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("name", CASES)
def test_a_function_and_its_gradients_are_those_of_its_formula(name: str) -> None:
    function, formula, _ = CASES[name]
    inputs = _inputs(name)
    actual, expected = function(*inputs), formula(*inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    dy = _random(*actual.shape, seed=20)
    gradients = torch.autograd.grad(actual, inputs, dy)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, inputs, dy), rtol=0, atol=1e-12
    )
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_an_input_that_needs_no_gradient_gets_none(name: str) -> None:
    function, formula, _ = CASES[name]
    inputs = _inputs(name)
    frozen = 0 if name.startswith("scaled") else 1
    inputs[frozen].requires_grad_(False)
    training = [tensor for tensor in inputs if tensor.requires_grad]
    actual = torch.autograd.grad(function(*inputs).square().sum(), training)
    expected = torch.autograd.grad(formula(*inputs).square().sum(), training)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_under_autocast_gradients_are_right_to_the_rounding_of_bfloat16(name: str) -> None:
    """0.06 of the largest gradient: some ten roundings of 2^-9 each, added up."""
    function, formula, _ = CASES[name]
    inputs = _inputs(name, torch.float32)
    rounded = [t.detach().bfloat16().requires_grad_() if i < 2 else t for i, t in enumerate(inputs)]
    if name.startswith("scaled"):
        rounded[1] = inputs[1]
    with torch.autocast("cpu", torch.bfloat16):
        actual = function(*rounded)
    expected = formula(*inputs)
    dy = _random(*actual.shape, seed=20, dtype=torch.float32)
    gradients = torch.autograd.grad(actual, rounded, dy.to(actual.dtype))
    for gradient, other in zip(gradients, torch.autograd.grad(expected, inputs, dy), strict=True):
        bound = 0.06 * other.abs().max().item()
        torch.testing.assert_close(gradient.float(), other, rtol=0, atol=bound)
    assert [g.dtype for g in gradients] == [t.dtype for t in rounded]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("scaled")])
def test_a_scaled_output_has_the_type_of_the_operation_and_one_rounding(name: str) -> None:
    function, formula, _ = CASES[name]
    x, scale, shift = _inputs(name, torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    actual, exact = function(x, scale, shift), formula(x.float(), scale, shift)
    assert actual.dtype is torch.bfloat16
    half_a_unit = 2.0**-8 * (1 + 1e-4)  # and what rounding in float32 adds
    torch.testing.assert_close(actual.float(), exact, rtol=half_a_unit, atol=1e-6)
    dy = _random(*actual.shape, seed=20, dtype=torch.bfloat16)
    gradients = torch.autograd.grad(actual, (x, scale, shift), dy)
    expected = torch.autograd.grad(exact, (x, scale, shift), dy.float())
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    # sums over channels are in float32; from the output, each term has one rounding more
    bound = 0.05 if name == "scaled_from_output" else 1e-5
    torch.testing.assert_close(gradients[0].float(), expected[0].float(), rtol=half_a_unit, atol=0)
    torch.testing.assert_close(gradients[1], expected[1], rtol=0, atol=bound)
    torch.testing.assert_close(gradients[2], expected[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared input", "an input each"])
@pytest.mark.parametrize("name", CASES)
def test_vmap_gives_each_trial_its_value_and_its_gradients(name: str, shared: bool) -> None:
    function, formula, _ = CASES[name]
    first, second = _inputs(name), [t * 1.5 for t in _inputs(name)]
    num_activations = 1 if name.startswith("scaled") else 2
    if shared:
        second[:num_activations] = first[:num_activations]
    axes = [None if shared and i < num_activations else 0 for i in range(len(first))]
    stacked = [
        a.detach() if axis is None else torch.stack((a, b)).detach()
        for a, b, axis in zip(first, second, axes, strict=True)
    ]
    everything = tuple(range(len(first)))

    def loss(*tensors: Tensor) -> Tensor:
        return function(*tensors).square().sum()

    with torch.no_grad():
        outputs = torch.vmap(function, tuple(axes))(*stacked)
    gradients = torch.vmap(torch.func.grad(loss, everything), tuple(axes))(*stacked)
    for i, trial in enumerate((first, second)):
        trial = [t.detach().requires_grad_() for t in trial]
        value = formula(*trial)
        torch.testing.assert_close(outputs[i], value.detach(), rtol=0, atol=1e-12)
        expected = torch.autograd.grad(value.square().sum(), trial)
        torch.testing.assert_close([g[i] for g in gradients], list(expected), rtol=0, atol=1e-10)


def test_the_output_of_the_layer_takes_the_sum_in_place() -> None:
    x, a, b, c = (t.detach() for t in _inputs("low_rank")[1:])
    layer = nn.Linear(6, 12).double()
    fresh_output = layer(x)
    summed = add_low_rank(fresh_output, Input(x), a, [b, c], ROWS)
    assert summed.data_ptr() == fresh_output.data_ptr()
    torch.testing.assert_close(summed, low_rank_plain(layer(x), x, a, b, c), rtol=0, atol=1e-13)


@pytest.mark.parametrize("near_zero", [0.0, 1e-12, 2.0**-8])
def test_a_scale_near_zero_gets_its_whole_gradient(near_zero: float) -> None:
    """The output says nothing of the input there, so the input must have been kept."""
    x, scale, shift = _inputs("scaled")
    with torch.no_grad():
        scale[2] = near_zero
    dy = _random(2, 5, 4, seed=20)
    (actual,) = torch.autograd.grad(scaled_from_output(x, scale, shift), (scale,), dy)
    torch.testing.assert_close(actual, (dy * x).sum((0, 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_frozen_convolution_keeps_only_its_weight_and_has_the_same_gradient(
    groups: int, bias: bool
) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias).double()
    conv.requires_grad_(False)
    x = _random(2, 4, 7, 9, seed=0).requires_grad_()
    dy = _random(2, 6, 4, 5, seed=1)
    expected = conv(x)
    (gradient,) = torch.autograd.grad(expected, x, dy)
    keep_no_inputs(nn.Sequential(conv))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        actual = conv(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    assert [t.data_ptr() for t in kept] == [conv.weight.data_ptr()]
    (actual_gradient,) = torch.autograd.grad(actual, x, dy)
    torch.testing.assert_close(actual_gradient, gradient, rtol=0, atol=1e-13)
    conv.weight.requires_grad_(True)  # now the input is kept
    (of_weight,) = torch.autograd.grad(conv(x), conv.weight, dy)
    by_torch = torch.nn.grad.conv2d_weight(x, conv.weight.shape, dy, 2, 1, 1, groups)
    torch.testing.assert_close(of_weight, by_torch.detach(), rtol=0, atol=1e-12)


def test_vmap_gives_the_gradient_through_a_frozen_convolution() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1).double().requires_grad_(False)
    x = _random(3, 2, 4, 5, 5, seed=0)

    def gradients() -> Tensor:
        return torch.vmap(torch.func.grad(lambda x: conv(x).square().sum()))(x)

    expected = gradients()
    keep_no_inputs(nn.Sequential(conv))
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=1e-11)


# ------------------------------------------------------------------- activations


def _with_fact(**options: object) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["fact_tt"](rank=2, **options)
    tuned = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator)
    fill(tuned.trainable, seed=3)
    tuned.model.double()
    tuned.train()
    return tuned.model


def _sources(model: nn.Module, x: Tensor) -> list[bool]:
    """Whether each layer behind an activation knew the activation's input, in order."""
    known = []
    for module in model.modules():
        if isinstance(module, NotedActivation):
            source_of = module.reading.source_of

            def noted(y: Tensor, source_of: Callable = source_of) -> Tensor | None:
                source = source_of(y)
                known.append(source is not None)
                return source

            module.reading.source_of = noted  # type: ignore[method-assign]
    model(x)
    return known


def test_a_layer_behind_an_activation_knows_its_input_unless_something_stands_between() -> None:
    x = images("vit", 2, dtype=torch.float64)
    model = _with_fact(dropout=0.0)
    assert _sources(model, x) == [True, True]
    between = _with_fact(dropout=0.0)
    between.blocks[1].mlp.drop1.train()  # as frozen_mode=train does
    assert _sources(between, x) == [True, False]


def test_merging_leaves_the_activations_of_the_backbone() -> None:
    model = _with_fact()
    assert any(isinstance(m, NotedActivation) for m in model.modules())
    surgery.bake_deltas(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh("vit").modules()]


def test_gradients_are_the_same_without_the_inputs_of_activations() -> None:
    x = images("vit", 2, dtype=torch.float64)
    gradients = []
    for known in (True, False):
        model = _with_fact(dropout=0.0)
        if not known:
            for module in model.modules():
                if isinstance(module, surgery.Delta):
                    module.reading = None
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 16  # U, V, six cores in each of two blocks, and the head
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-11)


def test_a_copy_reads_its_own_activations_and_holds_no_tensor_of_a_pass() -> None:
    x = images("vit", 2, dtype=torch.float64)
    model = _with_fact(dropout=0.0)
    noted = [m for m in model.modules() if isinstance(m, NotedActivation)]
    noted[0](x.clone().requires_grad_())  # a pass that broke off behind the activation
    copied = copy.deepcopy(model)
    readings = [m.reading for m in copied.modules() if isinstance(m, NotedActivation)]
    used = [m.reading for m in copied.modules() if getattr(m, "reading", None) is not None]
    assert len(used) == 4 and {id(r) for r in used} == {id(r) for r in readings}
    assert not {id(r) for r in readings} & {id(m.reading) for m in noted}
    torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk", "lora", "ssf", "adapter_plus"])
def test_a_checkpointed_block_has_the_same_gradients(name: str) -> None:
    gradients = []
    for wrapped in (False, True):
        generator = torch.Generator().manual_seed(0)
        tuned = apply(METHODS[name](), fresh("vit"), anatomy_of("vit"), 7, generator)
        fill(tuned.trainable, seed=3)
        tuned.model.double().eval()
        tuned.model.set_grad_checkpointing(wrapped)
        x = images("vit", 2, dtype=torch.float64)
        outputs = checkpoint(tuned.model, x, use_reentrant=False) if wrapped else tuned.model(x)
        outputs.square().sum().backward()
        gradients.append([p.grad for p in tuned.model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["fact_tt", "lora", "ssf", "adapter_plus", "repadapter"])
def test_inference_mode_computes_the_same(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[name](), fresh("vit"), anatomy_of("vit"), 7, generator)
    fill(tuned.trainable, seed=3)
    tuned.model.double().eval()
    x = images("vit", 2, dtype=torch.float64)
    expected = tuned.model(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(tuned.model(x), expected, rtol=0, atol=1e-12)
