"""What a refusal advises is taken by the same backbone."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator

import pytest
import torch
from support.odd_heads import ODD, odd
from support.tiny_backbones import TINY, anatomy_of, fresh

from peftbench.backbones import known
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Method, apply, discover

discover()

NAMES = list(json.loads(known.FILE.read_text(encoding="utf-8"))["names"])
# hyper-parameters under which other conditions of the methods are asked
SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    *((name, {}) for name in METHODS),
    ("lora", {"targets": ["q", "v"]}),
    ("lora", {"targets": ["conv"]}),
    ("adapter", {"position": "pfeiffer"}),
    ("adapter", {"position": "houlsby"}),
    ("adapter", {"position": "parallel_norm"}),
    ("adapter_vpt", {"reduction": 64}),
    ("convpass", {"branches": "attention"}),
    ("fact_tt", {"dropout": 0.0}),
    ("partial", {"num_blocks": 40}),
    ("repadapter", {"groups": 1, "bottleneck": 3}),
    ("sidetune", {"side": "backbone"}),
    ("vpt_deep", {"location": "append"}),
    ("vpt_shallow", {"project_width": 7}),
    ("vpt_shallow", {"location": "below"}),
)


def advised(text: str) -> list[str]:
    """Names of the methods behind "Use method=" in a refusal."""
    found = re.search(r"Use method=([\w, ]+?)(?:\.| for all)", text)
    return re.split(r", | or ", found.group(1)) if found else []


def refusals(anatomy: Anatomy) -> Iterator[tuple[Method, str]]:
    for name, options in SETTINGS:
        method = METHODS[name](**options)
        try:
            method.check(anatomy)
        except Unsupported as e:
            yield method, str(e)


def anatomies() -> Iterator[tuple[str, Anatomy]]:
    yield from ((name, anatomy_of(name)) for name in TINY)
    yield from ((name, known.of_name(name)[0]) for name in NAMES)
    yield from ((name, describe(odd(name), ODD[name].image_size)) for name in ("map", "two tokens"))


def test_every_method_that_a_refusal_names_is_taken() -> None:
    asked = 0
    for name, anatomy in anatomies():
        taken: set[str] = set()
        for method, text in refusals(anatomy):
            others = advised(text)
            assert others or "method." in text, f"{method} on {name} gives no advice: {text}"
            assert method.name not in others
            for other in set(others) - taken:
                METHODS[other]().check(anatomy)
                assert METHODS[other]().expected_params(anatomy) > 0, f"{other} on {name}"
            taken.update(others)
            asked += len(others)
    assert asked > 300


@pytest.mark.parametrize("name", ["regnet", "resnet_basic", "mixer", "eva_split"])
def test_what_is_advised_can_be_attached(name: str) -> None:
    anatomy = anatomy_of(name)
    others = {other for _, text in refusals(anatomy) for other in advised(text)}
    assert others
    for other in others:
        apply(METHODS[other](), fresh(name), anatomy, 7, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("method", "backbone", "sentence"),
    [
        ("vpt_deep", "resnet_basic", "Use method=vpt_pad, lora or adapter_plus."),  # a prompt first
        ("convpass", "mixer", "Use method=adapter_plus, adapter or adaptformer."),  # adapters first
        ("fact_tt", "convnext", "Use method=lora, adapter_plus or ssf."),  # low rank first
    ],
)
def test_the_nearest_in_kind_come_first(method: str, backbone: str, sentence: str) -> None:
    with pytest.raises(Unsupported) as caught:
        METHODS[method]().check(anatomy_of(backbone))
    assert sentence in str(caught.value)


def test_nothing_that_needs_sites_is_named_where_none_is_known() -> None:
    anatomy = dataclasses.replace(anatomy_of("regnet"), sites=(), depth=0, inferred=False)
    with pytest.raises(Unsupported, match=r"Use method=bias, full or norm\."):
        METHODS["lora"]().check(anatomy)


def test_a_hyper_parameter_that_is_advised_is_taken() -> None:
    with pytest.raises(Unsupported, match=r"Set method\.dropout=0\.$"):
        METHODS["fact_tt"]().check(anatomy_of("swin_v2"))
    METHODS["fact_tt"](dropout=0.0).check(anatomy_of("swin_v2"))
