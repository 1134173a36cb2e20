"""Hyper-parameters are checked where they are given, and are part of a run's identity."""

from __future__ import annotations

import json

import pytest

from peftbench.errors import ConfigError
from peftbench.methods import METHODS, discover

discover()


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("lora", {"rank": 0}, "rank=0"),
        ("lora", {"dropout": 1.0}, "dropout=1.0"),
        ("lora", {"dropout": -0.1}, "dropout=-0.1"),
        ("lora", {"targets": []}, "targets is empty"),
        ("lora", {"targets": ["query"]}, "query"),
        ("lora", {"targets": ["q", "q"]}, "twice"),
        ("lora", {"targets": ["qkv", "v"]}, "twice"),
        ("mlp", {"num_layers": 1}, "num_layers=1"),
        ("mlp", {"dropout": 1.0}, "dropout=1.0"),
        ("partial", {"num_blocks": 0}, "num_blocks=0"),
        ("partial", {"unit": "layer"}, "layer"),
        ("vpt_deep", {"num_tokens": 0}, "num_tokens=0"),
        ("vpt_shallow", {"dropout": 2.0}, "dropout=2.0"),
        ("vpt_shallow", {"project_width": 0}, "project_width=0"),
    ],
)
def test_senseless_values_are_refused_by_name(method: str, options: dict, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        METHODS[method](**options)
    assert str(caught.value).startswith(f"method={method}: ")
    assert found in str(caught.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_are_values(name: str) -> None:
    """Hashable, equal by value, with an identity that JSON can hold."""
    method, same = METHODS[name](), METHODS[name]()
    assert method == same and hash(method) == hash(same)
    identity = method.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] == name == METHODS[name].name
    assert identity["version"] == METHODS[name].card.version >= 1


@pytest.mark.parametrize("name", list(METHODS))
def test_cards_say_where_a_method_comes_from(name: str) -> None:
    card = METHODS[name].card
    assert all((card.title, card.paper, card.section, card.reference))
    assert card.frozen_mode in ("eval", "train")
    assert all(not d.endswith(".") and d == d.strip() for d in card.deviations)


def test_lists_from_configurations_become_tuples() -> None:
    lora = METHODS["lora"]
    assert lora(targets=["q"]) == lora(targets=("q",))
    assert lora(targets=["q"]) != lora(targets=["v"])
    assert lora(targets=["q"]).identity()["hyperparameters"]["targets"] == ["q"]
