"""Modules of official code that stand alone in their files: outputs, gradients and three steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.golden import EXACT, assert_close, read
from torch import Tensor, nn

from peftbench.backbones.anatomy import Tokens
from peftbench.methods.layers.attention import ExtendedAttention, Queried, attend_plainly
from peftbench.methods.layers.mona import MonaAdapter
from peftbench.methods.layers.parallel import ParallelBottleneck
from peftbench.methods.layers.prefix import EncodedPrefix, PrefixEncoder

FLOAT32 = 2e-5  # of gradients and of tensors behind three steps, absolute


def check_module(
    name: str, module: nn.Module, names: dict[str, tuple[str, ...]], run: Callable[[], Tensor]
) -> None:
    """`run()` in float64 against the file.

    `names` has the parameters of `module` for each role; several are blocks of its rows.
    """
    golden = read(name)
    module.double()
    parameters = dict(module.named_parameters())

    def values(role: str) -> Tensor:
        return torch.cat([parameters[each].detach() for each in names[role]])

    assert golden.trainable == names.keys()
    assert sorted(each for own in names.values() for each in own) == sorted(parameters)
    assert golden.meta["trainable_count"]["method"] == sum(p.numel() for p in parameters.values())
    with torch.no_grad():
        for role, tensor in golden.under("method").items():
            parts = [parameters[each] for each in names[role]]
            for part, given in zip(parts, tensor.split([len(p) for p in parts]), strict=True):
                part.copy_(given)
    probe = golden.tensors["probe"].double()
    optimizer = torch.optim.SGD(parameters.values(), lr=golden.meta["optimiser"]["lr"])
    losses = []
    for step in range(golden.meta["optimiser"]["steps"]):
        out = run()
        loss = (out * probe).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            assert_close(out, golden.tensors["out64/logits"], EXACT)
            for role, gradient in golden.under("grad").items():
                found = [parameters[each].grad for each in names[role]]
                assert_close(torch.cat([g for g in found if g is not None]), gradient, FLOAT32)
        optimizer.step()
    assert_close(torch.stack(losses), golden.tensors["out64/losses"], EXACT)
    for role, tensor in golden.under("after3").items():
        assert_close(values(role), tensor, FLOAT32)
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
    names = {role: (role.removeprefix("mona."),) for role in golden.trainable}
    check_module("mona_module", module, names, lambda: x + module(x))


class MamParts(nn.Module):
    """The prefixes and adapters of all layers of the file."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        heads, layers, width = hparams["heads"], hparams["layers"], 32
        encoder = PrefixEncoder(hparams["prefix_length"], width, hparams["mid_dim"], generator)
        self.prefixes = nn.ModuleList(
            EncodedPrefix(encoder, (heads, width // heads), 0.0, generator) for _ in range(layers)
        )
        scale, norm = float(hparams["scale"]), hparams["layernorm"]
        self.adapters = nn.ModuleList(
            ParallelBottleneck(width, hparams["bottleneck"], scale, norm, 0.0, True)
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keys, values and what the adapter makes of x (B, N, C), layer by layer, flattened."""
        parts = [
            part.flatten()
            for prefix, adapter in zip(self.prefixes, self.adapters, strict=True)
            for part in (*prefix(), adapter(x))
        ]
        return torch.cat(parts)


def _mam_names(role: str) -> tuple[str, ...]:
    """Parameters of `MamParts` for a role; the rows of fc2 are those of the layers in turn."""
    if role == "prefix.embed":
        return ("prefixes.0.encoder.embedding",)
    kind, _, rest = role.partition(".")
    if kind == "blocks":
        layer, _, name = rest.partition(".parallel.")
        return (f"adapters.{layer}.{name}",)
    if rest.startswith("fc1"):
        return (f"prefixes.0.encoder.{rest}",)
    return tuple(f"prefixes.{layer}.{rest}" for layer in range(3))


def test_prefixes_and_parallel_adapters_are_those_of_the_unified_view() -> None:
    golden = read("mam_module")
    module = MamParts(golden.meta["hparams"])
    x = input_of("mam_module")
    names = {role: _mam_names(role) for role in golden.trainable}
    first = {}

    def run() -> Tensor:
        if not first:
            first["keys"], first["values"] = (t.detach() for t in module.prefixes[0]())
        return module(x)

    check_module("mam_module", module, names, run)
    assert_close(first["keys"], golden.tensors["out64/blocks.0.prefix_key"], EXACT)
    assert_close(first["values"], golden.tensors["out64/blocks.0.prefix_value"], EXACT)


def test_keys_in_front_are_the_gated_sum_of_the_unified_view() -> None:
    """The file weighs attention to the prefix and to the rest by their shares of the softmax."""
    golden = read("mam_module")
    keys, values = (
        golden.tensors[f"out64/blocks.0.prefix_{name}"].double() for name in ("key", "value")
    )
    q, k, v = (golden.tensors[f"attn/{name}"].double() for name in "qkv")
    extended = ExtendedAttention(nn.Identity(), nn.Identity())
    extended.extra.forward = lambda: (keys, values)
    for fused in (True, False):
        found = attend_plainly(extended._extended(Queried(q, k, v)), fused)
        assert_close(found, golden.tensors["out64/attn"], EXACT)
