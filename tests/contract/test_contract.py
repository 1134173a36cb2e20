"""What every registered method promises, on every tiny backbone.

The registry is enumerated, so a new method is held to all of this without a test of its own. Which
backbones a built-in one supports is read from `docs/support.md`, which `make docs` writes, so that
support changes only with a line of that page.
"""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from support.documents import supported
from support.rounding import TERMS, assert_alike, round_outputs
from support.tiny_backbones import TINY, anatomy_of, fill, fresh, images
from support.tuners import FITTING, FOLDED_IN_FLOAT32, QUICK
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import NotMergeable, Unsupported
from peftbench.methods import METHODS, Method, Tuned, apply, discover
from peftbench.methods.layers.solvable import Solvable
from peftbench.spec import Preprocessing
from peftbench.training.loop import Fittable, Objective

discover()

# built-in methods with their default hyper-parameters, and the tiny backbones on which each works
SUPPORTED: Mapping[str, frozenset[str]] = supported()

# hyper-parameters that take another path through the code, with the backbones where they do
VARIANTS: Mapping[str, tuple[tuple[dict[str, object], frozenset[str]], ...]] = {
    "adapter": (
        ({"position": "houlsby", "learned_scale": "scalar"}, frozenset({"vit", "swin"})),
        ({"position": "parallel_norm"}, frozenset({"vit", "swin_v2"})),
        ({"position": "pre", "dropout": 0.1}, frozenset({"vit_registers", "swin", "convnext"})),
        ({"position": "pfeiffer", "train_norms": True}, frozenset({"vit", "resnet_basic"})),
    ),
    "adaptformer": (({"variant": "released", "bias": False}, frozenset({"vit", "mixer"})),),
    "arc": (
        ({"variant": "released", "rank": 3}, frozenset({"swin"})),
        ({"branches": "attention", "dropout": 0.1}, frozenset({"vit"})),
    ),
    "bi_adaptformer": (({"bits": 3, "binary_head": True}, frozenset({"vit", "convnext"})),),
    "bi_lora": (
        ({"bits": 4, "dropout": 0.0, "targets": ["v", "fc1"]}, frozenset({"vit", "beit"})),
    ),
    "bias": (({"variant": "released"}, frozenset({"swin", "beit", "vit"})),),
    "conv_adapter": (  # a narrow rectifier may be off for all images
        (
            {"placement": "conv_sequential", "activation": "gelu"},
            frozenset({"resnet_bottleneck"}),
        ),
        ({"placement": "residual_parallel", "kernel_size": 1}, frozenset({"efficientnet"})),
        ({"placement": "residual_sequential"}, frozenset({"swin"})),
        ({"variant": "released", "activation": "gelu"}, frozenset({"swin", "resnet_basic"})),
    ),
    "cara": (({"bias": False, "num_heads": 4, "rank": 3}, frozenset({"vit", "swin", "beit"})),),
    "convpass": (
        ({"branches": "attention", "conv_init": "xavier"}, frozenset({"vit", "swin", "beit"})),
    ),
    "cvpt": (
        ({"insert": 1}, frozenset({"swin"})),
        ({"insert": 2}, frozenset({"vit_registers", "beit"})),
        ({"insert": 4}, frozenset({"vit", "eva_split"})),
        ({"insert": 5, "dropout": 0.0}, frozenset({"swin"})),
    ),
    "e2vpt": (
        (
            {"share_kv": False, "deep_kv": False, "masks": False},
            frozenset({"vit_average", "swin"}),
        ),
        ({"pool_prompts": True, "project_width": 7}, frozenset({"vit_map"})),
    ),
    "dtl": (
        ({"fusion_size": 3, "beta": 3.0}, frozenset({"vit", "swin", "convnext"})),
        (
            {"read_out": "backbone", "gather_blocks": [1], "add_blocks": [1]},
            frozenset({"vit_registers", "swin"}),
        ),
    ),
    "da_vpt": (
        (
            {"cls_type": "key", "proxy_for_cls": "query", "proxy_for_patches": "key"}
            | {"criterion": "proxynca", "train_biases": ["k", "v", "fc1", "norm"]},
            frozenset({"vit"}),
        ),
        ({"cls_weight": 0.0, "mask": False, "proxy_prompts": 3}, frozenset({"vit_average"})),
    ),
    "fact_tk": (
        ({"variant": "released", "rank": 3}, frozenset({"vit", "swin"})),
        ({"dropout": 0.0, "rank": 3}, frozenset({"swin_v2", "beit", "eva_fused"})),
    ),
    "fact_tt": (({"dropout": 0.0, "rank": 3}, frozenset({"swin_v2", "beit", "eva_fused"})),),
    **{name: ((dict(sizes), frozenset({"vit"})),) for name, sizes in FITTING.items()},
    "glora": (
        ({"path": "vector/lora_2/none/none/none"}, frozenset({"beit", "efficientnet"})),
        ({"path": "vector/vector/none/none/vector", "variant": "released"}, frozenset({"vit"})),
        ({"path": "none/none/none/none/none", "paths": ("1.fc1:lora/none/lora/constant/none",)},)
        + (frozenset({"vit"}),),
    ),
    "hf_lora": (({"targets": ["proj", "fc1", "fc2"]}, frozenset({"beit", "swin_v2"})),),
    "gps": (({"per_row": 2, "loss": "cross_entropy"}, frozenset({"vit", "swin_v2"})),),
    "hst": (
        (
            {
                "side_widths": [6, 8],
                "side_heads": [2, 4],
                "stage_ends": [0, 1],
                "meta_tokens": 2,
                "train_norms": False,
            },
            frozenset({"vit", "vit_registers"}),
        ),
    ),
    "kadaptation": (
        ({"variant": "released", "num_products": 8}, frozenset({"vit", "beit"})),
        ({"rule_rank": 2, "rank": 2, "bias": True, "dropout": 0.0}, frozenset({"vit"})),
    ),
    "lora": (
        (
            {"targets": ["q", "k", "v", "proj", "fc1", "fc2"], "rank": 2, "alpha": 8.0},
            frozenset({"vit", "swin", "beit", "eva_split"}),
        ),
        ({"targets": ["qkv"], "dropout": 0.1}, frozenset({"vit", "swin"})),
        ({"targets": ["fc1", "fc2"]}, frozenset({"convnext", "convnext_conv", "mixer"})),
        (
            {"targets": ["conv", "pointwise"], "dropout": 0.1},
            frozenset({"resnet_bottleneck", "efficientnet"}),
        ),
        ({"targets": ["conv"]}, frozenset({"convnext"})),  # depthwise
    ),
    "lst": (
        (
            {"gate": "none", "mix": "after", "norm": "post", "side_layers": [1]},
            frozenset({"vit", "beit"}),
        ),
    ),
    "mam": (({"mid_dim": None, "bottleneck": 5, "norm": "in"}, frozenset({"eva_fused"})),),
    "mlp": (({"num_layers": 2, "dropout": 0.0}, frozenset({"vit"})),),
    "parallel_adapter": (
        ({"norm": "out"}, frozenset({"vit"})),
        ({"learned_scale": True}, frozenset({"convnext"})),
        ({"norm": "in", "bottleneck": 5, "dropout": 0.1}, frozenset({"swin"})),
    ),
    "pace_adapter": (
        ({"kind": "lora_add", "rank": 3}, frozenset({"vit", "eva_split"})),
        ({"kind": "vpt_add", "rank": 2}, frozenset({"vit", "swin"})),
    ),
    "noah": (
        ({"prompts": [2, 0], "lora": [0, 3], "adapters": [1, 4]}, frozenset({"vit"})),
        ({"prompts": [3, 2], "lora": [1, 0], "adapters": [0, 2]}, frozenset({"vit_average"})),
    ),
    "partial": (
        ({"num_blocks": 2}, frozenset({"swin", "convnext", "efficientnet"})),
        ({"unit": "stage"}, frozenset({"swin", "convnext", "resnet_basic"})),
    ),
    "prefix": (
        ({"mid_dim": None, "num_tokens": 3, "dropout": 0.1}, frozenset({"swin", "beit"})),
        ({"mid_dim": 5, "num_tokens": 3}, frozenset({"vit_registers"})),
    ),
    "pro_tuning": (({"stages": 2, "reduction": 2}, frozenset({"vit_average"})),),
    "repadapter": (({"groups": 1, "bottleneck": 3}, frozenset({"vit"})),),
    "rlrr": (({"norms": False, "shift": False}, frozenset({"vit", "beit"})),),
    "sct": (
        ({"mode": "mlp"}, frozenset({"vit", "swin", "convnext_conv"})),
        ({"mode": "qkv", "channels": 5}, frozenset({"vit_registers", "swin", "eva_split"})),
    ),
    "sidetune": (
        (
            {"side": "backbone"},
            frozenset({"vit", "vit_map", "swin", "beit", "convnext", "efficientnet", "mixer"}),
        ),
        ({"side": "backbone", "alpha": 1.0}, frozenset({"resnet_bottleneck"})),
        ({"side": "backbone", "side_depth": 2}, frozenset({"vit_average", "eva_split"})),
    ),
    "snell": (
        ({"form": "klora", "rank": 4, "class_token": False}, frozenset({"vit", "beit"})),
        ({"form": "snella", "rank": 4, "threshold": 0.5}, frozenset({"vit"})),
    ),
    "spt_adapter": (
        ({"budget": 2.0, "unit": 1000.0, "rank": 2, "alpha": 2.0}, frozenset({"vit", "convnext"})),
    ),
    "spt_lora": (
        ({"budget": 2.0, "unit": 1000.0, "rank": 2, "alpha": 2.0}, frozenset({"vit", "swin"})),
        (
            {"budget": 2.0, "unit": 1000.0, "rank": 2, "alpha": 3.0, "dropout": 0.0},
            frozenset({"beit", "eva_split"}),
        ),
    ),
    "ssf": (({"variant": "released"}, frozenset({"swin", "convnext", "vit"})),),
    "vera": (({"rank": 3, "dropout": 0.1, "targets": ("k", "proj", "fc1")}, frozenset({"vit"})),),
    "vpt_deep": (
        ({"project_width": 7}, frozenset({"vit"})),
        ({"pool_prompts": True, "dropout": 0.1}, frozenset({"vit_average", "vit_map", "swin"})),
        ({"location": "append"}, frozenset({"vit_registers", "vit_average"})),
    ),
    "vpt_pad": (({"num_tokens": 1}, frozenset({"resnet_basic"})),),
    "vpt_shallow": (
        ({"pool_prompts": True}, frozenset({"vit_average", "swin"})),
        ({"location": "append", "pool_prompts": True}, frozenset({"vit_average"})),
        (
            {"location": "below", "num_tokens": 2},
            frozenset({"vit", "swin", "convnext", "resnet_basic", "efficientnet", "mixer"}),
        ),
    ),
}

