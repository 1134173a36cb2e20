"""Promises of the dSprites-like generator."""

from __future__ import annotations

import numpy as np
import pytest

from peftbench.data.sprites import FACTOR_SIZES, SpriteFactors, draw, label_of, sample_factors


def test_a_large_upright_square_covers_the_expected_pixels() -> None:
    # Position 0 puts the centre at 16; half side 9.5: from 6.5 to 25.5. With samples at 1/8, 3/8,
    # 5/8 and 7/8, half of the edge pixels 6 and 25 is inside, which counts as white, but a quarter
    # of the four corner pixels is not.
    image = draw(SpriteFactors(shape=0, scale=5, orientation=0, x=0, y=0))
    expected = np.zeros((64, 64), dtype=np.uint8)
    expected[6:26, 6:26] = 255
    expected[[6, 6, 25, 25], [6, 25, 6, 25]] = 0
    assert np.array_equal(image, expected)


def test_a_step_of_position_moves_the_sprite_right_and_down() -> None:
    def centre(x: int, y: int) -> tuple[float, float]:
        rows, columns = np.nonzero(draw(SpriteFactors(1, 3, 0, x, y)))
        return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5

    # 32 positions span 16..48, so position 31 is exactly 32 pixels further.
    left, top = centre(0, 0)
    right, bottom = centre(31, 31)
    assert (left, top) == (16.0, 16.0)
    assert (right, bottom) == (48.0, 48.0)


def test_no_sprite_touches_the_border() -> None:
    for shape in range(3):
        for orientation in range(0, 40, 3):
            for x, y in ((0, 0), (31, 31), (0, 31)):
                image = draw(SpriteFactors(shape, 5, orientation, x, y))
                assert image[0].max() == image[-1].max() == 0
                assert image[:, 0].max() == image[:, -1].max() == 0


def test_area_grows_with_the_square_of_scale() -> None:
    small = np.count_nonzero(draw(SpriteFactors(1, 0, 0, 16, 16)))
    large = np.count_nonzero(draw(SpriteFactors(1, 5, 0, 16, 16)))
    assert large / small == pytest.approx(4.0, rel=0.05)  # scale 1 against 0.5, ragged edges


def test_bins_follow_vtab() -> None:
    # 32 positions in 16 bins: two each. 40 orientations in 16 bins of width 2.5.
    assert [label_of(SpriteFactors(0, 0, 0, x, 0), "location") for x in (0, 1, 2, 31)] == [
        0,
        0,
        1,
        15,
    ]
    turns = [label_of(SpriteFactors(0, 0, o, 0, 0), "orientation") for o in (0, 2, 3, 4, 5, 39)]
    assert turns == [0, 0, 1, 1, 2, 15]


def test_samples_are_of_their_class_and_differ_in_pixels() -> None:
    groups = sample_factors("orientation", (3,) * 16, np.random.default_rng(0))
    flat = [factors for group in groups for factors in group]
    assert [label_of(f, "orientation") for f in flat] == [
        label for label in range(16) for _ in "abc"
    ]
    assert len({draw(f).tobytes() for f in flat}) == 48


def test_a_factor_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.39"):
        SpriteFactors(0, 0, FACTOR_SIZES[2], 0, 0)
