"""Official files of one module alone, or of a selection: side networks, GPS and SPT."""

from __future__ import annotations

from typing import Any

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
from peftbench.methods.layers.low_rank import LowRankDelta
from peftbench.methods.layers.sparse import SparseDelta

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


# ------------------------------------------------------------------- the selection of SPT

SPT_FILES = ("spt_lora_vit",)
PARTS = ("q", "k", "v")


def _spt(golden: Golden) -> Method:
    h = golden.meta["hparams"]
    return METHODS[f"spt_{h['structured_type']}"](
        rank=h["low_rank_dim"],
        unit=h["unit"],
        alpha=h["alpha"],
        beta=h["beta"],
        budget=h["budget"],
        whole_vectors=h["structured_vector"],
        batches=h["selection_batches"],
        dropout=0.0,
    )


def _label(name: str, depth: int) -> str:
    """Of a tensor of the file, such as "blocks.0.attn.q.bias"; the norms of a block in order."""
    if name.startswith("norm."):
        return f"{depth}.norm0.{name.removeprefix('norm.')}"
    _, block, *rest = name.split(".")
    if rest[0].startswith("norm"):
        return f"{block}.norm{int(rest[0][-1]) - 1}.{rest[1]}"
    return f"{block}.{rest[1]}" + (".bias" if rest[2] == "bias" else "")