# tensors that cannot change the output of the bare backbone, whatever trains them
IRRELEVANT: Mapping[str, tuple[str, ...]] = {
    # one constant for all keys of a query, which the softmax cancels
    "vit_registers": ("blocks.*.attn.k_norm.bias",),
    # one constant for all channels of a token, which every later LayerNorm cancels
    "mixer": ("blocks.*.mlp_tokens.fc2.bias",),
}

# tensors of methods that decide something, and change the output in jumps: they are moved farther
DECIDING: Mapping[str, tuple[str, ...]] = {"dyt": ("*.router.*",)}

# tensors of methods that change patch tokens behind the last attention, which a class token that
# is read out cannot see
BEHIND_ATTENTION: Mapping[str, tuple[str, ...]] = {"dyt": ("blocks.1.*.router.*",)}

# mergeable methods whose changes have no place in this backbone: a key projection or, under a norm
# in front of the blocks, a patch embedding without a bias; a pair behind the last block; other
# convolutions without a bias
NOT_FOLDABLE = frozenset(
    ("ssf-eva_split", "ssf-vit_registers", "ssf-convnext-variant=released")
    + ("arc-swin-variant=released,rank=3",)
    + ("pace_adapter-eva_split", "pace_adapter-eva_split-kind=lora_add,rank=3")
    + ("ssf-hornet_gf", "ssf-internimage", "ssf-internimage_post_norm", "ssf-hat_net")
)

