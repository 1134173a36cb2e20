"""Methods that change weights by closed forms: values worked out by hand or built anew in numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import start
from torch import nn

from peftbench.errors import ConfigError, NotMergeable, UnknownName, Unsupported
from peftbench.methods import METHODS, Tuned
from peftbench.methods.layers.kernelised import KernelChange
from peftbench.methods.layers.kronecker import KroneckerChange
from peftbench.methods.layers.kronecker_sums import SharedRules
from peftbench.methods.layers.linear_adapter import ComposedAdapter
from peftbench.methods.layers.paths import FULL, SupportPath
from peftbench.methods.layers.polyadic import CanonicalChange
from peftbench.methods.layers.rank_one import RankOneScale
from peftbench.methods.layers.shared import SharedTensor
from peftbench.methods.layers.supports import SupportChange
from peftbench.methods.layers.vectors import RandomProjections, VectorChange

NOTHING = torch.Generator()


def moved(method: str, backbone: str = "vit", **options: object) -> Tuned:
    """In float64 and eval mode, its tensors far from zero."""
    tuned = start(method, backbone, **options)
    fill(tuned.method_params, seed=2)
    tuned.model.double().eval()
    return tuned


def array(tuned: Tuned, name: str) -> np.ndarray:
    return tuned.model.get_parameter(name).detach().numpy()


def change_of(tuned: Tuned, name: str, backbone: str = "vit") -> np.ndarray:
    """What merging adds to one tensor of the backbone."""
    merged = tuned.method.merge(copy.deepcopy(tuned.model))
    bare = fresh(backbone).double()
    return (merged.get_parameter(name) - bare.get_parameter(name)).detach().numpy()


# ------------------------------------------------------------------------------ krona


def test_krona_multiplies_by_the_kronecker_product() -> None:
    """A = [1 2], B = [3; 4]: A kron B = [3 6; 4 8], of which 10 times the product with (1, 1)."""
    change = KroneckerChange({"q": (1, 3)}, 4, {"q": ((1, 2), (2, 1))}, 10.0, NOTHING)
    with torch.no_grad():
        change.a["q"].copy_(torch.tensor([[1.0, 2.0]]))
        change.b["q"].copy_(torch.tensor([[3.0], [4.0]]))
    layer = nn.Linear(2, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert change.changed_weight(layer.weight).tolist() == [[0, 0], [30, 60], [40, 80], [0, 0]]
    assert change.output(layer, torch.tensor([1.0, 1.0])).tolist() == [0, 90, 120, 0]


@pytest.mark.parametrize("shape", [(4, 3), (24, 24), (1, 8)])
def test_krona_adds_the_product_to_the_rows_of_its_targets(shape: tuple[int, int]) -> None:
    """24 x 24 of a query in blocks of B, each scaled by one entry of A."""
    rows, columns = shape
    tuned = moved("krona", targets=("q", "fc2"), a_rows=rows, a_columns=columns, scale=0.5)
    place = "blocks.1.attn.qkv.delta"
    a, b = array(tuned, f"{place}.a.q"), array(tuned, f"{place}.b.q")
    assert a.shape == shape and b.shape == (24 // rows, 24 // columns)
    expected = np.zeros((72, 24))
    for i in range(24):
        for j in range(24):
            of_a = a[i // b.shape[0], j // b.shape[1]]
            expected[i, j] = 0.5 * of_a * b[i % b.shape[0], j % b.shape[1]]
    found = change_of(tuned, "blocks.1.attn.qkv.weight")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_krona_refuses_factors_that_do_not_divide() -> None:
    with pytest.raises(Unsupported, match=r"a_rows=5 cannot divide the 24 of 'blocks.0.attn.qkv'"):
        METHODS["krona"](a_rows=5).check(anatomy_of("vit"))
    with pytest.raises(ConfigError, match="a_columns=-1 is negative"):
        METHODS["krona"](a_columns=-1)


# ------------------------------------------------------------------------------- vera


def test_vera_scales_what_random_matrices_make_by_two_vectors() -> None:
    """A = [1 2], B = [3; 4] of wider ones, d = 10, b = (1, 2): b * (B (d A)) = [30 60; 80 160]."""
    shared = RandomProjections(1, (3, 4), seed=0)
    shared.a.copy_(torch.tensor([[1.0, 2.0, 9.0, 9.0]]))
    shared.b.copy_(torch.tensor([[3.0], [4.0], [9.0]]))
    change = VectorChange({"q": (1, 3)}, (4, 2), shared, d_initial=10.0, dropout=0.0)
    with torch.no_grad():
        change.b["q"].copy_(torch.tensor([1.0, 2.0]))
    layer = nn.Linear(2, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert change.changed_weight(layer.weight).tolist() == [[0, 0], [30, 60], [80, 160], [0, 0]]
    assert change.output(layer, torch.tensor([1.0, 1.0])).tolist() == [0, 90, 240, 0]


def test_vera_shares_its_matrices_and_stores_none_of_them() -> None:
    tuned = start("vera", "vit", rank=5, targets=("q", "fc2"))
    shared = {id(m.projections) for m in tuned.model.modules() if isinstance(m, VectorChange)}
    assert len(shared) == 1 and not tuned.fixed and not tuned.changing_buffers
    again = start("vera", "vit", rank=5, targets=("q", "fc2"), seed=1)
    other = start("vera", "vit", rank=5, targets=("q", "fc2"), projection_seed=1)
    names = ("blocks.1.mlp.fc2.delta.projections.a", "blocks.1.mlp.fc2.delta.projections.b")
    for name, shape in zip(names, ((5, 96), (24, 5)), strict=True):
        own = tuned.model.get_buffer(name)
        assert own.shape == shape
        assert torch.equal(own, again.model.get_buffer(name))
        assert not torch.equal(own, other.model.get_buffer(name))


def test_vera_draws_its_matrices_kaiming_uniform() -> None:
    """Within the square root of 6 over the fan-in, with a deviation of that of 2 over it."""
    shared = RandomProjections(200, (300, 400), seed=3)
    for value, fan_in in ((shared.a, 400), (shared.b, 200)):
        assert float(value.abs().max()) <= (6 / fan_in) ** 0.5
        assert float(value.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)


# -------------------------------------------------------------------------------- arc


def test_arc_reads_through_one_matrix_and_its_transpose() -> None:
    """x + ((x U) * c) U^T + b = (1, 2) + 11 * 10 * (3, 4) + (5, 6) with U = (3, 4) and c = 10."""
    adapter = ComposedAdapter(SharedTensor(torch.tensor([[3.0], [4.0]])), dropout=0.0)
    with torch.no_grad():
        adapter.rescale.copy_(torch.tensor([10.0]))
        adapter.bias.copy_(torch.tensor([5.0, 6.0]))
    assert adapter(torch.tensor([[1.0, 2.0]])).tolist() == [[336.0, 448.0]]
    matrix, constant = adapter.as_matrix()
    assert matrix.tolist() == [[90.0, 120.0], [120.0, 160.0]]
    assert constant.tolist() == [5.0, 6.0]


def test_arc_shares_its_matrix_inside_a_stage_and_a_branch() -> None:
    tuned = start("arc", "swin", rank=3)
    shared = [n for n in tuned.method_params if n.endswith("shared.value")]
    # two stages, two branches
    assert shared == [
        f"layers.{stage}.blocks.0.{layer}.adapter.shared.value"
        for stage in (0, 1)
        for layer in ("attn.qkv", "mlp.fc1")
    ]


def test_arc_starts_as_released_on_the_side_of_the_mlp_alone() -> None:
    tuned = start("arc", "vit", rank=3, start="xavier")
    of = {n: p.detach() for n, p in tuned.method_params.items() if n.endswith("rescale")}
    bound = (6 / 4) ** 0.5
    for name, values in of.items():
        assert bool(values.any()) == ("mlp" in name)
        assert values.abs().max() <= bound


def test_arc_on_the_stream_of_swin_is_not_merged() -> None:
    method = METHODS["arc"](variant="released")
    assert "stream" in method.unmergeable(anatomy_of("swin"))
    assert method.unmergeable(anatomy_of("vit")) == ""
    with pytest.raises(NotMergeable, match="arc changes the stream"):
        method.merge(start("arc", "swin", variant="released").model)
    with pytest.raises(Unsupported, match="several side by side"):
        METHODS["arc"]().check(anatomy_of("eva_split"))
    with pytest.raises(Unsupported, match="never called"):
        METHODS["arc"]().check(anatomy_of("beit"))


# ------------------------------------------------------------------------------- rlrr


def test_rlrr_scales_by_one_plus_a_product_of_vectors() -> None:
    """W = [1 2; 3 4], o = (5), i = (6, 7) on its second row: [1 2; 3 * 31 4 * 36], and b + 8."""
    change = RankOneScale({"q": (1, 2)}, (2, 2), ("q",), torch.Generator().manual_seed(0))
    with torch.no_grad():
        change.out_scale["q"].fill_(5.0)
        change.in_scale["q"].copy_(torch.tensor([6.0, 7.0]))
        change.shift["q"].fill_(8.0)
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    assert change.changed_weight(layer.weight).tolist() == [[1, 2], [93, 144]]
    shifted = change.changed_bias(layer.weight, layer.bias)
    assert shifted is not None and shifted.tolist() == [10, 28]
    # 1 + 2 + 10 and 93 + 144 + 28
    assert change.output(layer, torch.tensor([1.0, 1.0])).tolist() == [13, 265]


def test_rlrr_leaves_out_shifts_that_nothing_takes() -> None:
    def shifts(backbone: str, **options: object) -> set[str]:
        names = start("rlrr", backbone, **options).method_params
        return {n.rpartition(".delta.shift.")[2] for n in names if ".delta.shift." in n}

    assert shifts("vit") == {"q", "v", "proj", "fc1", "fc2"}
    assert shifts("vit", variant="released") == {"q", "k", "v", "proj", "fc1", "fc2"}
    assert shifts("beit") == {"proj", "fc1", "fc2"}  # whose qkv has no bias of its own
    assert shifts("vit", shift=False) == set()


# ------------------------------------------------------------------------------ glora


def test_glora_adds_each_support_where_its_path_says() -> None:
    """W = 2, b = 3 and A to E are 5, 7, 11, 13, 17: 2 + 10 + 7 and 3 + 39 + 17 + 22."""
    path = SupportPath.parse("vector/constant/lora/vector/constant", 1)
    shapes = path.shapes(1, 1, True, 1)
    assert shapes == {
        "a_down": (1, 1),
        "b_down": (1, 1),
        "c_down": (1, 1),
        "c_up": (1, 1),
        "d": (1,),
        "e": (1,),
    }
    change = SupportChange(shapes, path, 1, False, torch.Generator().manual_seed(0))
    values = {"a_down": 5.0, "b_down": 7.0, "c_down": 11.0, "c_up": 1.0, "d": 13.0, "e": 17.0}
    with torch.no_grad():
        for name, value in values.items():
            change.supports[name].fill_(value)
    weight, bias = torch.tensor([[2.0]]), torch.tensor([3.0])
    assert change.changed_weight(weight).tolist() == [[19.0]]
    moved_bias = change.changed_bias(weight, bias)
    assert moved_bias is not None and moved_bias.tolist() == [81.0]


def test_glora_with_random_paths_draws_in_training_and_keeps_to_its_path_elsewhere() -> None:
    tuned = moved("glora", random_paths=True, path="none/none/none/none/none")
    x = images("vit", 2, dtype=torch.float64)
    bare = start("linear", "vit").model.double().eval()
    with torch.no_grad():
        assert torch.allclose(tuned.model(x), bare(x), rtol=0, atol=1e-12)
        tuned.train()
        torch.manual_seed(0)
        first, second = tuned.model(x), tuned.model(x)
        torch.manual_seed(0)
        assert torch.equal(first, tuned.model(x))
    assert (first - second).abs().max() > 1e-3
    assert len(tuned.method_params) == 8 * 8  # every support of eight layers


def test_glora_draws_each_kind_as_often() -> None:
    """Of 4000 draws of D a third each, within four standard deviations of 30."""
    path = SupportPath.parse(FULL, 1)
    change = SupportChange({"d": (2,)}, path, 1, True, torch.Generator().manual_seed(0))
    with torch.no_grad():
        change.supports["d"].copy_(torch.tensor([1.0, 2.0]))
    torch.manual_seed(0)
    weight, bias = torch.zeros(2, 1), torch.ones(2)
    drawn = [change.changed_bias(weight, bias) for _ in range(4000)]
    kinds = [tuple(values.tolist()) for values in drawn if values is not None]
    # the vector (1, 2), the constant 1, nothing; each added to a bias of one
    for expected in ((2.0, 3.0), (2.0, 2.0), (1.0, 1.0)):
        assert abs(kinds.count(expected) - 4000 / 3) < 4 * 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "lora/lora"}, "2 kinds and not five"),
        ({"path": "lora/lora/constant/none/none"}, "C of .* is 'constant'"),
        ({"path": "lora_5/none/none/none/none"}, "A of .* is 'lora_5'"),
        ({"paths": ("fc3:none/none/none/none/none",)}, "use PLACE:PATH"),
        ({"paths": (FULL,)}, "use PLACE:PATH"),
    ],
)
def test_glora_refuses_what_is_no_path(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHODS["glora"](**options)


def test_glora_takes_the_last_path_that_fits() -> None:
    nothing = "none/none/none/none/none"
    vector = "none/vector/none/none/none"
    tuned = start("glora", "vit", path=nothing, paths=(f"fc1:{vector}", f"1.fc1:{nothing}"))
    assert list(tuned.method_params) == ["blocks.0.mlp.fc1.delta.supports.b_down"]
    with pytest.raises(Unsupported, match="none with a path other than none"):
        METHODS["glora"](path=nothing).check(anatomy_of("vit"))


# ------------------------------------------------------------------------------- cara


def test_cara_sums_products_of_vectors() -> None:
    """Every entry of a key, and of the second slice of a first MLP layer, by its own sum."""
    tuned = moved("cara", rank=2, scale=3.0, num_heads=2)
    qkv, fc1 = "blocks.1.attn.qkv.delta.factors", "blocks.1.mlp.fc1.delta.factors"
    found = change_of(tuned, "blocks.1.attn.qkv.weight")[24:48]
    # slice 4 is the key of the second block
    products = array(tuned, "blocks.0.attn.qkv.delta.factors.layer")[4]
    products = products * array(tuned, "blocks.0.attn.qkv.delta.factors.weights")
    into, head, channel = (
        array(tuned, f"blocks.0.attn.qkv.delta.factors.{n}") for n in ("into", "head", "head_width")
    )
    expected = np.zeros((24, 24))
    for out in range(24):
        for each in range(24):
            terms = products * into[each] * head[out // 12] * channel[out % 12]
            expected[out, each] = 3.0 * terms.sum()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    # of nine slices of a block the first is proj, so that the second of fc1 is slice 9 + 2
    place = "blocks.0.attn.proj.delta.factors"
    layer, weights, u, v = (array(tuned, f"{place}.{n}") for n in ("layer", "weights", "u", "v"))
    found = change_of(tuned, "blocks.1.mlp.fc1.weight")[24:48]
    expected = 3.0 * np.einsum("r,ur,vr->uv", layer[11] * weights, u, v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    for place in (qkv, fc1):  # the second block has no factors of its own
        assert f"{place}.layer" not in tuned.method_params


def test_cara_drops_entries_of_changes_in_training_alone() -> None:
    tuned = moved("cara", rank=2, dropout=0.5, bias=False)
    change = tuned.model.get_submodule("blocks.0.attn.proj.delta")
    assert isinstance(change, CanonicalChange)
    whole = change.changed_weight(torch.zeros(24, 24, dtype=torch.float64))
    tuned.train()
    torch.manual_seed(0)
    dropped = change.changed_weight(torch.zeros(24, 24, dtype=torch.float64))
    kept = dropped != 0
    assert 200 < int(kept.sum()) < 376  # 288 of 576, within seven deviations of 12
    torch.testing.assert_close(dropped[kept], 2 * whole[kept], rtol=0, atol=1e-12)
    # merging drops nothing, whatever the mode
    again = change_of(tuned, "blocks.0.attn.proj.weight")
    np.testing.assert_allclose(again, whole.detach().numpy(), rtol=0, atol=1e-13)


def test_cara_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(Unsupported, match=r"cannot cut the 24 channels .* into 5 heads"):
        METHODS["cara"](num_heads=5).check(anatomy_of("vit"))


# ------------------------------------------------------------------------------ snell


def kernel_change(threshold: float | None, mixes: bool) -> KernelChange:
    """Two inputs at 0 and 4, three outputs at 1, 2 and 6; the second kernel is zero."""
    generator = torch.Generator().manual_seed(0)
    change = KernelChange({"q": (0, 3)}, (3, 2), 2, threshold, mixes, generator).double()
    with torch.no_grad():
        change.inputs["q"].copy_(torch.tensor([[[0.0], [4.0]], [[0.0], [0.0]]]))
        change.outputs["q"].copy_(torch.tensor([[[1.0], [2.0], [6.0]], [[0.0], [0.0], [0.0]]]))
        tenth = torch.tensor([0.1, -0.1], dtype=torch.float64)
        change.get_buffer("coefficients").copy_(tenth)
    return change


def test_klora_is_a_tenth_of_the_distances() -> None:
    """From 0: 1, 2, 6; from 4: 3, 2, 2."""
    found = kernel_change(None, False).changed_weight(torch.zeros(3, 2, dtype=torch.float64))
    expected = torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.6, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-8)


def test_snell_keeps_what_is_above_the_quantile_times_its_size() -> None:
    """Of 1 2 2 2 3 6 the quantile 0.7 is 2.5: 0.6 and 0.3 stay, as 0.36 and 0.09."""
    change = kernel_change(0.7, False)
    found = change.changed_weight(torch.zeros(3, 2, dtype=torch.float64))
    expected = torch.tensor([[0, 0.09], [0, 0], [0.36, 0]], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-8)
    # the size counts as a constant: 0.1 sign 0.6 for the input at 0, 0.1 sign 0.3 for that at 4
    found.sum().backward()
    gradient = change.inputs["q"].grad
    assert gradient is not None
    expected = torch.tensor([[-0.06], [0.03]], dtype=torch.float64)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-8)


def test_snella_mixes_over_the_outputs_in_front() -> None:
    change = kernel_change(0.0, True)
    values = {"alpha": 2.0, "gamma": 0.5, "beta": 0.25}
    with torch.no_grad():
        for name, value in values.items():
            change.get_parameter(f"{name}.q").fill_(value)
    k = np.array([[0.1, 0.2, 0.6], [0.3, 0.2, 0.2]])
    mixed = np.exp(k / 0.5) / np.exp(k / 0.5).sum(1, keepdims=True)
    k = k + 2 * mixed + 0.25
    kept = k * np.abs(k) * (np.abs(k) > np.abs(k).min())
    found = change.changed_weight(torch.zeros(3, 2, dtype=torch.float64)).detach().numpy()
    np.testing.assert_allclose(found, kept.T, rtol=0, atol=1e-7)


def test_snell_trains_the_class_token_where_it_is_read_out() -> None:
    assert "cls_token" in start("snell", "vit", rank=2).unfrozen_params
    assert not start("snell", "vit_average", rank=2).unfrozen_params
    assert not start("snell", "vit", rank=2, class_token=False).unfrozen_params
    with pytest.raises(ConfigError, match="rank=3 is no positive even number"):
        METHODS["snell"](rank=3)
    with pytest.raises(UnknownName, match="form of method=snell"):
        METHODS["snell"](form="dense")


# ------------------------------------------------------------------------ kadaptation


def test_kadaptation_sums_products_of_shared_and_own_factors() -> None:
    tuned = moved("kadaptation", num_products=4, rank=2, scale=2.0)
    place = "blocks.1.attn.qkv.delta"
    rules = array(tuned, "blocks.0.attn.qkv.delta.rules.v.factors.0")
    left, right = array(tuned, f"{place}.left.v"), array(tuned, f"{place}.right.v")
    sums = sum(np.kron(rules[i], left[i] @ right[i]) for i in range(4))
    found = change_of(tuned, "blocks.1.attn.qkv.weight")
    np.testing.assert_allclose(found[48:], 2.0 * sums.T, rtol=0, atol=1e-13)
    assert not found[24:48].any()  # keys


def test_kadaptation_starts_where_its_factors_train() -> None:
    """The most products that divide 24 channels are 24; A has a deviation of a hundredth."""
    tuned = start("kadaptation", "vit")
    rules = tuned.method_params["blocks.0.attn.qkv.delta.rules.q.factors.0"]
    assert rules.shape == (24, 24, 24)
    assert float(rules.detach().std()) == pytest.approx(0.01, rel=0.02)  # of 13,824 draws
    product = start("kadaptation", "vit", rule_rank=4).model.get_submodule(
        "blocks.0.attn.qkv.delta.rules.q"
    )
    assert isinstance(product, SharedRules)
    assert float(product.matrices().detach().std()) == pytest.approx(0.01, rel=0.05)
    released = start("kadaptation", "vit", variant="released")
    assert not any(p.any() for p in released.method_params.values())


def test_kadaptation_refuses_products_that_do_not_divide() -> None:
    with pytest.raises(Unsupported, match=r"cannot cut the 24 channels of .* into 5\."):
        METHODS["kadaptation"](num_products=5).check(anatomy_of("vit"))
