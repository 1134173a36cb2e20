"""Factor tuning: the change of every weight of a block from shared factors, built anew in numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support.tiny_backbones import fill, fresh
from support.tiny_tuned import start
from torch import Tensor

from peftbench.errors import ConfigError, UnknownName
from peftbench.methods import METHODS, Tuned

METHOD = pytest.mark.parametrize("method", ["fact_tt", "fact_tk"])
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
RANK, SCALE = 3, 0.5
# block -> width of its stream and how many blocks of that width stand in front of it
BLOCKS = {
    "vit": {"blocks.0": (24, 0), "blocks.1": (24, 1)},
    "swin": {
        "layers.0.blocks.0": (12, 0),
        "layers.0.blocks.1": (12, 1),
        "layers.1.blocks.0": (24, 0),
    },
}


def _apply(method: str, backbone: str = "vit", **options: object) -> Tuned:
    """In float64 and eval mode, its tensors far from zero."""
    tuned = start(method, backbone, rank=RANK, scale=SCALE, **options)
    fill(tuned.method_params, seed=2)
    tuned.model.double().eval()
    return tuned


def _changes(tuned: Tuned, backbone: str) -> dict[str, np.ndarray]:
    """What merging adds to each weight."""
    merged = tuned.method.merge(copy.deepcopy(tuned.model))
    bare = fresh(backbone).double()
    names = [f"{block}.{layer}.weight" for block in BLOCKS[backbone] for layer in LAYERS]
    return {
        name: (merged.get_parameter(name) - bare.get_parameter(name)).detach().numpy()
        for name in names
    }


def _tensor(tuned: Tuned, name: str) -> np.ndarray:
    """Through any block that shares it."""
    return tuned.model.get_parameter(name).detach().numpy()


def _assert_close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        # of weights and changes of the order of one, which are summed and subtracted again
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backbone", BLOCKS)
def test_tensor_train_is_v_s_u_with_a_core_of_its_own_for_each_slice(backbone: str) -> None:
    tuned = _apply("fact_tt", backbone)
    expected = {}
    for block, (width, _) in BLOCKS[backbone].items():
        u, v = (_tensor(tuned, f"{block}.attn.qkv.delta.factors.{n}") for n in "uv")
        cores = {n: _tensor(tuned, f"{block}.attn.qkv.delta.core.{n}") for n in "qkv"}
        for layer, name in (("attn.proj", "proj"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            cores[name] = _tensor(tuned, f"{block}.{layer}.delta.core.{name}")
        change = {n: SCALE * v @ cores[n] @ u for n in ("q", "k", "v", "proj")}
        fc1 = cores["fc1"].reshape(4, RANK, RANK)  # blocks of rows
        fc2 = cores["fc2"].reshape(RANK, 4, RANK)  # blocks of columns
        expected |= {
            f"{block}.attn.qkv.weight": np.concatenate([change[n] for n in "qkv"]),
            f"{block}.attn.proj.weight": change["proj"],
            f"{block}.mlp.fc1.weight": SCALE
            * np.einsum("op,jpa,ai->joi", v, fc1, u).reshape(4 * width, width),
            f"{block}.mlp.fc2.weight": SCALE
            * np.einsum("op,pja,ai->oji", v, fc2, u).reshape(width, 4 * width),
        }
    _assert_close(_changes(tuned, backbone), expected)


@pytest.mark.parametrize("backbone", BLOCKS)
def test_tucker_gives_each_slice_its_own_slice_of_the_core_times_p(backbone: str) -> None:
    """K[a,b,k] = sum_c C[a,b,c] P[c,12i+k]; a on the side of the input, b of the output."""
    tuned = _apply("fact_tk", backbone)
    expected = {}
    for block, (width, before) in BLOCKS[backbone].items():
        delta = f"{block}.attn.qkv.delta"
        u, v = (_tensor(tuned, f"{delta}.factors.{n}") for n in "uv")
        core, p = (_tensor(tuned, f"{delta}.tucker.{n}") for n in ("core", "p"))
        assert p.shape == (RANK, 12 * sum(w == width for w, _ in BLOCKS[backbone].values()))
        k = np.einsum("abc,ck->abk", core, p[:, 12 * before : 12 * (before + 1)])
        by_slice = SCALE * np.einsum("ob,abk,ai->koi", v, k, u)
        expected |= {
            f"{block}.attn.qkv.weight": by_slice[0:3].reshape(3 * width, width),
            f"{block}.attn.proj.weight": by_slice[3],
            f"{block}.mlp.fc1.weight": by_slice[4:8].reshape(4 * width, width),
            f"{block}.mlp.fc2.weight": np.concatenate(by_slice[8:12], axis=1),
        }
    _assert_close(_changes(tuned, backbone), expected)


def test_the_released_tucker_interleaves_the_slices_of_the_mlp_and_nothing_else() -> None:
    default, released = (
        _changes(_apply("fact_tk", variant=variant), "vit") for variant in ("default", "released")
    )
    for name, change in default.items():
        if ".attn." in name:
            np.testing.assert_allclose(released[name], change, rtol=0, atol=1e-13)
        else:
            assert np.abs(released[name] - change).max() > 0.1 * np.abs(change).max()


# ------------------------------------------------------------------- what is shared


@METHOD
def test_all_blocks_of_a_width_share_the_factors(method: str) -> None:
    for backbone, widths in (("vit", [24]), ("swin", [12, 24])):
        tuned = start(method, backbone)
        shared: dict[int, set[int]] = {width: set() for width in widths}
        for block, (width, _) in BLOCKS[backbone].items():
            for layer in LAYERS:
                factors = tuned.model.get_submodule(f"{block}.{layer}.delta.factors")
                assert factors.u.shape == (16, width) and factors.v.shape == (width, 16)
                shared[width] |= {id(factors.u), id(factors.v)}
        assert all(len(ids) == 2 for ids in shared.values())
        assert len(set().union(*shared.values())) == 2 * len(widths)


# ------------------------------------------------------------------- initial values


def _assert_uniform(tensor: Tensor, bound: float) -> None:
    """At least 256 draws: the largest is within two percent of the bound, but for one in 150."""
    tensor = tensor.detach()
    assert tensor.numel() >= 256
    assert 0.98 * bound < tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@METHOD
def test_u_is_uniform_and_v_is_zero(method: str) -> None:
    tuned = start(method, "vit", rank=16)
    factors = tuned.model.get_submodule("blocks.0.attn.qkv.delta.factors")
    _assert_uniform(factors.u, 1 / math.sqrt(24))
    assert not factors.v.any()


def test_cores_of_the_tensor_train_start_as_linear_layers_from_r() -> None:
    """And that of fc2, which maps 4 r to r, as one from 4 r."""
    r = 16
    tuned = start("fact_tt", "vit", rank=r)
    cores = {n: p for n, p in tuned.method_params.items() if ".core." in n}
    shapes = {"q": (r, r), "k": (r, r), "v": (r, r), "proj": (r, r)}
    shapes |= {"fc1": (4 * r, r), "fc2": (r, 4 * r)}
    assert len(cores) == 2 * len(shapes)
    for name, core in cores.items():
        last = name.rpartition(".")[2]
        assert core.shape == shapes[last]
        _assert_uniform(core, 1 / math.sqrt(4 * r if last == "fc2" else r))


def test_the_core_and_p_of_tucker_start_as_xavier_of_their_shapes() -> None:
    r, blocks = 16, 2
    tucker = start("fact_tk", "vit", rank=r).model.get_submodule("blocks.1.mlp.fc2.delta.tucker")
    assert tucker.core.shape == (r, r, r) and tucker.p.shape == (r, 12 * blocks)
    _assert_uniform(tucker.core, math.sqrt(3) / r)
    _assert_uniform(tucker.p, math.sqrt(6 / (12 * blocks + r)))


# ------------------------------------------------------------------- dropout


@METHOD
@pytest.mark.parametrize(("layer", "slices"), [("attn.qkv", 3), ("mlp.fc1", 4), ("mlp.fc2", 1)])
def test_dropout_acts_on_the_r_values_in_front_of_v_and_only_while_training(
    method: str, layer: str, slices: int
) -> None:
    """V has full rank: its pseudo-inverse gives back what it received, token by token."""
    tuned = _apply(method, dropout=0.5)
    module = tuned.model.get_submodule(f"blocks.0.{layer}")
    inverse = torch.linalg.pinv(module.delta.factors.v.detach())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 17, module.base.in_features, generator=generator, dtype=torch.float64)

    def received() -> Tensor:
        change = (module(x) - module.base(x)).detach().unflatten(-1, (slices, 24))
        return change @ inverse.T / SCALE

    full = received()
    torch.testing.assert_close(received(), full, rtol=0, atol=0)
    torch.manual_seed(0)
    tuned.train()
    dropped = received()
    kept = dropped.abs() > 1e-9
    assert kept.shape == (4, 17, slices, RANK)
    torch.testing.assert_close(dropped, 2 * kept * full, rtol=0, atol=1e-11)
    # 204 independent values or more, each kept with probability 1/2: four standard errors
    assert abs(kept.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(kept.numel())
    tuned.model.eval()
    torch.testing.assert_close(received(), full, rtol=0, atol=0)


# ------------------------------------------------------------------- refusals


@METHOD
@pytest.mark.parametrize(
    ("options", "found"),
    [({"rank": 0}, "rank=0"), ({"dropout": 1.0}, r"dropout=1\.0"), ({"dropout": -0.1}, "dropout")],
)
def test_senseless_values_are_refused_by_name(method: str, options: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=f"^method={method}: {found}"):
        METHODS[method](**options)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownName, match="variant of method=fact_tk: 'official'"):
        METHODS["fact_tk"](variant="official")
