"""NOAH: subnets, their search by evolution, what the search sees, and what it costs."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_backbones import anatomy_of, fresh, images
from support.tiny_runs import compose, digits, tiny_spec
from torch import Tensor

import peftbench as pb
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.config.choices import config_dir
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS
from peftbench.methods.layers.evolution import Evolution, Space, Subnet
from peftbench.methods.layers.searching import Halves
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import BackboneSpec

QUICK = {"supernet_epochs": 2, "rounds": 1, "population": 3, "crossed": 1, "mutated": 1}
PRESETS = sorted(path.stem for path in (config_dir() / "method" / "noah").glob("*.yaml"))


@cache
def vit_b() -> Anatomy:
    loaded = load(BackboneSpec("vit_base_patch16_224", pretrained=False), 2, device="meta")
    return describe(loaded.model, loaded.image_size)


def seen() -> list[tuple[Tensor, Tensor]]:
    return [(images("vit", 8, seed=each), torch.arange(8) % 4) for each in range(2)]


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ------------------------------------------------------------------- subnets


def test_the_published_subnets_have_the_published_mean_size() -> None:
    """0.36 M over the 19 tasks, as the table of Convpass prints (arXiv 2207.07039)."""
    sizes = []
    for name in PRESETS:
        options = compose(f"method=noah/{name}").method
        kinds = {kind: list(options[kind]) for kind in ("prompts", "lora", "adapters")}
        assert all(len(widths) == 12 and set(widths) <= {1, 5, 10} for widths in kinds.values())
        method = METHODS["noah"](**kinds)
        assert not method.looks_at_images
        sizes.append(method.expected_params(vit_b()))
    assert len(sizes) == 19
    assert sum(sizes) / 19 == pytest.approx(360_134.26, abs=0.01)


def test_a_subnet_is_counted_by_hand() -> None:
    """Width 24: 3 prompts; 2 ranks of 24 + 72; 4 hidden units of 2 x 24 + 1, and 24."""
    method = METHODS["noah"](prompts=[3, 0], lora=[0, 2], adapters=[4, 0])
    assert method.expected_params(anatomy_of("vit")) == 3 * 24 + 2 * 96 + 4 * 49 + 24


def test_before_images_are_seen_the_widest_uniform_subnet_under_the_budget_is_counted() -> None:
    """Of width 10 on ViT-B: 12 x (10 x 768 x 7 + 10 + 768) = 654,456 is above 0.64 M."""
    uniform = 12 * (5 * 768 * 7 + 5 + 768)
    assert METHODS["noah"]().expected_params(vit_b()) == uniform == 331_836
    assert METHODS["noah"](budget=0.66).expected_params(vit_b()) == 654_456


def test_subnets_stop_at_the_depth_that_is_drawn() -> None:
    space, rng = Space((1, 5), (1, 3), 4), random.Random(0)
    drawn = [space.draw(rng) for _ in range(200)]
    children = [space.mutated(subnet, rng, 0.5, 0.5) for subnet in drawn]
    children += [space.crossed(a, b, rng) for a, b in pairwise(drawn)]
    for subnet in drawn + children:
        for widths in subnet.kinds:
            depth = sum(width > 0 for width in widths)
            assert depth in (1, 3) and len(widths) == 4
            assert set(widths[:depth]) <= {1, 5} and not any(widths[depth:])


def test_a_mutation_without_rates_and_a_crossing_with_itself_change_nothing() -> None:
    space, rng = Space((1, 5), (1, 3), 4), random.Random(0)
    subnet = space.draw(rng)
    assert space.mutated(subnet, rng, 0.0, 0.0) == subnet
    assert space.crossed(subnet, subnet, rng) == subnet


def test_the_search_finds_the_best_subnet_that_the_budget_allows() -> None:
    """More is better here, up to 20 units: the best of all that are allowed."""
    space = Space((1, 2, 5), (1, 2), 2)
    evolution = Evolution(10, 20, 5, 10, 10, 0.3, 0.3)

    def units(subnet: Subnet) -> int:
        return sum(map(sum, subnet.kinds))

    best, scores = evolution.best(space, units, 20, lambda s: float(units(s)), random.Random(0))
    assert units(best) == 20 and max(map(units, scores)) == 20
    again, _ = evolution.best(space, units, 20, lambda s: float(units(s)), random.Random(0))
    assert again == best
    equal, scores = evolution.best(space, units, 20, lambda s: 1.0, random.Random(0))
    assert units(equal) == min(map(units, scores))
    with pytest.raises(ValueError, match="no subnet is small enough"):
        evolution.best(space, units, 2, lambda s: 1.0, random.Random(0))


# ------------------------------------------------------------------- the search of a run


def test_each_image_trains_or_is_held_out() -> None:
    batches = [(torch.arange(10.0), torch.arange(10)), (torch.arange(1.0), torch.arange(1))]
    halves = Halves(batches, 0.2)
    assert [labels.tolist() for _, labels in halves.parts(train=True)] == [list(range(8))]
    assert [labels.tolist() for _, labels in halves.parts(train=False)] == [[8, 9], [0]]


def test_what_is_found_depends_on_images_and_seed_alone_and_its_passes_are_counted() -> None:
    """Two batches of 8 give 12 images that train and 4 that are held out."""
    method, anatomy, backbone = METHODS["noah"](**QUICK), anatomy_of("vit"), fresh("vit")
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    found = []
    for _ in range(2):
        torch.rand(3)  # of the generator that is everybody's
        found.append(dict(method.prepare(backbone, anatomy, seen(), seed(1)).facts))
    timed = [{k: facts.pop(k) for k in ("seconds_supernet", "seconds_search")} for facts in found]
    assert all(value > 0 for each in timed for value in each.values())
    assert found[0] == found[1]
    assert found[0]["images_backward"] == 2 * 12
    assert found[0]["images_forward"] == 2 * 12 + 4 * found[0]["subnets_scored"]
    assert 3 <= found[0]["subnets_scored"] <= 5
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad
    settled = method.settled(found[0])
    assert list(settled.prompts) == found[0]["prompts"] and not settled.looks_at_images


def test_a_run_keeps_its_subnet_and_a_given_one_searches_nothing(tmp_path: Path) -> None:
    store, options = ResultsStore(tmp_path), experiment.RunOptions(timed=False)
    record = experiment.run(tiny_spec(METHODS["noah"](**QUICK), dataset=digits(8)), store, options)
    assert record.status is Status.OK, record.error
    assert record.provenance is not None and record.parameters is not None
    facts = record.provenance.data["prepared"]
    loaded = pb.load(record.run_id, results_dir=tmp_path)
    assert list(loaded.tuned.method.lora) == facts["lora"]
    assert loaded.tuned.method.expected_params(loaded.tuned.anatomy) == record.parameters.method
    kinds = {kind: facts[kind] for kind in ("prompts", "lora", "adapters")}
    given = experiment.run(tiny_spec(METHODS["noah"](**kinds)), store, options)
    assert given.status is Status.OK, given.error
    assert given.provenance is not None and "prepared" not in given.provenance.data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [1], "lora": [1], "adapters": [1]}, r"widths of 1 blocks.*has 2\."),
        ({"budget": 1e-6}, r"the smallest subnet of this vit backbone has .*method\.budget"),
    ],
)
def test_noah_refuses_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        METHODS["noah"](**options).check(anatomy_of("vit"))


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": [1]},
        {"prompts": [0], "lora": [0], "adapters": [0]},
        {"prompts": [1, 1], "lora": [1], "adapters": [1]},
        {"widths": [0]},
        {"held_out": 1.0},
        {"population": 0},
    ],
)
def test_noah_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method=noah"):
        METHODS["noah"](**options)
