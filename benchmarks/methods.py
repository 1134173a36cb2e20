"""What methods cost beside full fine-tuning, and parts of a step beside other ways to do them.

    python benchmarks/methods.py [--only PART ...] [--quick] [--device cpu]

Each ratio is a median of turns in one process (see `pairs.py`); on a CPU of processor seconds on
one core. Random weights and images. Writes `results/benchmarks/methods_<device>.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from pairs import Pair, built, kept_bytes, own_methods, paired, step_of

from peftbench.backbones.load import load
from peftbench.data import TrainSplit
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, discover
from peftbench.run import cost, provenance
from peftbench.spec import BackboneSpec, Precision, Recipe
from peftbench.training.device import Compute, autocast, choose_device, choose_dtype, seeded
from peftbench.training.loop import fit
from peftbench.training.optim import make_optimizer

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
VIT, RESNET, MINI = "vit_small_patch16_224", "resnet50", "vit_mini"
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@dataclasses.dataclass(frozen=True)
class Setting:
    """On what is measured, and how often."""

    device: torch.device
    fast: torch.dtype  # what precision=auto comes to
    repeats: int
    batch: int
    quick: bool  # whether every part is only tried out

    def computing(self, dtype: torch.dtype | None = None) -> Compute:
        return Compute(self.device, dtype or self.fast)

    def backbone(self) -> str:
        return MINI if self.quick else VIT


def steps(setting: Setting) -> Iterator[dict[str, Any]]:
    """Step of each method over that of full fine-tuning."""
    compute, name = setting.computing(), setting.backbone()
    _, fittable, size = built(name, METHODS["full"](), compute)
    full = step_of(fittable, setting.batch, size, compute)
    for method in own_methods():
        label = f"step, {method} over full"
        try:
            tuned, fittable, size = built(name, METHODS[method](), compute)
        except Unsupported as e:
            yield {"name": label, "absent": str(e)}
            continue
        step = step_of(fittable, setting.batch, size, compute)
        row = _row(paired(label, step, full, setting.device, setting.repeats))
        trained = sum(p.numel() for p in tuned.trainable.values())
        yield {**row, "trained_parameters": trained, **pairs.switches(tuned.model)}
        del tuned, fittable, step
        gc.collect()


def activations(setting: Setting) -> Iterator[dict[str, Any]]:
    """Bytes kept for the backward pass over those of full fine-tuning, float32, four images."""
    compute = setting.computing(FLOAT32)
    for name in (setting.backbone(), "resnet10t" if setting.quick else RESNET):
        _, fittable, size = built(name, METHODS["full"](), compute)
        full = kept_bytes(fittable, 4, size, compute)
        for method in own_methods():
            label = f"kept activations, {method} over full, {name}"
            try:
                _, fittable, size = built(name, METHODS[method](), compute)
            except Unsupported as e:
                yield {"name": label, "absent": str(e)}
                continue
            kept = kept_bytes(fittable, 4, size, compute)
            yield {"name": label, "ratio": kept / full, "bytes": kept}


def hugging_face(setting: Setting) -> Iterator[dict[str, Any]]:
    """Step of our LoRA over that of HF `peft`, rank 8 on the fused projection of each block."""
    label = "step, LoRA over LoRA of HF peft"
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        yield {"name": label, "absent": "peft is not installed: pip install -e '.[bench]'"}
        return
    compute, name = setting.computing(), setting.backbone()
    tuned, fittable, size = built(name, METHODS["lora"](rank=8, targets=("qkv",)), compute)
    spec = BackboneSpec(name, pretrained=False)
    backbone = load(spec, pairs.CLASSES, device=setting.device, dtype=setting.fast)
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    theirs = get_peft_model(backbone.model, config)
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    other = dataclasses.replace(
        fittable, model=theirs, trainable=trainable, set_mode=lambda: theirs.train() and None
    )
    ours = step_of(fittable, setting.batch, size, compute)
    row = paired(
        label,
        ours,
        step_of(other, setting.batch, size, compute),
        setting.device,
        2 * setting.repeats + 1,
    )
    own = sum(p.numel() for p in tuned.trainable.values())
    yield {**_row(row), "parameters": own, "their_parameters": sum(p.numel() for p in trainable)}


def loop(setting: Setting) -> Iterator[dict[str, Any]]:
    """An epoch of `fit` over that of a loop of ten lines, vit_mini, LoRA, float32."""
    compute, count = setting.computing(FLOAT32), 64 if setting.quick else 512
    recipe = Recipe(epochs=1, warmup_epochs=0, batch_size=32, lr=1e-4)
    _, fittable, size = built(MINI, METHODS["lora"](), compute)
    images, labels = pairs.images_of(count, size)
    split = TrainSplit(images, labels, tuple(map(str, range(count))))

    def own() -> None:
        with seeded(0, compute):
            fit(fittable, split, recipe, seed=0, compute=compute)

    x = torch.tensor(images, device=setting.device)
    y = torch.tensor(labels, device=setting.device)
    mean, std = (
        torch.tensor(values, device=setting.device).view(1, 3, 1, 1)
        for values in (fittable.preprocessing.mean, fittable.preprocessing.std)
    )

    def bare() -> None:
        optimizer = make_optimizer(recipe, fittable.trainable)
        fittable.set_mode()
        for chosen in torch.randperm(count, device=setting.device).split(32):
            inputs = (x[chosen].permute(0, 3, 1, 2).float() / 255 - mean) / std
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(fittable.model(inputs), y[chosen]).backward()
            optimizer.step()

    label = "epoch, fit over a bare loop, vit_mini"
    yield _row(paired(label, own, bare, setting.device, 2 * setting.repeats + 1))


def attention(setting: Setting) -> Iterator[dict[str, Any]]:
    """Passes of a block, unfused over fused: where the table of `backbones/kernels.py` is from."""
    torch.manual_seed(0)
    block = Block(384, 6, qkv_bias=True).to(setting.device)
    for dtype in (FLOAT32, BFLOAT16):
        for tokens, count in ((17, 64), (65, 24), (197, 8)):
            x = torch.randn(count, tokens, 384, device=setting.device, requires_grad=True)
            compute = setting.computing(dtype)

            def passing(fused: bool, x: torch.Tensor = x, compute: Compute = compute) -> None:
                block.attn.fused_attn = fused
                with autocast(compute):
                    y = block(x)
                y.float().square().mean().backward()

            label = f"attention, unfused over fused, {_word(dtype)}, {tokens} tokens"
            turns = 2 * setting.repeats + 1
            call = _calls(passing)
            yield _row(paired(label, call(False), call(True), setting.device, turns))


def _calls(function: Callable[[bool], None]) -> Callable[[bool], Callable[[], None]]:
    return lambda value: lambda: function(value)


def precision(setting: Setting) -> Iterator[dict[str, Any]]:
    """Step in float32 over that in bfloat16, each with its own kernels."""
    for name, count in ((setting.backbone(), setting.batch), (MINI, 32)):
        for method in ("full", "lora"):
            made = []
            for dtype in (FLOAT32, BFLOAT16):
                compute = setting.computing(dtype)
                _, fittable, size = built(name, METHODS[method](), compute)
                made.append(step_of(fittable, count, size, compute))
            label = f"step, float32 over bfloat16, {method}, {name}"
            yield _row(paired(label, *made, setting.device, setting.repeats))


PARTS = {
    "precision": precision,
    "attention": attention,
    "loop": loop,
    "hugging_face": hugging_face,
    "activations": activations,
    "steps": steps,
}


def _row(pair: Pair) -> dict[str, Any]:
    return dataclasses.asdict(pair)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _print(row: dict[str, Any]) -> None:
    if "absent" in row:
        print(f"{'-':>6}  {row['name']}: {row['absent']}", flush=True)
        return
    span = f" ({row['low']:.2f} to {row['high']:.2f})" if "low" in row else ""
    print(f"{row['ratio']:6.2f}  {row['name']}{span}", flush=True)


def slug(name: str) -> str:
    """A name of a device as a part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="try every part out, on vit_mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    discover()
    device = choose_device(arguments.device)
    fast = choose_dtype(Precision.AUTO, device)
    count = 2 if arguments.quick else 4 if device.type == "cpu" else 64
    repeats = 1 if arguments.quick else arguments.repeats
    setting = Setting(device, fast, repeats, count, arguments.quick)
    began, rows = time.perf_counter(), []
    for part in arguments.only:
        for row in PARTS[part](setting):
            rows.append({"part": part, **row})
            _print(row)
    result = {
        "device": cost.device_name(device),
        "backbone": setting.backbone(),
        "dtype": _word(fast),
        "batch": count,
        "threads": 1,
        "seconds": time.perf_counter() - began,
        "driver": provenance.driver(),
        "versions": provenance.versions(),
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"methods_{slug(result['device'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
