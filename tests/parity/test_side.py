"""Official files of one module alone, or of a selection: side networks, GPS, SPT and NOAH."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.golden import EXACT, Golden, assert_close, build, read
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.methods import METHODS, Method, apply, discover
from peftbench.methods.base import Preparation
from peftbench.methods.layers import heads, selection
from peftbench.methods.layers.ladder import Ladder, LadderDesign, LadderLayer, Rung

discover()

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


# ------------------------------------------------------------------- the selection of GPS

GPS_FILES = ("gps_vit",)


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _gps(golden: Golden) -> Method:
    h = golden.meta["hparams"]
    loss = "contrastive" if h["contrastive"] else "cross_entropy"
    options = {"temperature": h["temperature"]} if h["contrastive"] else {}
    return METHODS["gps"](per_row=h["times_para"], loss=loss, **options)


def _batches(golden: Golden) -> list[tuple[list[Tensor], Tensor]]:
    """The views of each batch that the official code chose by, and their labels."""
    given = golden.under("select")
    return [
        ([given[k].double() for k in sorted(given) if f"{k}.".startswith(f"x.{i}.")], labels)
        for i in range(golden.meta["hparams"]["selection_batches"])
        for labels in (given[f"labels.{i}"],)
    ]


def _head(golden: Golden) -> nn.Linear:
    weight, bias = golden.tensors["head/weight"].double(), golden.tensors["head/bias"].double()
    head = nn.Linear(weight.shape[1], len(weight)).double()
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


@pytest.mark.parametrize("name", GPS_FILES)
def test_gps_chooses_the_official_entries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views of the file stand in for the crops that would be drawn."""
    golden = read(name)
    backbone = build(golden).double()
    anatomy = describe(backbone, golden.tensors["x"].shape[-1])
    batches = _batches(golden)
    monkeypatch.setattr(heads, "linear_head", lambda *args: _head(golden))
    method = _gps(golden)
    images = [(views[0], labels) for views, labels in batches]
    for counted in (True, False):  # a loss of each batch is computed twice: alone, and to choose
        views = iter([view for each, _ in batches for view in each])
        monkeypatch.setattr(selection, "crop_and_flip", lambda *args, v=views: next(v))
        if counted:
            prepared = method.prepare(backbone, anatomy, images, _seed())
            continue
        weights = {path: backbone.get_submodule(path).weight for path in prepared.tensors}
        parts = selection.gradients(
            backbone,
            [*weights.values()],
            lambda: method._losses(backbone, anatomy, images, _seed()),
        )
        gradients = dict(zip(weights, selection.total(parts), strict=True))
    assert prepared.facts["loss_sum"] == pytest.approx(float(golden.tensors["select/loss_sum"]))
    masks = {k: t for k, t in golden.under("mask").items() if t.any() and k.endswith(".weight")}
    assert {f"{path}.weight" for path in prepared.tensors} == set(masks)
    for path, index in prepared.tensors.items():
        assert torch.equal(index, masks[f"{path}.weight"].flatten().nonzero().flatten())
        expected = golden.tensors[f"select_grad/{path}.weight"]
        assert_close(gradients[path], expected, 1e-5 * float(expected.abs().max()))
    assert method.expected_params(anatomy) == int(golden.tensors["select/count"])


@pytest.mark.parametrize("name", GPS_FILES)
def test_gps_tunes_as_masked_gradients_do(name: str) -> None:
    golden = read(name)
    backbone = build(golden)
    anatomy = describe(backbone, golden.tensors["x"].shape[-1])
    masks = {k: t.flatten().nonzero().flatten() for k, t in golden.under("mask").items()}
    method, first = (
        _gps(golden),
        Preparation({k.removesuffix(".weight"): t for k, t in masks.items()}),
    )
    tuned = apply(method, backbone, anatomy, golden.meta["num_classes"], _seed(), first)
    model = tuned.model.eval().double()
    start = {k: t.double() for k, t in golden.under("backbone").items()}
    with torch.no_grad():
        for key, tensor in golden.under("head").items():
            model.get_parameter(f"head.{key}").copy_(tensor)
    x, labels = golden.tensors["x"].double(), golden.tensors["labels"]
    assert_close(model(x), golden.tensors["out64/logits"], EXACT)
    parameters = {n: model.get_parameter(n) for n in tuned.trainable}
    optimizer = torch.optim.SGD(parameters.values(), lr=golden.meta["optimiser"]["lr"])
    losses = []
    for step in range(golden.meta["optimiser"]["steps"]):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        optimizer.step()
    assert_close(torch.stack(losses), golden.tensors["out64/losses"], EXACT)
    assert_close(model(x), golden.tensors["out64/logits_after3"], EXACT)
    ours = {n.replace(".parametrizations.weight.0.delta.values", ".weight"): n for n in parameters}
    moved = {r for r in golden.trainable if r not in golden.meta["zero_grad_roles"]}
    assert {f"backbone.{n}" if not n.startswith("head.") else n for n in ours} == moved
    for role in moved:
        key = role.removeprefix("backbone.")
        gradient, after = golden.tensors[f"grad/{role}"], golden.tensors[f"after3/{role}"].double()
        if key in masks and key.endswith(".weight"):
            gradient = gradient.flatten()[masks[key]]
            after = (after - start[key]).flatten()[masks[key]]
        assert_close(gradients[ours[key]], gradient, 1e-6)
        assert_close(parameters[ours[key]], after, 1e-6)
    merged = method.merge(model).state_dict()
    for role in moved:
        key = role.removeprefix("backbone.")
        assert_close(merged[key], golden.tensors[f"after3/{role}"], 1e-6)
