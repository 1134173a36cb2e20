"""Parameter counts of methods of the weight space on ViT-B/16, built without memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from support.copies import Copies

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.methods import METHODS, apply, discover
from peftbench.spec import BackboneSpec

discover()


@cache
def vit_b() -> tuple[Copies, Anatomy]:
    loaded = load(BackboneSpec("vit_base_patch16_224", pretrained=False), 100, device="meta")
    return Copies(loaded.model), describe(loaded.model, loaded.image_size)


def count(method: str, **options: Any) -> int:
    """Trainable parameters without the head; the closed form must say the same."""
    copies, anatomy = vit_b()
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[method](**options), copies(), anatomy, 100, generator)
    counted = sum(p.numel() for p in {**tuned.method_params, **tuned.unfrozen_params}.values())
    assert tuned.method.expected_params(anatomy) == counted
    return counted


def test_krona() -> None:
    """24 x 24 and 32 x 32 for each of q and v, 1600 as LoKr makes of the same matrix."""
    assert count("krona") == 24 * 1600


def test_vera() -> None:
    """L (d + r), as section 3.2 of the paper counts, for each of q and v."""
    assert count("vera") == 12 * 2 * (256 + 768) == 24_576


def test_arc() -> None:
    """Two matrices of 768 x 50, and 50 + 768 numbers for each of 24 places."""
    assert count("arc") == 2 * 768 * 50 + 24 * (50 + 768)
    assert count("arc", branches="attention") == 768 * 50 + 12 * (50 + 768)


def test_rlrr() -> None:
    """In each block 13,824 scales and 6,912 shifts; 2 x 768 behind embedding and 25 norms.

    The matrices alone are the 0.249 M of the plain formula.
    """
    pairs = 26 * 2 * 768
    assert count("rlrr", variant="released") == 12 * (13_824 + 6_912) + pairs
    assert count("rlrr", variant="released", norms=False) == 248_832
    assert count("rlrr") == 12 * (13_824 + 6_912 - 768) + pairs


def test_glora() -> None:
    """r = 4: of qkv, proj, fc1 and fc2 A and B 2 r (in + out), C r (in + 1), D and E 2 out."""
    inputs, outputs = 3 * 768 + 3072, 2304 + 768 + 3072 + 768
    block = 2 * 4 * (inputs + outputs) + 4 * (inputs + 4) + 2 * outputs
    assert count("glora") == 12 * block
    assert count("glora", random_paths=True) == 12 * block


def test_cara() -> None:
    """36 and 108 slices; 12 heads of 64 channels; three biases."""
    attention, others = 36 + 768 + 12 + 64 + 1, 108 + 2 * 768 + 1
    assert count("cara") == 32 * (attention + others) + 768 + 3072 + 768


def test_snell() -> None:
    """r numbers for each input and output of six matrices a block, and the class token."""
    sides = 4 * (768 + 768) + 2 * (768 + 3072)
    assert count("snell", rank=8) == 12 * 8 * sides + 768
    assert count("snell", rank=8, form="snella") == 12 * (8 * sides + 18) + 768


def test_kadaptation() -> None:
    """As released 12 (4 d t + d) + 4 n n, which with the mean head is the 79,699 of its table."""
    layers = 12 * 4 * 768
    released = count("kadaptation", variant="released")
    assert released == layers + 12 * 768 + 4 * 32 * 32 == 50_176
    assert count("kadaptation") == layers + 2 * 32**3
    assert count("kadaptation", rule_rank=1, bias=True) == released


def test_binary_adapters() -> None:
    """The released h = 32: of q and v 2 (768 + 768) h, beside each MLP 2 * 768 h."""
    assert count("bi_lora") == 12 * 2 * 32 * (768 + 768)
    assert count("bi_adaptformer") == 12 * 2 * 32 * 768
