"""Files of what official implementations computed, and the same computed here.

`tests/golden/README.md` says what the files hold, where they come from and why these tolerances.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from peftbench.backbones.anatomy import Role
from peftbench.backbones.describe import describe
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.methods.layers.noise import ChangeNoise
from peftbench.run.objectives import objective_of
from peftbench.spec import Recipe
from peftbench.tasks.classification import Classification
from peftbench.training.consistency import Consistency, FastConsistency
from peftbench.training.objective import StepBatch
from support.official import CASES, INJECT, RECIPES, our_name
from support.rounding import STORED, UNIT, Corners, round_outputs

discover()
GOLDEN = Path(__file__).parents[1] / "golden"

# where the one adapter of a block stands, relative to the block
ADAPTER = {"adapter_plus": "adapter", "adaptformer": "block.norm2.adapter"}

# meta.timm holds these constructor arguments as words
WORDS = {"basic": BasicBlock, "bottleneck": Bottleneck}

EXACT = 1e-10  # of float64 in features, logits and merged weights, absolute


@dataclass(frozen=True)
class Golden:
    """One file, its arrays as tensors."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key starts with `prefix/`, without it."""
        start = f"{prefix}/"
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    @property
    def trainable(self) -> set[str]:
        """Roles of the tensors that train; one with a * stands for tensors made by a rule."""
        named = {role for role in self.meta["trainable_roles"] if "*" not in role}
        return named | self.meta.get("generated", {}).keys()


