"""Methods of others may use names of before: they work for a version, and say the one of now."""

from __future__ import annotations

import pytest

from peftbench.methods import surgery


@pytest.mark.parametrize(
    ("before", "now"),
    [("Then", "OutputAdapter"), ("Plus", "ResidualAdapter"), ("After", "InputAdapter")],
)
def test_an_adapter_is_found_by_its_name_of_before(before: str, now: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"surgery.{before} is surgery.{now} now"):
        found = getattr(surgery, before)
    assert found is getattr(surgery, now)


def test_any_other_name_is_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Between'"):
        getattr(surgery, "Between")  # noqa: B009
