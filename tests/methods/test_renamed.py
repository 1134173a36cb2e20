"""Methods of others may use names of before: they work for a version, and say the one of now."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftbench.methods import surgery


@pytest.mark.parametrize(
    ("before", "now"),
    [("Then", "OutputAdapter"), ("Plus", "ResidualAdapter"), ("After", "InputAdapter")],
)
def test_an_adapter_is_found_by_its_name_of_before(before: str, now: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"surgery.{before} is surgery.{now} now"):
        found = getattr(surgery, before)
    assert found is getattr(surgery, now)


def test_a_delta_with_methods_by_their_names_of_before_works() -> None:
    with pytest.warns(DeprecationWarning) as caught:

        class Doubling(surgery.Delta):
            def add_to(self, y: Tensor, x: Tensor) -> Tensor:
                return y + x

            def of_weight(self) -> Tensor:
                return torch.eye(2)

    assert [str(warning.message) for warning in caught] == [
        "add_to of a surgery.Delta is add_to_output now",
        "of_weight of a surgery.Delta is weight_delta now",
    ]
    layer = nn.Linear(2, 2, bias=False)
    nn.init.eye_(layer.weight)
    x = torch.tensor([[1.0, 3.0]])
    assert surgery.DeltaLayer(layer, Doubling())(x).tolist() == [[2.0, 6.0]]
    assert surgery.DeltaWeight(Doubling())(layer.weight).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_any_other_name_is_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Between'"):
        getattr(surgery, "Between")  # noqa: B009
