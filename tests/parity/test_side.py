"""Official files of one module alone, or of a selection: side networks, GPS, SPT and NOAH."""

from __future__ import annotations

import torch
from support.golden import EXACT, Golden, assert_close, read
from torch import Tensor

from peftbench.methods.layers.ladder import Ladder, LadderDesign, LadderLayer, Rung

# ------------------------------------------------------------------- the module of LST

LADDER_FILES = ("lst_module",)


def _frozen_layer(golden: Golden, index: int, dtype: torch.dtype) -> LadderLayer:
    """A layer of the frozen network, which is a post-norm layer as well."""
    h = golden.meta["hparams"]
    design = LadderDesign(
        h["width"], h["width"], h["heads"], h["intermediate"], False, 1e-12, False, 1.0, False
    )
    layer = LadderLayer(design)
    start = f"layers.{index}."
    tensors = {k: t for k, t in golden.under("backbone").items() if k.startswith(start)}
    layer.load_state_dict(_named({k.removeprefix(start): t for k, t in tensors.items()}))
    return layer.to(dtype).requires_grad_(False)


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of our layer; those of attention are in a module of their own."""
    attention = ("q.", "k.", "v.", "proj.")
    return {f"attn.{k}" if k.startswith(attention) else k: t for k, t in tensors.items()}


class Climbed:
    """The ladder of a file on its frozen layers, in one dtype."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.golden = read(name)
        h = self.golden.meta["hparams"]
        factor = h["reduction_factor"]
        design = LadderDesign(
            width=h["width"],
            side_width=h["width"] // factor,
            num_heads=h["heads"],
            hidden=h["intermediate"] // factor,
            pre_norm=False,
            eps=1e-12,
            gate=h["use_gate"] == "learnable",
            temperature=h["gate_T"],
            mixes_after=h["add_residual_after"],
        )
        with_layer = [index in h["side_layers"] for index in range(h["layers"])]
        self.frozen = [_frozen_layer(self.golden, i, dtype) for i in range(h["layers"])]
        self.ladder = Ladder(design, with_layer)
        self.x = self.golden.tensors["x"].to(dtype)
        with torch.no_grad():
            for role, tensor in self.golden.under("method").items():
                if role not in self.golden.meta["unused"]:
                    self.tensor(role).copy_(tensor)
        self.ladder.to(dtype)

    def tensor(self, role: str) -> torch.nn.Parameter:
        """Our parameter for a role of the file."""
        if role.startswith("lst."):
            return self.ladder.get_parameter(
                {"lst.first_down": "first.weight", "lst.up": "up.weight"}[role]
            )
        _, index, *rest = role.split(".")
        rung = self.ladder.rungs[int(index)]
        assert isinstance(rung, Rung)
        if rest == ["lst_down"]:
            return rung.down.weight
        if rest == ["lst_gate"]:
            assert rung.gate is not None
            return rung.gate
        ((name, _),) = _named({".".join(rest[1:]): torch.empty(0)}).items()
        return rung.layer.get_parameter(name)

    def forward(self) -> Tensor:
        side, x = self.ladder.start(self.x), self.x
        for index, layer in enumerate(self.frozen):
            x = layer(x)
            side = self.ladder.climb(index, side, x)
        return self.ladder.end(side)

    def loss(self) -> Tensor:
        return (self.forward() * self.golden.tensors["probe"].to(self.x.dtype)).mean()


def test_the_ladder_is_the_released_one() -> None:
    for name in LADDER_FILES:
        run = Climbed(name, torch.float64)
        golden = run.golden
        assert_close(run.forward(), golden.tensors["out64/logits"], EXACT)
        roles = golden.trainable - set(golden.meta["unused"])
        assert sum(p.numel() for p in run.ladder.parameters()) == sum(
            run.tensor(role).numel() for role in roles
        )
        optimizer = torch.optim.SGD(run.ladder.parameters(), lr=golden.meta["optimiser"]["lr"])
        for step, expected in enumerate(golden.tensors["out64/losses"]):
            loss = run.loss()
            assert_close(loss, expected, EXACT)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                for role in roles:
                    gradient = run.tensor(role).grad
                    assert gradient is not None
                    assert_close(gradient, golden.tensors[f"grad/{role}"], 1e-6)
            optimizer.step()
        for role in roles:
            assert_close(run.tensor(role), golden.tensors[f"after3/{role}"], 5e-6)
        assert_close(run.forward(), golden.tensors["out64/logits_after3"], EXACT)