def _prepared(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> tuple[Method, Any, Preparation]:
    backbone = build(golden).double()
    anatomy = describe(backbone, golden.tensors["x"].shape[-1])
    monkeypatch.setattr(heads, "linear_head", lambda *args: _head(golden))
    given, number = golden.under("select"), golden.meta["hparams"]["selection_batches"]
    images = [(given[f"x.{i}"].double(), given[f"labels.{i}"]) for i in range(number)]
    method = _spt(golden)
    return method, anatomy, method.prepare(backbone, anatomy, images, _seed())


@pytest.mark.parametrize("name", SPT_FILES)
def test_spt_chooses_the_official_structure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read(name)
    method, anatomy, prepared = _prepared(golden, monkeypatch)
    depth, h = anatomy.depth, golden.meta["hparams"]
    assert prepared.facts["top_k"] == int(golden.tensors["select/top_k"])
    assert prepared.facts["size"] == pytest.approx(float(golden.tensors["select/params"]))
    what = dict(text.split("=") for text in prepared.facts["structure"])
    matrices = ("q", "k", "v", "proj", "fc1", "fc2")
    found = [[int(what.get(f"{i}.{m}") == "structured") for m in matrices] for i in range(depth)]
    assert found == golden.tensors["select/tuned_matrices"].tolist()
    whole = {_label(vector, depth) for vector in h["tuned_vectors"]} | {"class_token"}
    assert {label for label, each in what.items() if each == "whole"} == whole
    entries = {
        _label(key, depth): mask.flatten().nonzero().flatten()
        for key, mask in golden.under("unstructured_mask").items()
        if mask.any() and "norm" not in key
    }
    assert {label for label, each in what.items() if each.isdecimal()} == set(entries)
    for label, index in entries.items():
        part = label.split(".")[1]
        width = golden.meta["timm_fused"]["kwargs"]["embed_dim"]
        columns = 1 if label.endswith(".bias") else width
        start = PARTS.index(part) * width * columns if part in PARTS else 0
        assert torch.equal(prepared.tensors[label], index + start)
    count = golden.meta["trainable_count"]
    trained = method.settled(prepared.facts).expected_params(anatomy)
    assert trained == count["method"] + count["backbone"]


@pytest.mark.parametrize("name", SPT_FILES)
def test_spt_tunes_as_the_official_modules_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read(name)
    method, anatomy, prepared = _prepared(golden, monkeypatch)
    monkeypatch.undo()
    tuned = apply(method, build(golden), anatomy, golden.meta["num_classes"], _seed(), prepared)
    model = tuned.model.double().eval()
    official = Sensitive(golden, model)
    official.fill()
    x, labels = golden.tensors["x"].double(), golden.tensors["labels"]
    assert_close(model(x), golden.tensors["out64/logits"], EXACT)
    parameters = [model.get_parameter(n) for n in tuned.trainable]
    optimizer = torch.optim.SGD(parameters, lr=golden.meta["optimiser"]["lr"])
    for step, expected in enumerate(golden.tensors["out64/losses"]):
        loss = F.cross_entropy(model(x), labels)
        assert_close(loss, expected, EXACT)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for role in golden.trainable:
                assert_close(official.gradient(role), golden.tensors[f"grad/{role}"], 1e-6)
        optimizer.step()
    for role in golden.trainable:
        assert_close(official.value(role), golden.tensors[f"after3/{role}"], 1e-6)
    logits = model(x)
    assert_close(logits, golden.tensors["out64/logits_after3"], EXACT)
    assert_close(method.merge(model)(x), logits, EXACT)


class Sensitive:
    """Our tensors for the roles of a file of SPT: rows of fused tensors, entries of sparse ones."""

    def __init__(self, golden: Golden, model: nn.Module) -> None:
        self.golden = golden
        self.model = model
        self.width = golden.meta["timm_fused"]["kwargs"]["embed_dim"]

    def fill(self) -> None:
        with torch.no_grad():
            for key, tensor in self.golden.under("head").items():
                self.model.get_parameter(f"head.{key}").copy_(tensor)
            for role, tensor in self.golden.under("method").items():
                parameter, places, _ = self._found(role)
                parameter[places] = tensor.double()

    def gradient(self, role: str) -> Tensor:
        parameter, places, _ = self._found(role)
        assert parameter.grad is not None
        return parameter.grad[places]

    def value(self, role: str) -> Tensor:
        """A fused bias that trains in place is a change here, beside what it was."""
        parameter, places, start = self._found(role)
        return parameter.detach()[places] + start

    def _found(self, role: str) -> tuple[Tensor, Any, Tensor | float]:
        """The parameter, the places in it, and what it is added to."""
        name = role.removeprefix("backbone.")
        parts = name.split(".")
        if not role.startswith(("backbone.", "blocks.")) or parts[0] != "blocks":
            return self.model.get_parameter(name), slice(None), 0.0
        block, part = parts[1], parts[3] if len(parts) > 3 else ""
        if part not in (*PARTS, "proj", "fc1", "fc2"):
            return self.model.get_parameter(name), slice(None), 0.0
        fused = f"blocks.{block}.{parts[2]}.{'qkv' if part in PARTS else part}"
        module = self.model.get_submodule(fused)
        rows = PARTS.index(part) * self.width if part in PARTS else 0
        if "spt_" in role:
            (low,) = (m for m in module.modules() if isinstance(m, LowRankDelta))
            return (low.a if "spt_down" in role else low.b)[part], slice(None), 0.0
        kind = "bias" if role.endswith("bias") else "weight"
        sparse = [
            m
            for n, m in module.named_modules()
            if isinstance(m, SparseDelta)
            and ("parametrizations.bias" in f"{n}.") == (kind == "bias")
        ]
        if "sparse_" in role:
            index = self.golden.tensors[f"index/{role}"]
            flat = index[0] if kind == "bias" else index[0] * self._columns(sparse[0]) + index[1]
            flat = flat + rows * (1 if kind == "bias" else self._columns(sparse[0]))
            return sparse[0].values, _positions(sparse[0].index, flat), 0.0
        if part in PARTS:  # a whole bias of a fused one
            whole = torch.arange(rows, rows + self.width)
            start = self.golden.tensors[f"backbone/{name}"].double()
            return sparse[0].values, _positions(sparse[0].index, whole), start
        base = getattr(module, "base", module)
        return base.get_parameter("bias"), slice(None), 0.0

    def _columns(self, delta: SparseDelta) -> int:
        return delta.shape[-1]


def _positions(index: Tensor, wanted: Tensor) -> Tensor:
    """Where each of `wanted` (n,) is in `index` (m,)."""
    places = {int(value): number for number, value in enumerate(index)}
    return torch.tensor([places[int(value)] for value in wanted])
