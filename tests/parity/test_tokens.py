"""Modules of official code that stand alone in their files: outputs, gradients and three steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.golden import EXACT, assert_close, read
from torch import Tensor, nn

from peftbench.backbones.anatomy import Tokens
from peftbench.methods.layers.mona import MonaAdapter

FLOAT32 = 2e-5  # of gradients and of tensors behind three steps, absolute


def check_module(name: str, module: nn.Module, names: dict[str, str], run: Callable) -> None:
    """`run()` in float64 against the file whose roles are `names` of parameters of `module`."""
    golden = read(name)
    parameters = dict(module.named_parameters())
    assert golden.trainable == names.keys()
    assert sorted(names.values()) == sorted(parameters)
    assert golden.meta["trainable_count"]["method"] == sum(p.numel() for p in parameters.values())
    with torch.no_grad():
        for role, tensor in golden.under("method").items():
            parameters[names[role]].copy_(tensor)
    module.double()
    parameters = dict(module.named_parameters())
    probe = golden.tensors["probe"].double()
    meta = golden.meta["optimiser"]
    optimizer = torch.optim.SGD(parameters.values(), lr=meta["lr"])
    losses = []
    for step in range(meta["steps"]):
        out = run()
        if step == 0:
            assert_close(out, golden.tensors["out64/logits"], EXACT)
        loss = (out * probe).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            for role, gradient in golden.under("grad").items():
                found = parameters[names[role]].grad
                assert found is not None
                assert_close(found, gradient, FLOAT32)
        optimizer.step()
    assert_close(torch.stack(losses), golden.tensors["out64/losses"], EXACT)
    for role, tensor in golden.under("after3").items():
        assert_close(parameters[names[role]], tensor, FLOAT32)
    assert_close(run(), golden.tensors["out64/logits_after3"], EXACT)


def input_of(name: str) -> Tensor:
    return read(name).tensors["x"].double()


def test_mona_on_a_grid_that_is_no_square_is_the_official_module() -> None:
    golden = read("mona_module")
    hparams = golden.meta["hparams"]
    rows, columns = hparams["grid"]
    tokens = Tokens(0, hparams["width"], "avg", True, "", (rows, columns))
    generator = torch.Generator().manual_seed(0)
    module = MonaAdapter(hparams["width"], hparams["hidden"], 0.1, True, tokens, generator).eval()
    x = input_of("mona_module")
    names = {role: role.removeprefix("mona.") for role in golden.trainable}
    check_module("mona_module", module, names, lambda: x + module(x))
