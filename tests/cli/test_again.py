"""Commands that follow one another in a process, and what the later ones are composed into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf
from support.tiny_runs import compose

from peftbench.cli import again
from peftbench.config.build import build
from peftbench.data import identify

SHARED = ("quiet=true", "method=lora", "method.rank=4", "dataset=mini/digits", "recipe=short")
BEHIND = "one_pass='[[0.003,0.01],[0.3,0.0]]'"


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    again._known = None
    yield
    again._known = None


def arguments(lr: str, decay: str, *more: str) -> list[str]:
    return [*SHARED, f"recipe.lr={lr}", f"recipe.weight_decay={decay}", "seed=1", *more]


def test_a_trial_that_follows_is_what_hydra_makes_of_it() -> None:
    first = arguments("0.01", "0.0001", BEHIND)
    cfg = compose(*first)
    again.remember(first, cfg)
    for text, lr in (("3e-3", 3e-3), ("0.30000000000000004", 0.30000000000000004)):
        own = arguments(text, "1e-2")
        found = again.composed(own)
        assert found is not None
        assert found.recipe.lr == lr and found.one_pass == ""
        assert build(found, identify) == build(compose(*own), identify)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(compose(*own))
    middle = again.composed(arguments("0.003", "0.01", "one_pass='[[0.3,0.0]]'"))
    assert middle is not None and middle.one_pass == "[[0.3,0.0]]"
    assert cfg.recipe.lr == 0.01  # what was composed first stays


def test_any_other_command_is_left_to_hydra() -> None:
    first = arguments("0.01", "0.0001", BEHIND)
    assert again.composed(first) is None
    again.remember(first, compose(*first))
    for other in (
        [*arguments("0.01", "0.0001"), "recipe.epochs=3"],
        [a.replace("lora", "bias") for a in arguments("0.01", "0.0001")],
        arguments("0.01", "0.0001")[:-1],
        ["seed=1", *arguments("0.01", "0.0001")[:-1]],  # a later value counts
    ):
        assert again.composed(other) is None


def test_a_command_that_nobody_follows_is_not_kept() -> None:
    alone = arguments("0.01", "0.0001")
    again.remember(alone, compose(*alone))
    assert again.composed(alone) is None
