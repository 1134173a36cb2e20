"""A backbone takes the kernels that were measured to be fastest, and computes the same."""

from __future__ import annotations

import math

import pytest
import torch
from support.rounding import assert_alike
from support.tiny_runs import tiny_spec
from torch import nn

from peftbench.backbones.kernels import ATTENTION, is_fused_faster
from peftbench.backbones.load import load
from peftbench.run.bench import prepare
from peftbench.run.ending import PendingRecord
from peftbench.spec import BackboneSpec
from peftbench.training.device import Compute

CPU, CUDA, META = (torch.device(kind) for kind in ("cpu", "cuda", "meta"))


def fused(model: nn.Module) -> set[bool]:
    """What the attention layers of a model say of themselves."""
    found = {module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")}
    assert found
    return found


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        (CPU, torch.float32, True),
        (CPU, torch.bfloat16, False),
        (CUDA, torch.float32, True),
        (CUDA, torch.bfloat16, True),
        (META, torch.float32, False),
    ],
)
def test_attention_is_fused_where_that_was_measured_faster(
    device: torch.device, dtype: torch.dtype, expected: bool
) -> None:
    assert is_fused_faster(device, dtype) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_of_tokens_speaks_against_the_choice_on_a_cpu(dtype: torch.dtype) -> None:
    ratios = [row.training for row in ATTENTION if row.dtype is dtype]
    ratios += [row.inference for row in ATTENTION if row.dtype is dtype and row.inference]
    assert len(ratios) >= 10
    # the choice loses at most one percent anywhere
    worst = min(ratios) if is_fused_faster(CPU, dtype) else 1 / max(ratios)
    assert worst >= 0.99
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)


def test_a_model_is_loaded_for_the_arithmetic_that_it_computes_in() -> None:
    spec = BackboneSpec("test_vit", pretrained=False, image_size=32)
    assert fused(load(spec, 3).model) == {True}
    assert fused(load(spec, 3, dtype=torch.bfloat16).model) == {False}
    assert fused(load(spec, 3, device="meta").model) == {False}


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_run_computes_with_the_kernels_of_its_arithmetic(
    dtype: torch.dtype, expected: bool
) -> None:
    bench = prepare(PendingRecord(tiny_spec("lora"), started=""), Compute(CPU, dtype))
    assert fused(bench.tuned.model) == {expected}


def test_fused_attention_computes_the_same() -> None:
    spec = BackboneSpec("test_vit", pretrained=False, image_size=32)
    model = load(spec, 3).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, 32, 32, generator=generator)
    outputs = model(x)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    plain = model(x)
    assert plain.abs().max() > 0.1
    assert_alike(outputs, plain)
