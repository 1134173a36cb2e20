"""Attaching a method: what a method of one's own must get right, and what is caught if not."""

from __future__ import annotations

import pytest
import torch
from support.odd_methods import AddsUnused, TouchesNothing, TrainsOutside
from support.tiny_backbones import NUM_CLASSES, anatomy_of, fresh, images
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from peftbench.backbones.describe import describe
from peftbench.errors import NoEffect, NotMergeable, UnknownName, Unsupported
from peftbench.methods import METHODS, Method, apply, discover
from peftbench.methods.base import register_method

discover()


def _apply(method: Method, backbone: nn.Module | None = None) -> object:
    generator = torch.Generator().manual_seed(0)
    return apply(method, backbone or fresh("vit"), anatomy_of("vit"), 7, generator)


def test_a_method_that_touches_nothing_is_an_error() -> None:
    with pytest.raises(NoEffect, match=r"^touches_nothing .*vit"):
        _apply(TouchesNothing())


def test_a_parameter_outside_the_model_is_an_error() -> None:
    assert _apply(AddsUnused()).method_params.keys() == {"blocks.0.own"}
    with pytest.raises(NoEffect, match=r"^trains_outside declared 1 parameters outside"):
        _apply(TrainsOutside())


def test_merging_is_refused_by_default() -> None:
    with pytest.raises(NotMergeable, match="adds_unused"):
        AddsUnused().merge(fresh("vit"))


def test_a_method_without_a_card_is_refused_when_it_is_registered() -> None:
    class Cardless(Method):
        pass

    with pytest.raises(TypeError, match="Cardless needs a MethodCard"):
        register_method("cardless")(Cardless)
    assert "cardless" not in METHODS


def test_a_name_is_taken_once() -> None:
    class Other(AddsUnused):
        pass

    with pytest.raises(ValueError, match="'lora' is registered twice"):
        register_method("lora")(Other)
    assert METHODS["lora"].__name__ == "LoRA"


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UnknownName, match=r"Unknown method 'loar'\. Did you mean: lora,"):
        METHODS["loar"]


def test_a_new_head_replaces_the_old_one_whatever_its_size() -> None:
    backbone = fresh("swin")
    old = backbone.get_submodule("head.fc")
    assert old.out_features == NUM_CLASSES
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["linear"](), backbone, anatomy_of("swin"), 7, generator)
    assert tuned.model.get_submodule("head.fc").out_features == 7
    assert not {id(p) for p in old.parameters()} & {id(p) for p in tuned.model.parameters()}


class Cosine(nn.Module):
    """A classifier that timm does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.eye(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=1) @ self.classes.T


def test_a_classifier_that_is_no_linear_layer_can_be_kept_and_not_replaced() -> None:
    model = ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 4, 4, 4), num_classes=5)
    model.fc = Cosine()
    anatomy = describe(model, 32)
    with pytest.raises(Unsupported, match=r"classifier 'fc' is a Cosine.* leave num_classes out"):
        apply(METHODS["linear"](), model, anatomy, 7, torch.Generator())
    tuned = apply(METHODS["bias"](), model, anatomy, None, torch.Generator())
    assert set(tuned.head_params) == {"fc.classes"}
    assert isinstance(tuned.model.get_submodule("fc"), Cosine)


def test_a_state_is_that_of_the_model_after_it_was_converted() -> None:
    """Conversion makes new buffers; the ones that were there at first stand still."""
    generator = torch.Generator().manual_seed(0)
    method = METHODS["partial"]()
    tuned = apply(method, fresh("resnet_basic"), anatomy_of("resnet_basic"), 7, generator)
    tuned.model.double()
    tuned.train()
    tuned.model(images("resnet_basic", 4, dtype=torch.float64))
    (name,) = [n for n in tuned.changing_buffers if n.endswith("layer4.1.bn2.running_mean")]
    state = {n: t.clone() for n, t in tuned.state().items()}
    assert state[name].dtype is torch.float64
    assert torch.equal(state[name], tuned.model.get_buffer(name))
    tuned.model.get_buffer(name).zero_()
    tuned.load_state(state)
    assert torch.equal(tuned.model.get_buffer(name), state[name])
