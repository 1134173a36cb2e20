"""Damaged files of weights end in weights or in one line, without a hang or a full memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.mutation import COPIES, mutations

GROWTH = 500  # MB
SCRIPT = """
import json, resource, sys, timm
from pathlib import Path
from support.mutation import mutations
from peftbench.backbones.checkpoints import fitting
from peftbench.errors import WeightsError

path, count, damaged = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
build = lambda: timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2,
    num_classes=2)
model = build()
fitting.fit(path, model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {"loaded": 0, "refused": 0, "wrong": []}
for i, data in enumerate(mutations(path.read_bytes(), count, seed=5)):
    damaged.write_bytes(data)
    try:
        fitting.fit(damaged, model)
        found["loaded"] += 1
    except WeightsError as e:
        found["refused"] += 1
        if not str(e).isprintable() or not str(e).endswith("."):
            found["wrong"].append([i, str(e)])
    except BaseException as e:
        found["wrong"].append([i, f"{type(e).__name__}: {e}"])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({**found, "growth": (after - before) / 1024}))
"""


def _state() -> dict[str, torch.Tensor]:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1},
        num_heads=2,
        num_classes=2,
    )
    return {n: t.clone() for n, t in model.state_dict().items()}


def _zip() -> bytes:
    file = io.BytesIO()
    torch.save({"model": _state(), "epoch": 3, "best": np.float64(0.5)}, file)
    return file.getvalue()


def _legacy() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": _state()}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _flax() -> bytes:
    """The original release's names: kernels are transposed, heads apart."""
    generator = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    block = "Transformer/encoderblock_0/"
    attention = block + "MultiHeadDotProductAttention_1/"
    arrays = {
        "embedding/kernel": array(4, 4, 3, 8),
        "embedding/bias": array(8),
        "cls": array(1, 1, 8),
        "Transformer/posembed_input/pos_embedding": array(1, 5, 8),
        "Transformer/encoder_norm/scale": array(8),
        "Transformer/encoder_norm/bias": array(8),
        **{f"{block}LayerNorm_{i}/{kind}": array(8) for i in (0, 2) for kind in ("scale", "bias")},
        **{f"{attention}{part}/kernel": array(8, 2, 4) for part in ("query", "key", "value")},
        **{f"{attention}{part}/bias": array(2, 4) for part in ("query", "key", "value")},
        f"{attention}out/kernel": array(2, 4, 8),
        f"{attention}out/bias": array(8),
        f"{block}MlpBlock_3/Dense_0/kernel": array(8, 32),
        f"{block}MlpBlock_3/Dense_0/bias": array(32),
        f"{block}MlpBlock_3/Dense_1/kernel": array(32, 8),
        f"{block}MlpBlock_3/Dense_1/bias": array(8),
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zip.pth", _zip),
        ("legacy.pth", _legacy),
        ("weights.safetensors", lambda: save(_state())),
        ("weights.npz", _flax),
    ],
    ids=["zip", "legacy", "safetensors", "npz"],
)
def test_damaged_files_load_or_end_in_one_line(
    tmp_path: Path, name: str, content: Callable[[], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    command = [sys.executable, "-c", SCRIPT, path, str(COPIES), tmp_path / f"damaged{path.suffix}"]
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=tests, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["wrong"], found["wrong"][:5]
    assert found["loaded"] + found["refused"] == COPIES
    assert found["refused"] > COPIES / 4
    assert found["growth"] < GROWTH


def test_damage_is_the_same_for_the_same_seed() -> None:
    first = list(mutations(b"0123456789" * 20, 50, seed=1))
    assert first == list(mutations(b"0123456789" * 20, 50, seed=1))
    assert first != list(mutations(b"0123456789" * 20, 50, seed=2))
    assert len(set(first)) > 40