# tensors that start at values that are neither random nor all equal: identity kernels
# or what is found in weights and images
GIVEN: Mapping[str, tuple[str, ...]] = {
    "convpass": ("*.adapter.conv.weight",),
    "hf_dora": ("*.lora_magnitude_vector.*",),
    "hf_eva": ("*.lora_A.*",),
    "hf_frod": ("*.frod_lambda_l.*",),
    "hf_olora": ("*.lora_?.*",),
    "hf_osf": ("*.osf_svd_params.*",),
    "hf_pissa": ("*.lora_?.*",),
    "hf_pvera": ("*.pvera_lambda_d.*",),
    "hf_vera": ("*.vera_lambda_d.*",),
    "mona": ("*.gamma",),  # all 1e-6, whose deviation is rounding
}

# a tuner of peft is one module on one kind of layer, whatever the family around it
TUNERS_ON = frozenset({"vit", "resnet_bottleneck"})
# where the pretrained function is met up to the float32 in which peft decomposes the weights
ROUNDED_AT_INIT = frozenset({"hf_dora", "hf_deft", "hf_frod", "hf_olora", "hf_pissa"})

# backbones of the architectures that timm lacks, and of GhostNet; and the methods that the default
# suite takes there: weights, branches, the stream, every operation
SEEDS = frozenset(
    ("hornet", "hornet_gf", "revcol", "internimage", "internimage_post_norm")
    + ("hat_net", "g_ghost", "ghostnet")
)
OFTEN = ("lora", "adapter", "convpass", "ssf")

# methods that reach every path of surgery between them: the default suite takes each on every
# family; any other method of the package on the first two of USUAL that it supports
ON_EVERY_FAMILY = frozenset(("adapter", "bias", "convpass", "lora", "ssf", "vpt_deep"))
USUAL = ("vit", "swin", "convnext", "resnet_bottleneck")

CLASSES = 7
BATCH = 3


@dataclass(frozen=True)
class Case:
    """One method with its hyper-parameters on one tiny backbone."""

    method: Method
    backbone: str
    label: str


def _quick(name: str) -> Method:
    """With default hyper-parameters but for the length of a search."""
    return METHODS[name](**QUICK.get(name, {}))


def _cases(expect: Callable[[str, str], bool | None]) -> Iterator[Case]:
    """Default hyper-parameters on every backbone, then the variants; `expect` filters the first."""
    for name in METHODS:
        for backbone in TINY:
            if expect(name, backbone) is not False:
                yield Case(_quick(name), backbone, f"{name}-{backbone}")


def _expected(name: str, backbone: str) -> bool | None:
    """Whether the table says that the pair works; None for methods that it does not know."""
    if name.startswith("hf_") and backbone not in TUNERS_ON:
        return False
    return backbone in SUPPORTED[name] if name in SUPPORTED else None


def _variants() -> Iterator[Case]:
    for name, variants in VARIANTS.items():
        for options, backbones in variants:
            text = ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "")
            for backbone in TINY:
                if backbone in backbones:
                    yield Case(METHODS[name](**options), backbone, f"{name}-{backbone}-{text}")


def _is_rare(case: Case) -> bool:
    """Whether a case is for the slow suite.

    Most methods on architectures that timm lacks are, tuners of peft on convolutions, and methods
    that are not in `ON_EVERY_FAMILY` on what is not usual.
    """
    name = case.method.name
    if name.startswith("hf_"):
        return case.backbone != "vit"
    if name in SUPPORTED and name not in ON_EVERY_FAMILY:
        usual = [backbone for backbone in USUAL if backbone in SUPPORTED[name]]
        # a variant on the first of them, as it takes another path through the code
        chosen = usual[:2] if case.method == METHODS[name]() else usual[:1]
        return case.backbone not in chosen
    return case.backbone in SEEDS and name not in OFTEN


def _marked(case: Case) -> ParameterSet:
    rare = _is_rare(case)
    return pytest.param(case, id=case.label, marks=pytest.mark.slow if rare else ())