@cache
def read(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as file:
        tensors = {k: torch.from_numpy(file[k]) for k in file.files if k != "meta"}
        return Golden(name, tensors, json.loads(str(file["meta"])))


def build(golden: Golden) -> nn.Module:
    """The timm backbone of the file with its weights; the classifier is left random."""
    timm = golden.meta.get("timm") or golden.meta["timm_fused"]
    module, _, cls = timm["cls"].rpartition(".")
    kwargs = {k: WORDS.get(v, v) if isinstance(v, str) else v for k, v in timm["kwargs"].items()}
    model = getattr(importlib.import_module(module), cls)(**kwargs).eval()
    classifier = {id(p) for p in model.get_classifier().parameters()}
    keys = model.load_state_dict(fused(golden.under("backbone")), strict=False)
    assert not keys.unexpected_keys
    parameters = dict(model.named_parameters())
    assert all(k not in parameters or id(parameters[k]) in classifier for k in keys.missing_keys)
    assert not [k for k in keys.missing_keys if ".running_" in k]
    return model


def selected(golden: Golden) -> list[tuple[Tensor, Tensor]]:
    """The batches that a method looked at before it was attached: images and classes."""
    names = [key for key in golden.tensors if key.startswith("select/labels.")]
    batches = sorted(name.removeprefix("select/labels.") for name in names)
    return [
        (golden.tensors[f"select/x.{b}"], golden.tensors[f"select/labels.{b}"]) for b in batches
    ]


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, those of separate q, k and v (D, ...) stacked to one of qkv (3 D, ...)."""
    parts = [re.fullmatch(r"(.+\.attn)\.q\.(weight|bias)", name) for name in tensors]
    names = [(found[1], found[2]) for found in parts if found]
    stacked = {
        f"{place}.qkv.{kind}": torch.cat([tensors[f"{place}.{part}.{kind}"] for part in "qkv"])
        for place, kind in names
    }
    separate = {f"{place}.{part}.{kind}" for place, kind in names for part in "qkv"}
    return {name: t for name, t in tensors.items() if name not in separate} | stacked


def generated(rule: dict[str, Any]) -> Tensor:
    """A tensor too large to store, by the integer rule of the README of the files."""
    shape = rule["shape"]
    h = np.arange(1, 1 + math.prod(shape), dtype=np.uint64) + np.uint64(1_000_003 * rule["t"])
    low, factor, half = np.uint64(2**32 - 1), np.uint64(0x45D9F3B), np.uint64(16)
    h &= low
    for _ in range(2):
        h = ((h ^ (h >> half)) * factor) & low
    h ^= h >> half
    by_fan_in = rule["std"] == "0.4*sqrt(2/fan_in)"
    std = 0.4 * math.sqrt(2 / math.prod(shape[1:])) if by_fan_in else float(rule["std"])
    values = std * math.sqrt(12) * (h / 2**32 - 0.5)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


class Unrounded(Classification):
    """Classification whose outputs stay in float64 where they are."""

    def outputs(self, raw: Tensor) -> Tensor:
        return raw


class Run:
    """The method of a file on its backbone, with the tensors of the file, in one dtype."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.golden = read(name)
        self.dtype = dtype
        self.x = self.golden.tensors["x"].to(dtype)
        self.labels = self.golden.tensors["labels"]
        method, options = CASES[name]
        backbone = build(self.golden)
        self.anatomy = describe(backbone, self.x.shape[-1])
        generator = torch.Generator().manual_seed(0)
        num_classes = self.golden.meta["num_classes"]
        made = METHODS[method](**options)
        prepared = None
        if made.card.prepared:
            seen = selected(self.golden)
            prepared = made.prepare(backbone, self.anatomy, seen, torch.Generator())
        self.tuned: Tuned = apply(made, backbone, self.anatomy, num_classes, generator, prepared)
        self.model = self.tuned.model
        self.head = backbone.get_submodule(self.anatomy.head)
        head = next(n for n, m in self.model.named_modules() if m is self.head)
        self.places = {
            "head": head,
            "last": f"{head}.last" if isinstance(self.head, nn.Sequential) else head,
            "stem": self.anatomy.where(Role.EMBED)[0].path,
            "adapter": ADAPTER.get(method, "mlp.fc2.adapter"),
        }
        with torch.no_grad():
            for key, tensor in self.golden.under("method").items():
                self.tensor(key).copy_(tensor)
            for key, tensor in self.golden.under("head").items():
                self.tensor(f"head.{key}").copy_(tensor)
            for key, rule in self.golden.meta.get("generated", {}).items():
                self.tensor(key).copy_(generated(rule))
        self.model.to(dtype)
        if name in INJECT:
            INJECT[name](self.model, self.golden.under("noise"))
        size = len(self.x), num_classes
        self.objective = objective_of(self.tuned, RECIPES.get(name, Recipe()), size)
        self.numbers = torch.arange(len(self.x))
        give_noise(self)

    def tensor(self, role: str) -> Tensor:
        """Our parameter or buffer for a role; buffers are looked up anew after a conversion."""
        name = our_name(self.golden.name, role, self.places)
        return (dict(self.model.named_parameters()) | dict(self.model.named_buffers()))[name]

    def set_mode(self) -> None:
        if self.golden.meta["mode"] == "train":
            self.tuned.train()
        else:
            self.model.eval()

    def forward(self) -> tuple[Tensor, Tensor]:
        """What the whole head receives, and the logits."""
        received: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: received.append(args[0]))
        logits = self.model(self.x)
        handle.remove()
        return received[0].detach(), logits

    def loss(self, logits: Tensor) -> Tensor:
        """What a step minimises: the cross-entropy of the logits, or an objective."""
        if self.objective is None:
            return F.cross_entropy(logits, self.labels)
        if isinstance(self.objective, FastConsistency):  # all steps of a file are in one epoch
            self.objective.history = self.golden.tensors["history_logits"].to(self.dtype).clone()
        batch = StepBatch(self.x, self.labels, self.model, Unrounded(), numbers=self.numbers)
        return self.objective(batch)[0]


def give_noise(run: Run) -> None:
    """Let noise on changes be that of the file, and outputs of an epoch ago as well."""
    objective, noise = run.objective, run.golden.under("noise")
    if not isinstance(objective, Consistency):
        return
    found = {path: getattr(m, "disturb", None) for path, m in run.model.named_modules()}
    found["head"] = objective.noise.on_outputs
    for path, tensor in noise.items():
        own = found[path]
        assert isinstance(own, ChangeNoise)
        own.draw = lambda like, tensor=tensor: tensor.to(like).reshape(like.shape)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach(), expected.to(actual.dtype), rtol=0.0, atol=tolerance)


Values = dict[str, dict[str, Tensor]]  # kind of quantity -> role -> tensor
# what a step that rounding may turn leaves open: gradients of the first one, then what follows
AFTER_A_STEP = {"gradients": 0, "losses": 1, "tensors": 2, "statistics": 2, "logits_after3": 2}


