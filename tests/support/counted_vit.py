"""The backbone on which papers count parameters."""

from __future__ import annotations

from functools import cache

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.spec import BackboneSpec


@cache
def vit_b() -> Anatomy:
    """ViT-B/16 at 224 pixels, without memory."""
    spec = BackboneSpec("vit_base_patch16_224", pretrained=False)
    loaded = load(spec, 2, device="meta")
    return describe(loaded.model, loaded.image_size)
