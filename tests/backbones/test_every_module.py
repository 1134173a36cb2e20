"""Every module of timm takes methods where inference found sites, and none of them wrongly.

By default the oddest dozen is tried; `make test-slow` tries one model of each module.
"""

from __future__ import annotations

import pytest
import torch
from support.sites_tried import random_copy, tried, tried_again
from support.timm_modules import SMALLEST, build, chosen, side_of

from peftbench.backbones.describe import describe
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, discover

discover()

# tokens and maps by turns, shared layers, several branches, pooled queries, heads that mix, layers
# of experts, dense sums, several tensors between blocks, norms with activations, no sum at all
ODDEST = (
    "cait",
    "convit",
    "edgenext",
    "efficientvit_msra",
    "ghostnet",
    "levit",
    "mambaout",
    "maxxvit",
    "mobilevit",
    "repvit",
    "starnet",
    "vision_transformer_relpos",
)
QUICK = ("lora", "ssf", "adapter_plus")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _check(module: str, methods: tuple[str, ...]) -> list[str]:
    """The methods that are taken; whatever is wrong with one of them fails."""
    name = SMALLEST[module]
    side = side_of(name)
    model = build(name, side)
    anatomy = describe(model, side)
    random = random_copy(model, anatomy.channels, side)
    taken = []
    for method in methods:
        outcome = tried_again(method, model, anatomy, tried(method, random, anatomy))
        if not outcome.refusal:
            assert outcome.is_right, f"{method} on {name}: {outcome}"
            taken.append(method)
    return taken


@pytest.mark.parametrize("module", ODDEST)
def test_the_oddest_nets_take_methods_and_none_is_silently_wrong(module: str) -> None:
    torch.manual_seed(0)
    assert _check(module, QUICK)


@pytest.mark.parametrize(
    ("module", "method", "is_taken"),
    [
        ("res2net", "conv_adapter", True),  # one activation behind many convolutions
        ("tnt", "lst", False),  # blocks hand on two tensors
        ("xcit", "cvpt", False),  # attention of channels with channels
        ("xcit", "prefix", False),
    ],
)
def test_methods_with_modules_beside_a_net_take_odd_ones_or_refuse_them(
    module: str, method: str, is_taken: bool
) -> None:
    assert _check(module, (method,)) == [method] * is_taken


@pytest.mark.slow
@pytest.mark.parametrize("module", chosen())
def test_each_module_takes_methods_and_none_is_silently_wrong(module: str) -> None:
    trained = tuple(n for n in METHODS if not METHODS[n].card.solved and not n.startswith("hf_"))
    assert {"linear", "full"} <= set(_check(module, trained))


@pytest.mark.slow
def test_most_modules_take_methods_with_confirmed_sites() -> None:
    taking, asked = set(), chosen()
    for module in asked:
        name = SMALLEST[module]
        side = side_of(name)
        anatomy = describe(build(name, side), side)
        for method in QUICK:
            try:
                METHODS[method]().check(anatomy)
            except Unsupported:
                continue
            taking.add(module)
    assert len(taking) >= 0.85 * len(asked), sorted(set(asked) - taking)