def _fewer(cases: list[Case]) -> list[Case]:
    """The cases with RARE_PAIRS of the rare ones, or all of them where that is not set."""
    rare = [case for case in cases if _is_rare(case)]
    number = min(int(os.environ.get("RARE_PAIRS", len(rare))), len(rare))
    kept = {case.label for case in random.Random(0).sample(rare, number)}
    return [case for case in cases if not _is_rare(case) or case.label in kept]


PAIRS = [
    Case(METHODS[n](), b, f"{n}-{b}")
    for n in METHODS
    for b in TINY
    if b in TUNERS_ON or not n.startswith("hf_")
]
WORKING = _fewer([*_cases(_expected), *_variants()])
IN_PLACE = [
    case for case in WORKING if case.backbone == "efficientnet" and not case.method.card.solved
]


def _attach(case: Case, seed: int = 0) -> Tuned:
    method, backbone, anatomy = case.method, fresh(case.backbone), anatomy_of(case.backbone)
    prepared = None
    if method.looks_at_images:
        seen = [(images(case.backbone, 8, seed=each), labels(8)) for each in range(2)]
        method.check(anatomy)
        generator = torch.Generator().manual_seed(seed)
        prepared = method.prepare(backbone, anatomy, seen, generator)
    generator = torch.Generator().manual_seed(seed)
    return apply(method, backbone, anatomy, CLASSES, generator, prepared)


def _attach_or_skip(case: Case) -> Tuned:
    """A third-party method may refuse a backbone; for built-in ones the table decides."""
    try:
        return _attach(case)
    except Unsupported as e:
        if case.method.name in SUPPORTED:
            raise
        pytest.skip(str(e))


@pytest.fixture(scope="module", params=map(_marked, WORKING))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def initial(case: Case) -> Tuned:
    """As attached with seed 0. Tests must leave it as it is."""
    return _attach_or_skip(case)


@pytest.fixture(scope="module")
def moved(case: Case, initial: Tuned) -> Tuned:
    """Every tensor that may train is away from its initial value. Tests must leave it as it is."""
    tuned = _attach(case)
    fill(tuned.trainable | tuned.changing_buffers, seed=1)
    return tuned


@pytest.fixture(scope="module")
def moved64(moved: Tuned) -> Tuned:
    """`moved` in float64. Its `changing_buffers` are stale: conversion makes new buffers."""
    tuned = copy.deepcopy(moved)
    tuned.model.double()
    return tuned


def head_of(tuned: Tuned) -> nn.Module:
    """The classifier: it holds the parameters of the head, whatever is wrapped around it."""
    ids = {id(p) for p in tuned.head_params.values()}
    path = tuned.anatomy.head
    (head,) = (
        module
        for name, module in tuned.model.named_modules()
        if f".{name}".endswith(f".{path}") and {id(p) for p in module.parameters()} == ids
    )
    return head


