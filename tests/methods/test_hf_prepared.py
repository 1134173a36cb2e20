"""A method that looks at training images before it is attached: what it sees, learns and stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_backbones import anatomy_of, fresh, images
from support.tiny_runs import digits, tiny_spec
from torch import Tensor

import peftbench as pb
from peftbench import data
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, SplitRoleError
from peftbench.methods import METHODS, apply, discover
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, preparing
from peftbench.spec import BackboneSpec, Phase
from peftbench.training.device import Compute

discover()
pytest.importorskip("peft")


class Batches:
    """Eight tiny images in two batches; counts how many were asked for."""

    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(2):
            self.seen += 4
            yield images("vit", 4, seed=seed), torch.arange(4)


def test_eva_begins_at_the_directions_in_which_inputs_vary_most() -> None:
    """Against the largest eigenvalues of the covariance of all inputs of the first projection."""
    method, anatomy, backbone = METHODS["hf_eva"](r=2), anatomy_of("vit"), fresh("vit")
    found = method.prepare(backbone, anatomy, Batches(), torch.Generator().manual_seed(0))
    path = "blocks.0.attn.qkv"
    assert set(found.tensors) == {path, "blocks.1.attn.qkv"}
    inputs: list[Tensor] = []
    module = backbone.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for x, _ in Batches():
            backbone.eval()(x)
    handle.remove()
    covariance = torch.cov(torch.cat(inputs).double().T)
    most = torch.linalg.eigvalsh(covariance)[-2:].sum()  # that two directions can hold
    rows = found.tensors[path].double()
    held = torch.trace(rows @ covariance @ rows.T)
    assert 0.95 * most < held <= most * (1 + 1e-6)  # batch by batch, so not all of it
    torch.testing.assert_close(rows @ rows.T, torch.eye(2).double(), rtol=0, atol=1e-4)


def test_what_is_learnt_depends_on_images_and_seed_alone_and_leaves_the_backbone() -> None:
    method, anatomy, backbone = METHODS["hf_eva"](), anatomy_of("vit"), fresh("vit")
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    first, second = (
        method.prepare(backbone, anatomy, Batches(), torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first.facts == second.facts
    assert all(torch.equal(t, second.tensors[n]) for n, t in first.tensors.items())
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    assert not any(m._forward_hooks for m in backbone.modules())
    tuned = apply(method, backbone, anatomy, 7, torch.Generator().manual_seed(0), first)
    for path, values in first.tensors.items():
        assert torch.equal(tuned.model.get_parameter(f"{path}.lora_A.default.weight"), values)


def test_tune_takes_the_images_and_says_when_they_are_missing() -> None:
    with pytest.raises(ConfigError, match=r"hf_eva looks at training images .* Give data="):
        pb.tune(fresh("vit"), "hf_eva", 7, image_size=16)
    with pytest.raises(ConfigError, match=r"method=lora looks at no images. Leave data out."):
        pb.tune(fresh("vit"), "lora", 7, image_size=16, data=Batches())
    seen = Batches()
    tuned = pb.tune(fresh("vit"), "hf_eva", 7, image_size=16, data=seen, r=2)
    assert seen.seen >= 8
    other = pb.tune(fresh("vit"), "hf_eva", 7, image_size=16, data=Batches(), r=2)
    name = "blocks.0.attn.qkv.lora_A.default.weight"
    assert torch.equal(tuned.model.get_parameter(name), other.model.get_parameter(name))


def test_a_run_shows_the_train_split_only_and_records_what_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[data.TrainSplit] = []
    real = preparing.TrainBatches.of

    def watched(train: data.TrainSplit, *rest: Any) -> preparing.TrainBatches:
        shown.append(train)
        return real(train, *rest)

    monkeypatch.setattr(preparing.TrainBatches, "of", watched)
    spec = tiny_spec(METHODS["hf_eva"](r=2), dataset=digits(8))
    record = experiment.run(spec, ResultsStore(tmp_path), experiment.RunOptions(timed=False))
    assert record.status is Status.OK, record.error
    assert record.provenance is not None and record.reload is not None
    facts = record.provenance.data["prepared"]
    (train,) = shown
    assert type(train) is data.TrainSplit and facts["batches"] == 1
    backbone = load(spec.backbone, 2)
    anatomy = describe(backbone.model, backbone.image_size)
    compute = Compute(torch.device("cpu"), torch.float32)
    found = [
        preparing.facts_of(preparing.learnt(spec.method, backbone, anatomy, train, seed, compute))
        for seed in (0, 0, 1)
    ]
    assert len(facts["sha256"]) == 64 and facts.keys() == found[0]["prepared"].keys()
    assert found[0] == found[1] != found[2]


def test_any_other_split_is_refused() -> None:
    spec = dataclasses.replace(tiny_spec(), phase=Phase.TUNE)
    backbone = load(BackboneSpec("vit_mini", image_size=12), 2)
    splits = data.load(spec.dataset, spec.phase, backbone.preprocessing)
    with pytest.raises(SplitRoleError, match="prepare takes a TrainSplit, not a ValSplit"):
        preparing.TrainBatches.of(splits.report, backbone, 0, torch.device("cpu"))
    batches = preparing.TrainBatches.of(splits.train, backbone, 0, torch.device("cpu"))
    counted = sum(len(labels) for _, labels in batches)
    assert counted == len(splits.train.labels)
