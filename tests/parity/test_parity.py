"""Methods against what their official implementations computed, tensor by tensor.

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
from support.rounding import STORED, TERMS, UNIT, Corners, round_outputs
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from peftbench.backbones.anatomy import Role
from peftbench.backbones.describe import describe
from peftbench.errors import NotMergeable
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.methods.layers.scale_shift import fold

discover()
GOLDEN = Path(__file__).parents[1] / "golden"

# file -> method and hyper-parameters that give the same function
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter_houlsby_ap_vit": ("adapter", {"position": "houlsby", "bottleneck": 6}),
    "adapter_noah_vit": ("adapter", {"bottleneck": 6, "activation": "quick_gelu"}),
    "adapter_plus_vit": ("adapter_plus", {"bottleneck": 8}),
    "adapter_vpt_vit": ("adapter_vpt", {"reduction": 4}),
    "adaptformer_bnhead_vit": ("adaptformer", {"bottleneck": 6, "variant": "released"}),
    "adaptformer_nobias_vit": ("adaptformer", {"bottleneck": 8, "bias": False}),
    "adaptformer_vit": ("adaptformer", {"bottleneck": 8}),
    "bias_swin": ("bias", {"variant": "released"}),
    "bias_vit": ("bias", {}),
    "convpass_vit": ("convpass", {"bottleneck": 8, "scale": 0.5}),
    "fact_tk_vit": ("fact_tk", {"rank": 6, "scale": 0.5, "variant": "released"}),
    "fact_tt_vit": ("fact_tt", {"rank": 4, "scale": 0.5}),
    "full_vit": ("full", {}),
    "linear_vit": ("linear", {}),
    "lora_fused_qkv_noah_vit": ("lora", {"rank": 4, "alpha": 4.0, "targets": ["qkv"]}),
    "lora_qv_vit": ("lora", {"rank": 4, "alpha": 4.0, "targets": ["q", "v"]}),
    "mlp3_vit_eval": ("mlp", {"num_layers": 3, "dropout": 0.0}),
    "mlp3_vit_train": ("mlp", {"num_layers": 3, "dropout": 0.0}),
    "partial0_convnext": ("partial", {"num_blocks": 1}),
    "partial0_resnet_trainbn": ("partial", {"num_blocks": 1}),
    "partial1_vit": ("partial", {"num_blocks": 1}),
    "repadapter_block_vit": ("repadapter", {"bottleneck": 8, "groups": 2, "scale": 0.7}),
    "sidetune_vit": ("sidetune", {"alpha": 0.4}),
    "ssf_convnext": ("ssf", {"variant": "released"}),
    "ssf_swin": ("ssf", {"variant": "released"}),
    "ssf_vit": ("ssf", {}),
    "vpt_deep_mae_vit": ("vpt_deep", {"num_tokens": 3, "pool_prompts": True}),
    "vpt_deep_swin": ("vpt_deep", {"num_tokens": 2, "pool_prompts": True}),
    "vpt_deep_vit": ("vpt_deep", {"num_tokens": 4}),
    "vpt_deep_vit_project": ("vpt_deep", {"num_tokens": 3, "project_width": 16}),
    "vpt_pad_convnext": ("vpt_pad", {"num_tokens": 4}),
    "vpt_pad_resnet": ("vpt_pad", {"num_tokens": 3}),
    "vpt_shallow_swin": ("vpt_shallow", {"num_tokens": 3, "pool_prompts": True}),
    "vpt_shallow_vit": ("vpt_shallow", {"num_tokens": 5}),
}

# role in a file -> name of the tensor here; {head} is the path of the classifier, {last} of its
# last layer, which differs for an MLP head, and {stem} of the layer that reads the image
NAMES: tuple[tuple[str, str], ...] = (
    (r"head\.(weight|bias)", r"{last}.\1"),
    (r"head\.hidden\.(\d)\.(linear|bn)\.(\w+)", r"{head}.\2\1.\3"),
    (r"prompt\.layer0(\d)", r"blocks.\1.prompts.tokens"),
    (r"prompt\.proj\.(weight|bias)", r"blocks.0.prompts.projection.\1"),
    (r"prompt\.(layers\.\d\.blocks\.\d)", r"\1.prompts.tokens"),
    (r"prompt\.(top_bottom|left_right)", r"{stem}.\1"),
    (r"head\.(bn\.\w+)", r"{head}.\1"),
    (r"blocks\.(\d)\.adapter\.(.+)", r"blocks.\1.{adapter}.\2"),
    (r"blocks\.(\d)\.adapter_attn\.(.+)", r"blocks.\1.attn.proj.adapter.\2"),
    (r"blocks\.(\d)\.convpass_attn\.(.+)", r"blocks.\1.block.norm1.adapter.\2"),
    (r"blocks\.(\d)\.convpass_mlp\.(.+)", r"blocks.\1.block.norm2.adapter.\2"),
    (r"blocks\.(\d)\.repadapter_attn\.(.+)", r"blocks.\1.attn.qkv.adapter.\2"),
    (r"blocks\.(\d)\.repadapter_mlp\.(.+)", r"blocks.\1.mlp.fc1.adapter.\2"),
    # behind the last block, which the released code does on ConvNeXt alone
    (r"stages\.ssf_(scale|shift)", r"stages.3.blocks.0.adapter.\1"),
    (r"stages\.3\.blocks\.0\.(.+)\.ssf_(scale|shift)", r"stages.3.blocks.0.base.\1.adapter.\2"),
    (r"(.+)\.ssf_(scale|shift)", r"\1.adapter.\2"),
    (r"fact\.(u|v)", r"blocks.0.attn.qkv.delta.factors.\1"),  # shared by all blocks
    (r"fact\.(core|p)", r"blocks.0.attn.qkv.delta.tucker.\1"),
    (r"fact\.blocks\.(\d)\.attn\.(q|k|v)\.core", r"blocks.\1.attn.qkv.delta.core.\2"),
    (r"fact\.blocks\.(\d)\.(attn|mlp)\.(\w+)\.core", r"blocks.\1.\2.\3.delta.core.\3"),
    (r"blocks\.(\d)\.attn\.lora_(q|v|qkv)\.(a|b)", r"blocks.\1.attn.qkv.delta.\3.\2"),
    (r"side\.(alpha|projection\.weight)", r"\1"),
    (r"(side\.features\..+)", r"\1"),
    (r"backbone\.(.+)", r"\1"),
)

# where the one adapter of a block stands, relative to the block
ADAPTER = {"adapter_plus": "adapter", "adaptformer": "block.norm2.adapter"}

# meta.timm holds these constructor arguments as words
WORDS = {"basic": BasicBlock}

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
    module, _, cls = golden.meta["timm"]["cls"].rpartition(".")
    kwargs = {
        k: WORDS.get(v, v) if isinstance(v, str) else v
        for k, v in golden.meta["timm"]["kwargs"].items()
    }
    model = getattr(importlib.import_module(module), cls)(**kwargs).eval()
    classifier = {id(p) for p in model.get_classifier().parameters()}
    keys = model.load_state_dict(golden.under("backbone"), strict=False)
    assert not keys.unexpected_keys
    parameters = dict(model.named_parameters())
    assert all(k not in parameters or id(parameters[k]) in classifier for k in keys.missing_keys)
    assert not [k for k in keys.missing_keys if ".running_" in k]
    return model


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


def our_name(role: str, places: dict[str, str]) -> str:
    for pattern, name in NAMES:
        match = re.fullmatch(pattern, role)
        if match:
            return match.expand(name).format(**places)
    raise AssertionError(f"role {role!r} has no name in NAMES")


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
        self.tuned: Tuned = apply(
            METHODS[method](**options), backbone, self.anatomy, num_classes, generator
        )
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

    def tensor(self, role: str) -> Tensor:
        """Our parameter or buffer for a role; buffers are looked up anew after a conversion."""
        name = our_name(role, self.places)
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


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach(), expected.to(actual.dtype), rtol=0.0, atol=tolerance)


FILES = pytest.mark.parametrize("name", sorted(CASES))


def test_every_golden_file_is_compared() -> None:
    methods = {path.stem for path in GOLDEN.glob("*.npz") if not path.stem.startswith("backbone_")}
    assert methods == set(CASES)


@FILES
def test_the_plain_backbone_is_the_one_of_the_file(name: str) -> None:
    golden = read(name)
    model = build(golden).double()
    with torch.no_grad():
        features = model.forward_features(golden.tensors["x"].double())
        pooled = model.forward_head(features, pre_logits=True)
    plain = golden.tensors.get("out64/plain_pooled", golden.tensors["out64/pooled"])
    assert_close(pooled, plain, 1e-12)


@FILES
def test_the_same_tensors_train(name: str) -> None:
    run = Run(name, torch.float32)
    tuned = run.tuned
    ours = [our_name(role, run.places) for role in run.golden.trainable]
    assert sorted(ours) == sorted(tuned.trainable)
    count = run.golden.meta["trainable_count"]
    assert count["head"] == sum(p.numel() for p in tuned.head_params.values())
    assert count["method"] == tuned.method.expected_params(run.anatomy)


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
        loss = F.cross_entropy(logits, run.labels)
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


@FILES
def test_features_gradients_and_three_steps_are_the_official_ones(name: str) -> None:
    values, _, noise = exact(name)
    check_float64(read(name), values, noise)


@pytest.mark.arithmetic
@FILES
def test_float32_is_float64_but_for_its_rounding(name: str) -> None:
    values, steady, noise = exact(name)
    single, _ = computed(Run(name, torch.float32))
    found = difference(single, values)
    for kind in steady_kinds(steady) & found.keys():
        assert found[kind] <= TERMS * noise[kind], (kind, found[kind], noise[kind])
    # in front of the first corner that is near
    assert abs(float(single["losses"]["0"] - values["losses"]["0"])) <= TERMS * noise["losses"]


def test_the_steps_of_all_files_but_those_with_corners_are_compared_in_float32() -> None:
    turned = {name for name in CASES if exact(name)[1] < 3}
    assert turned <= {"sidetune_vit", "vpt_pad_resnet", "partial0_resnet_trainbn"}


# a thousandth more of what a method scales with
MISTAKES = {
    "lora_qv_vit": {"rank": 4, "alpha": 4.004, "targets": ["q", "v"]},
    "convpass_vit": {"bottleneck": 8, "scale": 0.5005},
    "repadapter_block_vit": {"bottleneck": 8, "groups": 2, "scale": 0.7007},
    "fact_tt_vit": {"rank": 4, "scale": 0.5005},
}


@pytest.mark.arithmetic
@pytest.mark.parametrize("name", MISTAKES)
def test_a_scale_that_is_wrong_by_a_thousandth_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, _, noise = exact(name)
    monkeypatch.setitem(CASES, name, (CASES[name][0], MISTAKES[name]))
    wrong, _ = computed(Run(name, torch.float64))
    with pytest.raises(AssertionError):
        check_float64(read(name), wrong, noise)
    single, _ = computed(Run(name, torch.float32))
    found = difference(single, values)
    assert found["logits"] > TERMS * noise["logits"]
    # the stored float32 values tell it as well, without those in float64
    expected, mine = stored(read(name), wrong)
    assert difference(mine, expected)["gradients"] > STORED * noise["gradients"]


def test_generated_tensors_begin_as_the_file_says() -> None:
    golden = read("sidetune_vit")
    spots = golden.under("spot")
    assert spots.keys() == golden.meta["generated"].keys()
    for role, expected in spots.items():
        assert torch.equal(generated(golden.meta["generated"][role]).flatten()[:8], expected)


@pytest.mark.parametrize(
    "name", [n for n in sorted(CASES) if read(n).under("merged") and n != "ssf_convnext"]
)
def test_merged_weights_are_the_official_ones(name: str) -> None:
    run = Run(name, torch.float64)
    run.model.eval()
    merged = run.tuned.method.merge(run.model)
    expected = {k: t.double() for k, t in run.golden.under("backbone").items()}
    expected |= run.golden.under("merged")
    state = merged.state_dict()
    for key, tensor in expected.items():
        assert_close(state[key], tensor, EXACT)
    with torch.no_grad():
        assert_close(merged(run.x), run.golden.tensors["out64/logits"], EXACT)


def test_the_released_ssf_on_convnext_folds_all_pairs_but_the_last() -> None:
    """It stands in front of the pooling and of a norm, where no weight can take it."""
    run = Run("ssf_convnext", torch.float64)
    run.model.eval()
    with pytest.raises(NotMergeable, match=r"'stages\.3\.blocks\.0'"):
        run.tuned.method.merge(run.model)
    assert fold(run.model) == ["stages.3.blocks.0"]
    state = run.model.state_dict()
    merged = run.golden.under("merged")
    assert merged
    for key, tensor in merged.items():
        ours = key.replace("stages.3.blocks.0.", "stages.3.blocks.0.base.")
        assert_close(state[ours], tensor, EXACT)
    with torch.no_grad():
        assert_close(run.model(run.x), run.golden.tensors["out64/logits"], EXACT)
