"""The only code that changes models: what it did is what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_backbones import anatomy_of, fresh, images
from torch import Tensor, nn

from peftbench.backbones.anatomy import Role
from peftbench.methods import surgery

CHANGE = 2.0**-7  # exact in every format


class Constant(surgery.Delta):
    """Adds the same to every weight."""

    def __init__(self, shape: tuple[int, int], value: float) -> None:
        super().__init__()
        self.shape = shape
        self.value = nn.Parameter(torch.tensor(value))

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x @ self.weight_delta().T

    def weight_delta(self) -> Tensor:
        return self.value.expand(self.shape)


def test_replace_keeps_order_and_mode_and_returns_the_old_module() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(3, 4))
    old, new = model[1][0], nn.GELU()
    model.eval()
    assert surgery.replace(model, "1.0", new) is old
    assert model[1][0] is new and not new.training
    assert [type(m) for m in model[1]] == [nn.GELU, nn.Dropout]
    assert len(model) == 3


def test_wrap_returns_the_new_modules_by_path() -> None:
    model = fresh("vit")
    sites = anatomy_of("vit").where(Role.MLP_OUT)
    wrapped = surgery.wrap(model, sites, lambda site, module: nn.Sequential(module))
    assert list(wrapped) == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    assert all(model.get_submodule(path) is module for path, module in wrapped.items())


def test_freezing_is_decided_by_object_and_not_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias = model[0].bias  # one tensor under two names
    surgery.freeze_except(model, [model[0].bias])
    assert [p.requires_grad for p in model.parameters()] == [False, True, False]


def _with_deltas(backbone: str) -> tuple[nn.Module, list[str], tuple[str, ...]]:
    model, sites = fresh(backbone).double(), anatomy_of(backbone).where(Role.ATTN_IN)
    deltas, notes = surgery.add_deltas(
        model, sites, lambda site: Constant((site.width, site.fan_in or 0), CHANGE).double()
    )
    return model, list(deltas), notes


@pytest.mark.parametrize("backbone", ["vit", "beit", "swin_v2", "eva_fused", "eva_split"])
def test_a_delta_beside_a_layer_and_inside_its_weight_is_the_same_change(backbone: str) -> None:
    model, paths, notes = _with_deltas(backbone)
    uncalled = sum(not s.called for s in anatomy_of(backbone).where(Role.ATTN_IN))
    assert [note.partition(" ")[0] for note in notes] == [str(uncalled)] * bool(uncalled)
    expected = fresh(backbone).double()
    for path in paths:
        with torch.no_grad():
            expected.get_parameter(f"{path}.weight").add_(CHANGE)
    x = images(backbone, 2, dtype=torch.float64)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-12)
    assert sorted(surgery.bake_deltas(model)) == sorted(paths)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-12)
    assert model.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize("backbone", ["vit", "beit"])
def test_baking_a_deep_copy_leaves_the_original_working(backbone: str) -> None:
    model, _, _ = _with_deltas(backbone)
    x = images(backbone, 2, dtype=torch.float64)
    before = model(x)
    surgery.bake_deltas(copy.deepcopy(model))
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
