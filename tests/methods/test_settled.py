"""Methods of which training images decide what there is to train, and how that is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_backbones import anatomy_of, fresh, images
from support.tiny_runs import digits, tiny_spec

import peftbench as pb
from peftbench.artefacts import card as cards
from peftbench.errors import ConfigError, Unsupported, WeightsError
from peftbench.methods import METHODS, apply
from peftbench.methods.layers import sensitivity
from peftbench.methods.layers.units import Unit, matrices, vectors
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment

SMALL = {"budget": 2.0, "unit": 1000.0, "rank": 2, "alpha": 2.0}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def seen(backbone: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(backbone, 8, seed=each), torch.arange(8) % 4) for each in range(2)]


# ------------------------------------------------------------------- what a budget pays for

SQUARE = Unit("0.q", "q", "weight", 0, 2, 2, True, True)
VECTOR = Unit("0.q.bias", "q", "bias", 0, 2, 1, True, True)


def test_the_number_of_entries_grows_until_the_budget_is_met() -> None:
    """A unit of 50: step t turns t entries on, of four in a matrix and two in a vector.

    The largest are 9 and 8 of the matrix, then 7 of the vector. A matrix is structured from two
    entries on and counts 3, a vector is whole from one entry on and counts 2; 1 trains besides.
    Sizes of 1, 2, 3, ... entries: 1 + 1, 3 + 1, 3 + 2 + 1, and so on for all later ones.
    """
    found = {"0.q": torch.tensor([9.0, 0.1, 8.0, 0.2]), "0.q.bias": torch.tensor([7.0, 0.3])}
    rule = sensitivity.Rule(lambda matrix: 3, 1.5, 2.0, True, 50.0, always=1)
    sizes = {2: 1, 4: 2, 6: 79}  # numbers that train -> entries that are on
    for size, top_k in sizes.items():
        chosen = sensitivity.choose(found, [SQUARE], [VECTOR], rule, size / 50)
        assert (chosen.top_k, round(chosen.size * 50)) == (top_k, size)
    chosen = sensitivity.choose(found, [SQUARE], [VECTOR], rule, 4 / 50)
    assert chosen.on == {"0.q": 2, "0.q.bias": 0}
    assert sensitivity.entries(SQUARE, found["0.q"], 2).tolist() == [0, 2]


def test_the_parts_of_a_fused_projection_are_matrices_of_their_own() -> None:
    """A ViT of 2 blocks, width 24: q, k, v, proj, fc1, fc2; their biases; four norms and one."""
    found = matrices(anatomy_of("vit"))
    assert [u.label for u in found[:6]] == ["0.q", "0.k", "0.v", "0.proj", "0.fc1", "0.fc2"]
    assert (found[2].start, found[2].stop, found[2].columns, found[2].is_whole) == (
        48,
        72,
        24,
        False,
    )
    assert len(found) == 12 and len(vectors(anatomy_of("vit"))) == 12 + 2 * 5
    gated = [unit.label for unit in matrices(anatomy_of("eva_split"))]
    assert gated[:7] == ["0.q", "0.k", "0.v", "0.proj", "0.fc1", "0.fc12", "0.fc2"]


def test_the_structure_is_a_list_of_words_that_gives_the_same_counts_without_images() -> None:
    method, anatomy = METHODS["spt_lora"](**SMALL), anatomy_of("vit")
    prepared = method.prepare(fresh("vit"), anatomy, seen("vit"), seed())
    words = json.loads(json.dumps(prepared.facts))["structure"]
    assert any(word.endswith("=structured") for word in words)
    assert any(word.split("=")[1].isdecimal() for word in words)
    tuned = apply(method, fresh("vit"), anatomy, 7, seed(), prepared)
    again = METHODS["spt_lora"](**SMALL, structure=words)
    assert tuned.method == again
    shapes = {n: p.shape for n, p in tuned.trainable.items()}
    bare = apply(again, fresh("vit"), anatomy, 7, seed())
    assert shapes == {n: p.shape for n, p in bare.trainable.items()}
    counted = sum(
        p.numel() for p in (*tuned.method_params.values(), *tuned.unfrozen_params.values())
    )
    assert again.expected_params(anatomy) == counted


def test_a_given_structure_is_kept_and_its_entries_are_chosen() -> None:
    method = METHODS["spt_lora"](structure=["1.fc1=3", "0.q=structured"])
    backbone, anatomy = fresh("vit"), anatomy_of("vit")
    prepared = method.prepare(backbone, anatomy, seen("vit"), seed())
    assert prepared.facts["structure"] == ["1.fc1=3", "0.q=structured"]
    assert list(prepared.tensors) == ["1.fc1"] and len(prepared.tensors["1.fc1"]) == 3
    assert method.expected_params(anatomy) == 3 + 8 * (24 + 24)


def test_before_images_are_seen_a_stand_in_of_the_size_of_the_budget_is_counted() -> None:
    """fc2 of the last block takes 2 x (24 + 96) = 240 of 300, and fc1 as many."""
    method = METHODS["spt_lora"](rank=2, unit=1000.0, budget=0.3)
    assert method.expected_params(anatomy_of("vit")) == 240
    assert (
        METHODS["spt_lora"](rank=2, unit=1000.0, budget=0.48).expected_params(anatomy_of("vit"))
        == 480
    )


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (["7.q=structured"], r"a structure with '7\.q', which this vit backbone lacks"),
        (["0.q=577"], r"577 entries of '0\.q', of which this vit backbone has 576"),
    ],
)
def test_a_structure_of_another_backbone_is_refused(structure: list[str], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        METHODS["spt_lora"](structure=structure).check(anatomy_of("vit"))


@pytest.mark.parametrize(
    "options", [{"structure": ["0.q"]}, {"structure": ["0.q=0"]}, {"beta": 0.0}]
)
def test_spt_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method=spt_lora"):
        METHODS["spt_lora"](**options)


# ------------------------------------------------------------------- what is stored


def test_a_stored_task_has_the_structure_and_is_loaded_without_images(tmp_path: Path) -> None:
    spec = tiny_spec(METHODS["spt_lora"](budget=0.02, rank=2), dataset=digits(8))
    store = ResultsStore(tmp_path)
    record = experiment.run(spec, store, experiment.RunOptions(timed=False))
    assert record.status is Status.OK, record.error
    assert record.provenance is not None and record.parameters is not None
    structure = record.provenance.data["prepared"]["structure"]
    loaded = pb.load(record.run_id, results_dir=tmp_path)
    method = loaded.tuned.method
    assert list(method.structure) == structure
    counted = record.parameters.method + record.parameters.unfrozen
    assert method.expected_params(loaded.tuned.anatomy) == counted
    path = store.artefacts(record) / "card.json"
    card = json.loads(path.read_text())
    assert card["spec"]["method"]["hyperparameters"]["structure"] == []
    for wrong, reason in ((["9.q=structured"], "lacks"), (["${x}=1"], "'structure' is a list")):
        card["settled"]["structure"] = wrong
        path.write_text(json.dumps(card))
        with pytest.raises(WeightsError, match=reason):
            pb.load(record.run_id, results_dir=tmp_path)
    with pytest.raises(ValueError, match="its settled is a list"):
        cards.hyperparameters({**card, "settled": []})
