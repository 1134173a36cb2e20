"""What only a CUDA device can show; deselected by default (`pytest -m gpu`)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_runs import QUICK

from peftbench import data
from peftbench.backbones.kernels import choose_layout
from peftbench.backbones.load import load
from peftbench.data import TrainSplit
from peftbench.methods import METHODS, discover
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import BackboneSpec, DatasetSpec, Precision, Preprocessing, Recipe, RunSpec
from peftbench.training.augment import Augmentation
from peftbench.training.device import Compute
from peftbench.training.fittable import Fittable
from peftbench.training.loop import fit

pytestmark = pytest.mark.gpu
discover()


def run(store: Path, method: str, device: str, precision: str = "auto") -> RunRecord:
    spec = RunSpec(
        method=METHODS[method](),
        backbone=BackboneSpec(name="vit_mini"),
        dataset=data.identify(DatasetSpec(name="mini/digits", reader="mini")),
        recipe=Recipe(epochs=15, warmup_epochs=2, batch_size=32, lr=3e-3),
        precision=Precision(precision),
    )
    return experiment.run(spec, ResultsStore(store), experiment.RunOptions(device=device))


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_in_bfloat16_on_the_device(tmp_path: Path, method: str) -> None:
    record = run(tmp_path, method, "cuda")
    assert record.status is Status.OK, record.error
    assert record.cost is not None
    assert record.cost.device == torch.cuda.get_device_name()
    assert record.cost.peak_bytes is not None and record.cost.peak_bytes < 2**30


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_cpu_and_gpu_agree_within_seed_noise(tmp_path: Path, method: str) -> None:
    on_cpu = run(tmp_path / "cpu", method, "cpu", "float32")
    on_gpu = run(tmp_path / "gpu", method, "cuda", "float32")
    assert on_cpu.run_id == on_gpu.run_id
    first, second = on_cpu.metrics["test/top1"], on_gpu.metrics["test/top1"]
    assert first is not None and second is not None
    # 1,000 test images: the standard error of one accuracy is at most 0.016
    assert abs(first - second) < 0.03


def test_trainable_weights_stay_float32_under_autocast(tmp_path: Path) -> None:
    record = run(tmp_path, "lora", "cuda", "bfloat16")
    assert record.cost is not None and record.cost.dtype == "bfloat16"
    from safetensors.torch import load_file

    store = ResultsStore(tmp_path)
    tensors = load_file(store.artefacts(record) / "tuned.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert dataclasses.asdict(record)["merge"]["max_logit_difference"] < 0.25  # bfloat16 rounding


@pytest.mark.parametrize("crop", ["crop_flip", "random_crop_flip"])
def test_augmentation_is_the_same_on_the_gpu_as_on_the_cpu(crop: str) -> None:
    recipe = Recipe(augmentation=crop, mixup=0.8, cutmix=1.0, random_erasing=0.5)
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y, flip_draws = torch.arange(6) % 3, torch.linspace(0, 0.9, 6)
    here, there = (Augmentation(recipe, 3, seed=0, size=12) for _ in range(2))
    sizes = [(10 + 7 * i, 30) for i in range(6)]
    for _ in range(4):
        images, targets = here(x, y, flip_draws, sizes=sizes)
        on_gpu, shares = there(x.cuda(), y.cuda(), flip_draws.cuda(), sizes=sizes)
        torch.testing.assert_close(on_gpu.cpu(), images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shares.cpu(), targets)


def test_an_epoch_of_more_steps_waits_no_more_often_for_the_device() -> None:
    compute = Compute(torch.device("cuda"), torch.bfloat16)
    preprocessing = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).cuda()
    fittable = Fittable(model, list(model.parameters()), lambda: None, preprocessing)

    def waits(steps: int) -> int:
        images = np.random.default_rng(0).integers(0, 256, (4 * steps, 8, 8, 3), dtype=np.uint8)
        split = TrainSplit(images, np.arange(4 * steps) % 3, tuple(map(str, range(4 * steps))))
        recipe = Recipe(epochs=1, warmup_epochs=0, batch_size=4, clip_grad=1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                fit(fittable, split, recipe, seed=0, compute=compute)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(w.message) for w in caught)

    waits(3)  # fills the caches of the libraries
    few = waits(3)
    assert few > 0  # around an epoch there are some, which shows that they are counted
    assert waits(9) == few


def test_a_gpu_takes_fused_attention_and_channels_last() -> None:
    vit = load(BackboneSpec("test_vit", pretrained=False), 3, device="cuda", dtype=torch.bfloat16)
    assert all(m.fused_attn for m in vit.model.modules() if hasattr(m, "fused_attn"))
    net = load(BackboneSpec("test_resnet", pretrained=False), 3, device="cuda").model
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    first = net(x)
    choose_layout(net)
    assert not net.conv1[0].weight.is_contiguous()
    torch.testing.assert_close(net(x), first, rtol=1e-2, atol=1e-2)  # TF32


def test_two_jobs_on_one_card_finish(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "peftbench", "run", "-m", *QUICK, "seed=0,1"),
            *("hydra.launcher.gpus=1", "hydra.launcher.jobs_per_gpu=2"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2 jobs: 0 already done, 2 to run, 2 at a time"
    records = list(ResultsStore(tmp_path / "results").records())
    assert [record.status for record in records] == [Status.OK] * 2
    name = torch.cuda.get_device_name()
    assert all(record.cost is not None and record.cost.device == name for record in records)
    # they ran at the same time: each began before the other ended
    first, second = records
    assert first.started < second.finished and second.started < first.finished
