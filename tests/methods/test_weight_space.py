"""Methods that change weights by closed forms: values worked out by hand or built anew in numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh
from support.tiny_tuned import start
from torch import nn

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned
from peftbench.methods.layers.kronecker import KroneckerChange

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
