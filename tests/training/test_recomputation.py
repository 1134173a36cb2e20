"""Activation checkpointing: the same gradients, bit for bit, from less that is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.tiny_backbones import images
from support.tiny_runs import short_timings, tiny_spec
from support.tiny_tuned import start
from torch import Tensor, nn

from peftbench.errors import ConfigError
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.simulation import LiveBytes
from peftbench.spec import Recipe
from peftbench.training.device import Compute, seeded
from peftbench.training.recomputation import recomputing

CPU = Compute(torch.device("cpu"), torch.float32)


def gradients(method: str, backbone: str, wanted: bool) -> tuple[dict[str, Tensor | None], int]:
    """Gradients of all trained tensors, and bytes that are kept for the backward pass."""
    tuned = start(method, backbone)
    tuned.train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # tensors that begin at zero would hide those behind them
        for parameter in tuned.trainable.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    live = LiveBytes()
    with seeded(0, CPU), recomputing(tuned.model, wanted):
        with live:
            loss = tuned.model(images(backbone, 4)).square().mean()
        size = live.now
        loss.backward()
    return {name: parameter.grad for name, parameter in tuned.trainable.items()}, size


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("full", "vit"),
        ("lora", "vit"),
        ("vpt_deep", "vit"),  # prompts come and go between blocks
        ("convpass", "vit"),  # has dropout
        ("ssf", "swin"),
        ("adaptformer", "convnext"),
        ("lora", "resnet_bottleneck"),  # whose batch norms do not train
    ],
)
def test_gradients_are_the_same_and_less_is_kept(method: str, backbone: str) -> None:
    plain, all_bytes = gradients(method, backbone, wanted=False)
    again, fewer_bytes = gradients(method, backbone, wanted=True)
    assert fewer_bytes < 0.6 * all_bytes
    assert plain.keys() == again.keys()
    assert sum(1 for gradient in plain.values() if gradient is not None and gradient.any()) >= 2
    for name, expected in plain.items():
        actual = again[name]
        assert (actual is None) is (expected is None)
        if expected is not None and actual is not None:
            assert torch.equal(actual, expected), name


def test_a_model_computes_without_checkpoints_behind() -> None:
    tuned = start("lora", "vit")
    with recomputing(tuned.model, True):
        assert tuned.model.grad_checkpointing is True
    assert tuned.model.grad_checkpointing is False
    with recomputing(tuned.model, False):
        assert tuned.model.grad_checkpointing is False


def test_batch_norms_that_train_are_refused() -> None:
    """Their statistics would take each batch in twice."""
    tuned = start("full", "resnet_basic")
    tuned.train()
    with pytest.raises(ConfigError) as refused, recomputing(tuned.model, True):
        pass
    assert str(refused.value).startswith("recipe.checkpointing=true, but batch norms train here")
    tuned = start("mlp", "vit")  # has one in its classifier, which is no block
    tuned.train()
    with recomputing(tuned.model, True):
        assert tuned.model.grad_checkpointing is True


def test_a_model_that_timm_cannot_checkpoint_is_refused() -> None:
    class Stubborn(nn.Linear):
        def set_grad_checkpointing(self, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"

    for model in (nn.Linear(2, 2), Stubborn(2, 2)):
        with pytest.raises(ConfigError) as refused, recomputing(model, True):
            pass
        assert str(refused.value) == (
            "recipe.checkpointing=true, but timm cannot checkpoint a "
            f"{type(model).__name__}. Use recipe.checkpointing=false, or micro_batch=N to save "
            "memory."
        )


def test_a_run_is_the_same_run_with_checkpoints(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    plain = tiny_spec("lora", recipe={"lr": 0.01})
    spec = dataclasses.replace(plain, recipe=dataclasses.replace(plain.recipe, checkpointing=True))
    assert spec.run_id == plain.run_id
    assert Recipe(checkpointing=True).canonical() == Recipe().canonical()
    with short_timings():
        first = experiment.run(plain, store)
        second = experiment.run(spec, store, force=True)
    assert (first.status, second.status) == (Status.OK, Status.OK)
    assert [row.loss for row in second.history] == [row.loss for row in first.history]
    assert first.metrics == second.metrics
    note = "trained with activation checkpointing"
    assert note in second.notes and note not in first.notes


def test_a_method_whose_blocks_hand_on_what_they_read_is_refused() -> None:
    tuned = start("dtl", "vit")
    with (
        pytest.raises(ConfigError, match=r"blocks hand on what they read.*checkpointing=false"),
        recomputing(tuned.model, True),
    ):
        pass
