"""Factors of few bits: their levels, their rounding, and what a stored task holds of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from safetensors.torch import load_file
from support.golden import read
from support.tiny_backbones import fill, images
from support.tiny_tuned import start

from peftbench.artefacts import task_file
from peftbench.errors import ConfigError
from peftbench.methods import METHODS, Tuned
from peftbench.methods.layers.packing import pack_bits, unpack_bits
from peftbench.methods.layers.quantised import QuantisedFactor, levels_of

SMALL = {"bi_lora": {"rank": 4}, "bi_adaptformer": {"bottleneck": 4}}
BOTH = pytest.mark.parametrize("method", SMALL)


def moved(method: str, **options: object) -> Tuned:
    tuned = start(method, "vit", **SMALL[method], **options)
    fill(tuned.trainable, seed=3)
    tuned.model.eval()
    return tuned


def test_one_bit_is_the_upper_quartile_and_its_negative() -> None:
    low, high = levels_of(1)
    assert high == pytest.approx(0.6744897501960817, abs=1e-12)
    assert low == -high


@pytest.mark.parametrize("bits", [1, 2, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_levels_are_the_quantiles_of_the_middle_of_their_cells(bits: int) -> None:
    levels, normal = levels_of(bits), NormalDist()
    assert len(levels) == 2**bits and list(levels) == sorted(levels)
    cells = [0.0, *(normal.cdf((a + b) / 2) for a, b in pairwise(levels)), 1.0]
    for level, (below, above) in zip(levels, pairwise(cells), strict=True):
        assert normal.cdf(level) == pytest.approx((below + above) / 2, abs=1e-9)


@pytest.mark.parametrize("name", ["bilora_1bit_vit", "biadaptformer_1bit_vit"])
def test_factors_are_rounded_as_the_official_ones(name: str) -> None:
    golden = read(name)
    rounded, codes = golden.under("quantised"), golden.under("code_index")
    assert rounded
    for role, values in golden.under("method").items():
        factor = QuantisedFactor(values.clone(), golden.meta["hparams"]["bits"]).double()
        found = factor.weight.detach()
        torch.testing.assert_close(found, rounded[role].double(), rtol=0, atol=1e-6)
        unpacked = unpack_bits(factor.pack()["codes"], 1, values.numel())
        assert torch.equal(unpacked.view_as(values), codes[role].long())


def test_bits_are_packed_from_the_low_end() -> None:
    """1 0 1 1 0 0 0 0 | 1 are 1 + 4 + 8 and 1; 5 3 1 of three bits 5 + 3 * 8 + 1 * 64, and 0."""
    assert pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).tolist() == [13, 1]
    assert pack_bits(torch.tensor([5, 3, 1]), 3).tolist() == [93, 0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_come_back(bits: int) -> None:
    codes = torch.randint(2**bits, (37,), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes, bits)
    assert packed.dtype is torch.uint8
    assert len(packed) == -(-37 * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, 37), codes)


@BOTH
@pytest.mark.parametrize("bits", [1, 3])
def test_a_stored_task_holds_bits_and_gives_the_same_output(
    method: str, bits: int, tmp_path: Path
) -> None:
    tuned = moved(method, bits=bits)
    size = task_file.save(tuned, tmp_path, {"run_id": "0" * 16})
    held = load_file(tmp_path / task_file.TASK)
    factors = {n.removesuffix(".full"): p for n, p in tuned.method_params.items()}
    for path, parameter in factors.items():
        assert held[f"{path}.codes"].dtype is torch.uint8
        assert held[f"{path}.codes"].numel() == -(-parameter.numel() * bits // 8)
        assert held[f"{path}.moments"].shape == (2,)
    packed = {f"{path}.{name}" for path in factors for name in ("codes", "moments")}
    assert held.keys() - packed == tuned.head_params.keys()
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    bytes_of = {name for name, tensor in held.items() if tensor.dtype is torch.uint8}
    assert size == task_file.size_of(shapes, "0" * 16, bytes_of)
    assert task_file.size(tmp_path) >= sum(p.numel() for p in tuned.trainable.values())

    again = start(method, "vit", bits=bits, **SMALL[method])
    task_file.load(again, tmp_path)
    x = images("vit", 3)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), tuned.model(x))
    # and once more: what was read is written as it was
    task_file.save(again, tmp_path / "again", {"run_id": "0" * 16})
    twice = load_file(tmp_path / "again" / task_file.TASK)
    assert twice.keys() == held.keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in twice.items())


@BOTH
def test_a_loaded_task_that_trains_again_rounds_again(method: str, tmp_path: Path) -> None:
    tuned = moved(method)
    task_file.save(tuned, tmp_path, {"run_id": "0" * 16})
    task_file.load(tuned, tmp_path)
    factors = [m for m in tuned.model.modules() if isinstance(m, QuantisedFactor)]
    assert all(factor.is_rounded for factor in factors)
    tuned.train()
    assert not any(factor.is_rounded for factor in factors)
    for factor in factors:  # two values, whatever was loaded
        assert len(factor.weight.unique()) == 2


def test_a_merged_task_is_the_same_from_its_file(tmp_path: Path) -> None:
    tuned = moved("bi_lora", bits=2)
    task_file.save(tuned, tmp_path, {"run_id": "0" * 16})
    again = start("bi_lora", "vit", bits=2, **SMALL["bi_lora"])
    task_file.load(again, tmp_path)
    one, other = (each.method.merge(each.model) for each in (tuned, again))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_a_head_of_one_bit_has_no_bias_and_is_packed() -> None:
    tuned = start("bi_lora", "vit", binary_head=True, **SMALL["bi_lora"])
    assert list(tuned.head_params) == ["head.factor.full"]
    assert tuned.stored()["head.factor.codes"].shape == (7 * 24 // 8,)


def test_bits_are_one_to_eight() -> None:
    for bits in (0, 9):
        with pytest.raises(ConfigError, match=f"bits={bits} is not in 1 to 8"):
            METHODS["bi_lora"](bits=bits)
