"""Models in other types of numbers, and models in which a pass with gradients left results."""

from __future__ import annotations

import copy

import pytest
import torch
from support.odd_heads import odd, pictures
from support.tiny_backbones import TINY, fresh, images

import peftbench as pb
from peftbench.backbones.copies import full_copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("backbone", "method"), [("regnet", "bias"), ("vit", "lora"), ("vit", "mlp"), ("swin", "ssf")]
)
def test_what_is_new_has_the_type_of_the_backbone(
    backbone: str, method: str, dtype: torch.dtype
) -> None:
    model = pb.tune(fresh(backbone).to(dtype), method, 5, image_size=TINY[backbone].image_size)
    assert {p.dtype for p in model.parameters()} == {dtype}
    logits = model.eval()(images(backbone, 2, dtype=dtype))
    assert logits.dtype is dtype and logits.isfinite().all()


def test_a_convolution_as_head_has_the_type_of_the_backbone() -> None:
    model = pb.tune(odd("map").double(), "linear", 5, image_size=32).eval()
    assert model(pictures("map").double()).dtype is torch.float64


def test_a_model_merges_after_a_pass_with_gradients_that_it_keeps_results_of() -> None:
    """timm's LeViT keeps its attention biases; torch copies no tensor with a graph behind it."""
    model = pb.tune(odd("two norms"), "full", 5, image_size=32).eval()
    expected = model(pictures("two norms"))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model.model)
    with torch.no_grad():
        merged = pb.merge(model)(pictures("two norms"))
    torch.testing.assert_close(merged, expected.detach(), rtol=0, atol=1e-6)


def test_a_model_is_tuned_after_a_pass_with_gradients() -> None:
    bare = odd("two norms")
    bare(pictures("two norms"))
    assert pb.tune(bare, "linear", 5, image_size=32)(pictures("two norms")).shape == (4, 5)


def test_a_copy_shares_no_result_with_its_original() -> None:
    bare = odd("two norms")
    bare(pictures("two norms"))
    twin = full_copy(bare)
    kept = [m.attention_bias_cache for m in bare.modules() if hasattr(m, "attention_bias_cache")]
    own = [m.attention_bias_cache for m in twin.modules() if hasattr(m, "attention_bias_cache")]
    assert len(kept) == len(own) and any(kept)
    for before, after in zip(kept, own, strict=True):
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key])
            assert tensor.data_ptr() != after[key].data_ptr() and not after[key].requires_grad
