"""Values that a configuration lacks are found wherever they are."""

from __future__ import annotations

from peftbench.config.build import _missing


def test_a_value_that_lacks_is_named_by_its_place() -> None:
    values = {"a": {"b": "???", "c": [1, {"d": "???"}, "???"]}, "e": "???", "f": "${a.b}", "g": 1}
    assert list(_missing(values)) == ["a.b", "a.c[1].d", "a.c[2]", "e"]
