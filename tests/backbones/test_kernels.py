"""A backbone takes the kernels that were measured to be fastest, and computes the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from support.rounding import assert_alike
from support.tiny_runs import short_timings, tiny_spec
from torch import nn

from peftbench.backbones.hashes import hash_tensors
from peftbench.backbones.kernels import (
    ATTENTION,
    LAYOUTS,
    choose_layout,
    gains_from_channels_last,
    is_fused_faster,
)
from peftbench.backbones.load import load
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run.bench import prepare
from peftbench.run.ending import PendingRecord
from peftbench.run.experiment import run
from peftbench.run.export import export
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", True),
        ("efficientnet_b0", True),
        ("regnety_016", True),
        ("convnext_tiny", False),  # its weights are matrices
        ("vit_small_patch16_224", False),
        ("swin_tiny_patch4_window7_224", False),
    ],
)
def test_networks_of_convolutions_have_their_channels_last(name: str, expected: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert gains_from_channels_last(model, CPU) is expected
    assert gains_from_channels_last(model, META) is False


def test_the_layout_is_chosen_where_every_measured_network_gains_on_the_whole() -> None:
    for row in LAYOUTS:
        with torch.device("meta"):
            model = timm.create_model(row.architecture)
        gain = math.prod((*row.float32, *row.bfloat16)) ** 0.25
        assert (gain > 1.05) is gains_from_channels_last(model, CPU), row.architecture


def test_weights_with_channels_last_are_the_same_weights(tmp_path: Path) -> None:
    """Hash, run and export see values, not strides."""
    spec = BackboneSpec("test_resnet", pretrained=False, image_size=32)
    loaded = load(spec, 3)
    assert loaded.model.conv1[0].weight.is_contiguous()  # it may leave for a file
    choose_layout(loaded.model)
    weight = loaded.model.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        plain = timm.create_model("test_resnet", num_classes=3).eval()
    assert loaded.sha256 == hash_tensors(loaded.model) == hash_tensors(plain)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_alike(loaded.model(x), plain(x))
    bench = prepare(
        PendingRecord(tiny_spec("lora", backbone=spec), started=""), Compute(CPU, torch.float32)
    )
    assert not all(parameter.is_contiguous() for parameter in bench.tuned.model.parameters())
    with short_timings():
        record = run(tiny_spec("full", backbone=spec), ResultsStore(tmp_path))
    assert record.status is Status.OK, record.error
    folder = export(record.run_id, tmp_path, tmp_path / "merged", merged=True)
    written = load_file(folder / "model.safetensors")
    task = load_file(next((tmp_path / "runs").rglob("tuned.safetensors")))
    name = next(n for n in written if n.endswith("conv1.0.weight"))
    assert torch.equal(written[name], task[name])
    assert not torch.equal(written[name], plain.state_dict()[name])