def computed(run: Run, *, rounded: bool = False) -> tuple[Values, int]:
    """Everything that a file holds, computed anew; and the steps that rounding cannot turn.

    With `rounded` a float64 run has its values rounded to float32.
    """
    golden, tuned = run.golden, run.tuned
    corners = Corners(run.model)
    if rounded:
        round_outputs(run.model)
    optimizer = torch.optim.SGD(tuned.trainable.values(), lr=golden.meta["optimiser"]["lr"])
    run.set_mode()
    found: Values = {"losses": {}}
    steps = golden.meta["optimiser"]["steps"]
    steady = steps
    for step in range(steps):
        pooled, logits = run.forward()
        if corners.near:
            steady = min(steady, step)
        loss = run.loss(logits)
        optimizer.zero_grad()
        loss.backward()
        found["losses"][str(step)] = loss.detach()
        if step == 0:
            found |= {"pooled": {"": pooled}, "logits": {"": logits.detach()}}
            gradients = {role: run.tensor(role).grad for role in golden.trainable}
            assert None not in gradients.values()
            found["gradients"] = {role: g.clone() for role, g in gradients.items()}
        optimizer.step()
        if rounded:
            with torch.no_grad():
                for parameter in tuned.trainable.values():
                    parameter.copy_(parameter.float())
    stepped = golden.under("after3").keys() | golden.under("after3_slice").keys()
    for role in stepped:
        kind = "statistics" if ".running_" in role else "tensors"
        found.setdefault(kind, {})[role] = run.tensor(role).detach().clone()
    found["logits_after3"] = {"": run.forward()[1].detach()}
    return found, steady


def stored(golden: Golden, values: Values) -> tuple[Values, Values]:
    """What the file holds in float32, and those of `values` that it is compared with."""
    sources = {
        "losses": {str(i): loss for i, loss in enumerate(golden.tensors["out/losses"])},
        "gradients": golden.under("grad") | golden.under("grad_slice"),
        "logits_after3": {"": golden.tensors["out/logits_after3"]},
    }
    for role, tensor in (golden.under("after3") | golden.under("after3_slice")).items():
        kind = "statistics" if ".running_" in role else "tensors"
        sources.setdefault(kind, {})[role] = tensor
    sliced = {"gradients": golden.under("grad_slice"), "tensors": golden.under("after3_slice")}
    mine = {
        kind: {
            role: values[kind][role][:, : tensor.shape[1]]
            if role in sliced.get(kind, {})
            else values[kind][role]
            for role, tensor in roles.items()
        }
        for kind, roles in sources.items()
    }
    return sources, mine


def difference(first: Values, second: Values) -> dict[str, float]:
    """The largest absolute difference of each kind of quantity."""
    assert first.keys() == second.keys()
    return {
        kind: max(
            float((tensor.double() - second[kind][role].double()).abs().max())
            for role, tensor in roles.items()
        )
        for kind, roles in first.items()
    }


@cache
def exact(name: str) -> tuple[Values, int, dict[str, float]]:
    """Values in float64, the steps that rounding cannot turn, and what one rounding makes."""
    values, steady = computed(Run(name, torch.float64))
    once, _ = computed(Run(name, torch.float64), rounded=True)
    noise = {
        kind: max(found, UNIT * max(float(t.abs().max()) for t in values[kind].values()))
        for kind, found in difference(once, values).items()
    }
    return values, steady, noise


def steady_kinds(steady: int) -> set[str]:
    """Kinds of quantities that float32 cannot get on the other side of a corner."""
    return {kind for kind, after in AFTER_A_STEP.items() if steady > after} | {"pooled", "logits"}


def check_float64(golden: Golden, values: Values, noise: dict[str, float]) -> None:
    """A run in float64 against the file; its float32 values may have been rounded anywhere."""
    out = golden.under("out64")
    for kind in ("pooled", "logits"):
        assert_close(values[kind][""], out[kind], EXACT)
    expected, mine = stored(golden, values)
    for kind, found in difference(mine, expected).items():
        assert found <= STORED * noise[kind], (kind, found, noise[kind])
    norms = golden.under("grad_norm")  # of gradients too large to store
    assert golden.under("grad").keys() | norms.keys() == golden.trainable
    for role, expected_norm in norms.items():
        norm = float(values["gradients"][role].double().norm())
        assert norm == pytest.approx(float(expected_norm), rel=STORED * UNIT)