def features_before(head: nn.Module, model: nn.Module, x: Tensor) -> Tensor:
    """What `head` receives when `model` sees `x`."""
    received: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    try:
        with torch.no_grad():
            model(x)
    finally:
        handle.remove()
    (features,) = received
    return features


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those left out of state dicts too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in everything(model).items()}


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names whose values are not bit-identical."""
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def assert_same_output(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    """Equal up to the order of sums."""
    with torch.no_grad():
        assert_alike(a.eval()(x), b.eval()(x))


def labels(batch: int = BATCH) -> Tensor:
    return torch.arange(batch) % CLASSES


def outside_head(names: Mapping[str, object], anatomy: Anatomy) -> list[str]:
    return [n for n in names if n != anatomy.head and not n.startswith(f"{anatomy.head}.")]


def can_matter(case: Case, tuned: Tuned) -> dict[str, nn.Parameter]:
    """The trainable tensors without those that the architecture itself cancels."""
    cancelled = IRRELEVANT.get(case.backbone, ())
    return {
        name: parameter
        for name, parameter in tuned.trainable.items()
        if name in tuned.method_params or not any(fnmatchcase(name, p) for p in cancelled)
    }


def solve(tuned: Tuned, x: Tensor) -> None:
    """Compute a head that takes no steps from what it sees of images (B, 3, S, S)."""
    seen: list[Tensor] = []
    watch = head_of(tuned).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tuned.model.eval()(x)
    watch.remove()
    (features,) = seen
    tuned.solve(Solvable(features.numpy(), labels(len(x)).numpy(), CLASSES))


def minimised(tuned: Tuned, x: Tensor) -> Tensor:
    """What a step of training minimises for images (B, 3, S, S), in the mode that the model has."""
    fittable = Fittable(
        tuned.model,
        list(tuned.trainable.values()),
        tuned.train,
        Preprocessing(size=x.shape[-1], mean=(0.0,) * 3, std=(1.0,) * 3),
        tuned.regulariser,
        CLASSES,
        objective=tuned.objective,
    )
    total: Tensor = Objective(fittable, 0.0)(x, labels(len(x)))[0]
    return total


def step(tuned: Tuned, x: Tensor, lr: float = 0.1) -> None:
    """One step of plain gradient descent in the modes of training, or what stands in its place."""
    if tuned.method.card.solved:
        return solve(tuned, x)
    tuned.train()
    parameters = list(tuned.trainable.values())
    minimised(tuned, x).backward()
    torch.optim.SGD(parameters, lr=lr).step()
    for parameter in parameters:
        parameter.grad = None


# ------------------------------------------------------------------- which pairs work


def test_every_built_in_method_has_a_row_in_the_table_of_supported_backbones() -> None:
    built_in = {n for n in METHODS if METHODS[n].__module__.startswith("peftbench.methods.")}
    assert built_in == set(SUPPORTED), "run `make docs`"
    assert set().union(*SUPPORTED.values()) == set(TINY)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.label)
def test_a_pair_works_or_is_refused_with_a_reason_before_anything_changes(pair: Case) -> None:
    backbone, anatomy = fresh(pair.backbone), anatomy_of(pair.backbone)
    modules, before = list(backbone.named_modules()), snapshot(backbone)
    expected = _expected(pair.method.name, pair.backbone)
    try:
        pair.method.check(anatomy)
        tuned = apply(pair.method, backbone, anatomy, CLASSES, torch.Generator().manual_seed(0))
    except Unsupported as e:
        assert expected is not True, f"this pair used to work: {e}"
        assert list(backbone.named_modules()) == modules
        assert not differing(before, snapshot(backbone))
        _assert_is_a_reason(str(e), pair)
    else:
        assert expected is not False, "this pair works now: run `make docs`"
        with torch.no_grad():
            logits = tuned.model(images(pair.backbone, 2))
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()


def _assert_is_a_reason(message: str, pair: Case) -> None:
    """What was asked and what was found, as one line that ends in a full stop."""
    assert message == message.strip() and "\n" not in message and message.endswith(".")
    assert pair.method.name in message
    assert anatomy_of(pair.backbone).family in message


def test_a_refusal_says_what_to_do() -> None:
    advice = re.compile(r"\b(use|set|choose|describe|try)\b", re.IGNORECASE)
    silent = {}
    for pair in PAIRS:
        try:
            pair.method.check(anatomy_of(pair.backbone))
        except Unsupported as e:
            if not advice.search(str(e)):
                silent[pair.label] = str(e)
    assert not silent


@pytest.mark.parametrize(
    "options, backbone",
    [
        ({"targets": ["q"]}, "convnext"),
        ({"targets": ["conv"]}, "vit"),
        ({"targets": ["pointwise"]}, "convnext"),
        ({"targets": ["qkv"]}, "eva_split"),
        ({"dropout": 0.1}, "beit"),  # never passes its input to the adapted layer
        ({"dropout": 0.1}, "swin_v2"),
    ],
)
def test_lora_refuses_targets_that_a_backbone_lacks(options: dict, backbone: str) -> None:
    pair = Case(METHODS["lora"](**options), backbone, "lora")
    with pytest.raises(Unsupported) as caught:
        pair.method.check(anatomy_of(backbone))
    _assert_is_a_reason(str(caught.value), pair)


@pytest.mark.parametrize(("unit", "count"), [("block", 3), ("stage", 2)])
def test_partial_refuses_more_than_there_is(unit: str, count: int) -> None:
    pair = Case(METHODS["partial"](num_blocks=count + 1, unit=unit), "swin", "partial")
    with pytest.raises(Unsupported, match=f"last {count + 1} {unit}s") as caught:
        pair.method.check(anatomy_of("swin"))
    _assert_is_a_reason(str(caught.value), pair)
    METHODS["partial"](num_blocks=count, unit=unit).check(anatomy_of("swin"))


# ------------------------------------------------------------------- what is counted


def test_head_and_method_are_counted_apart_and_agree_with_the_closed_form(
    case: Case, initial: Tuned
) -> None:
    anatomy = anatomy_of(case.backbone)
    added, unfrozen, head = initial.method_params, initial.unfrozen_params, initial.head_params
    counted = sum(p.numel() for p in (*added.values(), *unfrozen.values()))
    assert counted == initial.method.expected_params(anatomy)  # with what images decided
    assert not (added.keys() & unfrozen.keys() | added.keys() & head.keys())
    assert not unfrozen.keys() & head.keys()
    bare = fresh(case.backbone)
    assert all(p.numel() for p in unfrozen.values())
    assert len(outside_head(dict(bare.named_parameters()), anatomy)) >= len(unfrozen)
    if case.method.card.head_only:
        assert not added and not unfrozen
    in_head = {n for n, p in initial.model.named_parameters() if n in head}
    assert in_head == head.keys() and {id(p) for p in head_of(initial).parameters()} == {
        id(p) for p in head.values()
    }


def test_exactly_the_declared_tensors_require_gradients_in_float32(initial: Tuned) -> None:
    parameters = dict(initial.model.named_parameters())
    assert {n for n, p in parameters.items() if p.requires_grad} == initial.trainable.keys()
    for name, parameter in initial.trainable.items():
        assert parameter is parameters[name]
        assert parameter.dtype is torch.float32
    for name, buffer in initial.changing_buffers.items():
        assert buffer is initial.model.get_buffer(name)


def test_touched_names_places_of_the_bare_backbone(case: Case, initial: Tuned) -> None:
    bare = fresh(case.backbone)
    places = dict(bare.named_modules()).keys() | dict(bare.named_parameters()).keys()
    assert set(initial.touched) <= places
    assert bool(initial.touched) != case.method.card.head_only


# ------------------------------------------------------------------- what a step may use


@pytest.mark.parametrize("case", IN_PLACE, ids=lambda case: case.label, indirect=True)
def test_a_step_in_bfloat16_gives_each_tensor_a_gradient_where_activations_work_in_place(
    case: Case,
) -> None:
    tuned = _attach_or_skip(case)
    tuned.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = tuned.model(images(case.backbone, BATCH))
    F.cross_entropy(logits.float(), labels()).backward()
    missing = [n for n, p in tuned.trainable.items() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in tuned.trainable.values() if p.grad is not None)


# ------------------------------------------------------------------- what it computes


def test_features_equal_those_of_the_bare_backbone_exactly_if_the_card_says_so(
    case: Case, initial: Tuned
) -> None:
    bare = fresh(case.backbone).double()
    x = images(case.backbone, BATCH, dtype=torch.float64)
    plain = features_before(bare.get_submodule(anatomy_of(case.backbone).head), bare, x)
    model = copy.deepcopy(initial)
    model.model.double().eval()
    tuned = features_before(head_of(model), model.model, x)
    difference = torch.tensor(torch.inf)  # of a feature of another width
    if tuned.shape == plain.shape:
        difference = (tuned - plain).abs().max() / plain.abs().max()
    # in float64: the same sums in another order give 1e-15, the weakest real change 1e-4
    tolerance = 1e-6 if case.method.name in ROUNDED_AT_INIT else 1e-13
    promised = case.method.card.identity_at_init
    other = case.method.not_identity(anatomy_of(case.backbone))
    assert promised or not other
    assert (difference <= tolerance) == (promised and not other)
    assert not other or any(other in note for note in initial.notes)


def not_proven(wanted: Mapping[str, nn.Parameter], model: nn.Module, x: Tensor) -> list[str]:
    """Names of the tensors for which gradients do not prove that the output depends on them.

    One backward pass speaks for all tensors, and takes less time than a forward pass for each. But
    a gradient may be of nothing that is computed, as a straight-through estimate is. So each tensor
    with a gradient g is moved by `tiny * g / |g|**2`, together: if the gradients are true, the
    output moves by `tiny` for each of them. If it does not, nothing is proven.
    """
    tiny = 1e-7
    weights = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def projected() -> Tensor:
        return (model(x) * weights).sum()

    found = torch.autograd.grad(projected(), list(wanted.values()), allow_unused=True)
    steep = {
        name: gradient / gradient.square().sum()
        for name, gradient in zip(wanted, found, strict=True)
        if gradient is not None and gradient.norm() > 1e-3
    }
    kept = {name: wanted[name].detach().clone() for name in steep}
    ends = []
    with torch.no_grad():
        for move in (tiny, -tiny):
            for name, direction in steep.items():
                wanted[name].copy_(kept[name] + move * direction)
            ends.append(float(projected()))
        for name, tensor in kept.items():
            wanted[name].copy_(tensor)
    moved_by = (ends[0] - ends[1]) / (2 * tiny)
    agree = abs(moved_by - len(steep)) < 0.1  # one that does nothing is missed by a whole 1
    return [name for name in wanted if not agree or name not in steep]


@torch.no_grad()
def change(model: nn.Module, name: str, seed: int, x: Tensor, steps: tuple[float, ...]) -> float:
    """How far the output for x (B, 3, S, S) moves at most with steps along noise on one tensor."""
    parameter = model.get_parameter(name)
    reference, kept = model(x), parameter.detach().clone()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    moved = []
    for step in steps:
        parameter.copy_(kept + step * noise)
        moved.append(float((model(x) - reference).abs().max()))
    parameter.copy_(kept)
    return max(moved)


def test_each_trainable_tensor_alone_changes_the_output(
    case: Case, initial: Tuned, moved64: Tuned
) -> None:
    """A tensor that is counted but not executed, or that cannot matter, shows here."""
    model = moved64.model.eval()
    x = images(case.backbone, 2, dtype=torch.float64)
    wanted = can_matter(case, moved64)
    if moved64.anatomy.tokens is not None and moved64.anatomy.tokens.pooled == "token":
        unseen = BEHIND_ATTENTION.get(case.method.name, ())
        wanted = {n: p for n, p in wanted.items() if not any(fnmatchcase(n, u) for u in unseen)}
    if not case.method.card.dead_at_init:  # what never leaves a start of zero would still matter
        unused = moved64.method.unmoved()
        wanted = {n: p for n, p in wanted.items() if not any(fnmatchcase(n, u) for u in unused)}
    deciding = DECIDING.get(case.method.name, ())

    def stays(of: nn.Module, name: str, index: int, seen: Tensor) -> bool:
        steps = (10.0, -10.0) if any(fnmatchcase(name, d) for d in deciding) else (0.1,)
        # a dead tensor gives 0 and the weakest live one 1e-8
        return change(of, name, index, seen, steps) < 1e-11

    still = {
        name: index
        for index, name in enumerate(not_proven(wanted, model, x))
        if stays(model, name, index, x)
    }
    if still:  # two images may pass no rectifier of a tiny net, and large biases may turn it off
        start = copy.deepcopy(initial.model).double().eval()
        more = images(case.backbone, 24, dtype=torch.float64)
        for of in (model, start):
            still = {n: i for n, i in still.items() if stays(of, n, i, more)}
    assert not still


def test_each_trainable_tensor_has_a_gradient_by_the_second_step(case: Case) -> None:
    """From the real initial values: the first step of a zero factor moves its partner only."""
    tuned = _attach_or_skip(case)
    tuned.model.double()
    x = images(case.backbone, 6, dtype=torch.float64)
    torch.manual_seed(0)
    step(tuned, x)
    for training in (True, False):
        tuned.train() if training else tuned.model.eval()
        loss = minimised(tuned, x)
        wanted = can_matter(case, tuned)
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        found = dict(zip(wanted, gradients, strict=True))
        assert not [n for n, g in found.items() if g is None or not g.isfinite().all()]
    still = {n for n in found if any(fnmatchcase(n, p) for p in tuned.method.unmoved())}
    assert bool(still) == bool(tuned.method.unmoved()), "unmoved() names no tensor"
    # in train mode batch normalisation cancels the shifts in front of it
    largest = {n: float(g.abs().max()) for n, g in found.items() if g is not None}
    # the least that works: 6e-14, of vectors around random matrices in front of a flat softmax
    assert {n for n in largest if largest[n] < 1e-14} == still
    assert not any(largest[n] for n in still)


# ------------------------------------------------------------------- what changes


def test_only_the_declared_tensors_change_after_a_step(case: Case) -> None:
    """All of them and nothing else, buffers included, though every parameter has a gradient."""
    tuned = _attach_or_skip(case)
    before = snapshot(tuned.model)
    if case.method.card.solved:
        solve(tuned, images(case.backbone, 4))
        changed = differing(before, snapshot(tuned.model))
        assert changed == tuned.trainable.keys() | tuned.changing_buffers.keys()
        return
    tuned.train()
    F.cross_entropy(tuned.model(images(case.backbone, 4)), labels(4)).backward()
    frozen = everything(tuned.model).keys() - tuned.trainable.keys()
    parameters = dict(tuned.model.named_parameters())
    assert all(parameters[name].grad is None for name in frozen & parameters.keys())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(list(tuned.trainable.values()), lr=0.1).step()
    changed = differing(before, snapshot(tuned.model))
    assert changed == tuned.trainable.keys() | tuned.changing_buffers.keys()


def test_frozen_modules_are_in_eval_mode_while_training(case: Case, initial: Tuned) -> None:
    """A module in train mode trains all it holds, unless the card says otherwise."""
    initial.model.train()
    initial.train()
    training = {n: m for n, m in initial.model.named_modules() if m.training}
    trainable = {id(p) for p in initial.trainable.values()}
    trainable |= {id(p) for m in initial.frozen_modules for p in m.parameters()}
    trainable |= {id(tensor) for tensor in initial.fixed.values()}
    partly = [n for n, m in training.items() if any(id(p) not in trainable for p in m.parameters())]
    assert not any(module in training.values() for module in initial.frozen_modules)
    assert head_of(initial) in training.values()
    if case.method.card.frozen_mode == "eval":
        assert not partly
    else:  # nothing is frozen
        assert training.keys() == dict(initial.model.named_modules()).keys()
    assert all(module in training.values() for module in initial.train_modules)
    initial.model.eval()


# ------------------------------------------------------------------- merging


def rounding_of_merging(case: Case, tuned: Tuned) -> float:
    """What one rounding of each module's output, and of each merged weight, does to the logits.

    Both in float64, relative to the largest logit: a large factor on a product of small ones, as in
    FacT, is rounded with the weights that it is added to.
    """
    x = images(case.backbone, BATCH, dtype=torch.float64)
    merged = case.method.merge(copy.deepcopy(tuned.model)).float().double()
    with torch.no_grad():
        exact = tuned.model.eval()(x)
        error = 0.0
        for model in (copy.deepcopy(tuned.model), merged):
            round_outputs(model)
            error += float((model.eval()(x) - exact).abs().max() / exact.abs().max())
    return error


@pytest.mark.arithmetic
# the hooks with which this test rounds outputs
@pytest.mark.filterwarnings("ignore:One of the base layers adapted with")
def test_merging_gives_the_plain_architecture_and_the_same_output(
    case: Case, moved: Tuned, moved64: Tuned
) -> None:
    method, anatomy = case.method, anatomy_of(case.backbone)
    reason = method.unmergeable(anatomy)
    assert bool(reason) == (case.label in NOT_FOLDABLE)
    assert any(reason in note for note in moved.notes) or not reason  # before it trains
    if not method.card.mergeable or case.label in NOT_FOLDABLE:
        with pytest.raises(NotMergeable, match=re.escape(method.name)):
            method.merge(copy.deepcopy(moved.model))
        return
    bare = fresh(case.backbone)
    # measured: 4e-14 in float64, relative to the largest logit
    if method.name in FOLDED_IN_FLOAT32:
        exact = rounding = 1e-6
    else:
        exact, rounding = 1e-10, TERMS * rounding_of_merging(case, moved64)
    for tuned, tolerance in ((moved64, exact), (moved, rounding)):
        dtype = next(tuned.model.parameters()).dtype
        x = images(case.backbone, BATCH, dtype=dtype)
        with torch.no_grad():
            expected = tuned.model.eval()(x)
            merged = method.merge(copy.deepcopy(tuned.model)).eval()
            error = (merged(x) - expected).abs().max() / expected.abs().max()
        assert error <= tolerance
        plain = bare.state_dict()
        state = merged.state_dict()
        kept = outside_head(plain, anatomy)
        assert outside_head(state, anatomy) == kept
        assert all(state[n].shape == plain[n].shape for n in kept)
        types = {n: type(m) for n, m in merged.named_modules()}
        plain_types = {n: type(m) for n, m in bare.named_modules()}
        assert [(n, types[n]) for n in outside_head(types, anatomy)] == [
            (n, plain_types[n]) for n in outside_head(plain_types, anatomy)
        ]


# ------------------------------------------------------------------- storing and copying


def test_saved_tensors_on_a_fresh_backbone_give_the_same_output(case: Case, moved: Tuned) -> None:
    x = images(case.backbone, BATCH)
    state = {name: tensor.clone() for name, tensor in moved.state().items()}
    known = moved.trainable.keys() | moved.changing_buffers.keys() | moved.fixed.keys()
    assert state.keys() == known
    stored = Case(moved.method, case.backbone, case.label)  # with what images decided
    again = _attach(stored, seed=5)
    again.load_state(state)
    assert not differing(state, again.state())
    assert_same_output(again.model, moved.model, x)


@pytest.mark.parametrize("method, backbone", [("lora", "vit"), ("mlp", "resnet_basic")])
def test_a_state_of_another_model_is_refused_and_changes_nothing(
    method: str, backbone: str
) -> None:
    case = Case(METHODS[method](), backbone, method)
    tuned = _attach(case)
    state = {name: tensor.clone() for name, tensor in _attach(case, seed=1).state().items()}
    before = snapshot(tuned.model)
    last = list(state)[-1]
    missing = {n: t for n, t in state.items() if n != last}
    for wrong in (missing, state | {"other": torch.zeros(1)}):
        with pytest.raises(ValueError, match="name"):
            tuned.load_state(wrong)
    with pytest.raises(ValueError, match=re.escape(last)):
        tuned.load_state(state | {last: torch.zeros(*state[last].shape, 2)})
    assert not differing(before, snapshot(tuned.model))


def test_a_deep_copy_is_complete_and_independent(case: Case, moved: Tuned) -> None:
    x = images(case.backbone, BATCH)
    before = snapshot(moved.model)
    twin = copy.deepcopy(moved)
    assert_same_output(twin.model, moved.model, x)
    assert twin.trainable.keys() == moved.trainable.keys()
    assert all(p is twin.model.get_parameter(n) for n, p in twin.trainable.items())
    assert all(b is twin.model.get_buffer(n) for n, b in twin.changing_buffers.items())
    own = {id(m) for m in twin.model.modules()}
    assert all(id(module) in own for module in twin.train_modules)
    step(twin, images(case.backbone, 4))
    assert not differing(before, snapshot(moved.model))


# ------------------------------------------------------------------- randomness


REPRESENTATIVE = ("vit", "swin", "beit", "convnext", "resnet_basic", "mixer")


def _drawn() -> Iterator[Case]:
    """Every method on each kind of backbone, every variant once.

    What draws the tensors of a method is the same code for all backbones of a kind.
    """
    yield from (case for case in _cases(_expected) if case.backbone in REPRESENTATIVE)
    first: dict[Method, Case] = {}
    for case in _variants():
        first.setdefault(case.method, case)
    yield from first.values()


@pytest.mark.parametrize("drawn", [*_drawn()], ids=lambda case: case.label)
def test_new_tensors_depend_on_the_generator_and_on_nothing_else(drawn: Case) -> None:
    initial = _attach_or_skip(drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        settled = Case(initial.method, drawn.backbone, drawn.label)  # images may decide otherwise
        same, other = _attach(drawn).state(), _attach(settled, seed=1).state()
    assert not differing(initial.state(), same)
    originals = list(fresh(drawn.backbone).parameters())
    random = {
        name
        for name, tensor in (initial.method_params | initial.head_params).items()
        if bool((tensor != tensor.flatten()[0]).any())  # a constant is not drawn
        and not any(torch.equal(tensor, original) for original in originals)  # nor a copy
        and not any(fnmatchcase(name, p) for p in GIVEN.get(drawn.method.name, ()))
    }
    assert random & initial.head_params.keys()
    assert random <= differing(initial.state(), other)


@dataclass(frozen=True)
class Outcome:
    """What one method did to one backbone in one step of training."""

    touched: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    logits: Tensor


def _outcomes(backbone: str, names: list[str]) -> dict[str, Outcome]:
    """Each method on a fresh backbone, one after another in the order of `names`."""
    x = images(backbone, 4, dtype=torch.float64)
    outcomes = {}
    for name in names:
        try:
            tuned = _attach(Case(_quick(name), backbone, name))
        except Unsupported:
            continue
        tuned.model.double()  # a step in float32 may go another way at a corner
        torch.manual_seed(0)
        step(tuned, x)
        shapes = tuple((n, tuple(p.shape)) for n, p in tuned.trainable.items())
        logits = tuned.model.eval()(x).detach()
        outcomes[name] = Outcome(tuned.touched, shapes, logits)
    return outcomes


def _known_on(backbone: str) -> list[str]:
    """The methods that are tried on a tiny backbone."""
    return [n for n in METHODS if backbone in TUNERS_ON or not n.startswith("hf_")]


@pytest.fixture(scope="module", params=REPRESENTATIVE)
def outcomes(request: pytest.FixtureRequest) -> tuple[str, dict[str, Outcome]]:
    return request.param, _outcomes(request.param, _known_on(request.param))


def test_no_two_methods_are_the_same_under_two_names(
    outcomes: tuple[str, dict[str, Outcome]],
) -> None:
    found = list(outcomes[1].items())
    twins = [
        (a, b)
        for i, (a, first) in enumerate(found)
        for b, second in found[:i]
        if (first.touched, first.shapes) == (second.touched, second.shapes)
        and torch.allclose(first.logits, second.logits)
    ]
    assert not twins


def test_a_method_does_the_same_whatever_was_applied_before(
    outcomes: tuple[str, dict[str, Outcome]],
) -> None:
    backbone, first = outcomes
    second = _outcomes(backbone, _known_on(backbone)[::-1])
    assert first.keys() == second.keys()
    for name, outcome in first.items():
        assert outcome.shapes == second[name].shapes
        torch.testing.assert_close(outcome.logits, second[name].logits, rtol=1e-9, atol=1e-9)
