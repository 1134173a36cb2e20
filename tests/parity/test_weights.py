"""Official files that hold one module alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.golden import EXACT, Golden, assert_close, read
from support.rounding import STORED, UNIT
from torch import Tensor

from peftbench.methods.layers.kronecker_sums import KroneckerSum, SharedRules, SumDesign

FILE = "kadaptation_module"


def built(golden: Golden) -> list[KroneckerSum]:
    """The changes of all blocks, queries in front of values, with the tensors of the file."""
    hparams, draws = golden.meta["hparams"], torch.Generator()
    width, number = hparams["width"], hparams["num_factors"]
    rules = {n: SharedRules(number, hparams["rank"], True, draws) for n in ("q", "v")}
    tensors = golden.under("method")
    design = SumDesign(hparams["rank"], hparams["scale"], 0.0, is_dead=True)
    depth = sum(key.endswith("kron.bias") for key in tensors)
    changes = []
    for _ in range(depth):
        rows = {"q": (0, width), "v": (width, 2 * width)}
        change = KroneckerSum(rows, (2 * width, width), rules, design, True, draws)
        changes.append(change.double())
    with torch.no_grad():
        for role, parameter in parameters(changes).items():
            parameter.copy_(tensors[role])
    return changes


def parameters(changes: list[KroneckerSum]) -> dict[str, torch.nn.Parameter]:
    """By their roles in the file."""
    named = {}
    for i, change in enumerate(changes):
        assert change.bias is not None
        named[f"blocks.{i}.kron.bias"] = change.bias
        for name in ("q", "v"):
            rules = change.rules[name]
            assert isinstance(rules, SharedRules)
            named[f"kron.rule_{name}.left"], named[f"kron.rule_{name}.right"] = rules.factors
            named[f"blocks.{i}.kron_{name}.left"] = change.left[name]
            named[f"blocks.{i}.kron_{name}.right"] = change.right[name]
    return named


def outputs(change: KroneckerSum, x: Tensor) -> dict[str, Tensor]:
    """What the change adds to queries and values (N, T, D) for tokens x of the same shape."""
    width = x.shape[-1]
    weight = change.changed_weight(torch.zeros(2 * width, width, dtype=x.dtype))
    bias = change.changed_bias(weight, torch.zeros(2 * width, dtype=x.dtype))
    query, value = F.linear(x, weight, bias).chunk(2, -1)
    return {"q": query, "v": value}


def test_kadaptation_is_the_released_module() -> None:
    golden = read(FILE)
    changes = built(golden)
    x = golden.tensors["x"].double()
    loss = torch.zeros((), dtype=torch.float64)
    for i, change in enumerate(changes):
        for name, found in outputs(change, x).items():
            assert_close(found, golden.tensors[f"out64/blocks.{i}.delta_{name}"], 1e-9)
            loss = loss + (found * golden.tensors[f"probe/blocks.{i}.delta_{name}"]).sum()
            key = f"merged/blocks.{i}.{name}.delta_weight"
            start = 0 if name == "q" else x.shape[-1]
            merged = change.changed_weight(torch.zeros(2 * x.shape[-1], x.shape[-1]).double())
            assert_close(merged[start : start + x.shape[-1]], golden.tensors[key], EXACT)
    loss.backward()
    for role, parameter in parameters(changes).items():
        assert parameter.grad is not None
        if role in golden.meta["unused"]:
            assert not parameter.grad.any()
            continue
        expected = golden.tensors[f"grad/{role}"]
        # stored in float32, of which the sums have thousands of terms
        allowed = STORED * UNIT * float(expected.abs().max())
        assert_close(parameter.grad, expected, allowed)


@pytest.mark.parametrize("name", [FILE])
def test_nothing_else_is_in_the_file(name: str) -> None:
    golden = read(name)
    assert golden.under("method").keys() == parameters(built(golden)).keys()
