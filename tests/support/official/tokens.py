"""Methods of maps, prompts and prefixes, and their official files."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv_adapter_convnext": ("conv_adapter", {"reduction": 4, "variant": "released"}),
    "conv_adapter_resnet": ("conv_adapter", {"reduction": 2, "variant": "released"}),
    "mona_swin": ("mona", {"bottleneck": 16}),
}

NAMES: tuple[tuple[str, str], ...] = (
    # the last block, behind which the released code puts a batch norm
    (r"layer4\.0\.conv_adapter\.(.+)", r"layer4.0.base.conv2.adapter.\1"),
    (r"(layer\d\.\d)\.conv_adapter\.(.+)", r"\1.conv2.adapter.\2"),
    (r"final_bn\.(.+)", r"layer4.0.adapter.\1"),
    (r"(stages\.\d\.blocks\.\d)\.conv_adapter\.(.+)", r"\1.conv_dw.adapter.\2"),
    (r"(stages\.\d\.downsample)\.conv_adapter\.(.+)", r"\1.1.adapter.\2"),
    (
        r"(layers\.\d\.blocks\.\d)\.mona_attn\.(.+)",
        r"\1.base.block.norm2.adapter.\2",
    ),
    (r"(layers\.\d\.blocks\.\d)\.mona_mlp\.(.+)", r"\1.adapter.\2"),
)

ELSEWHERE: dict[str, str] = {
    "mam_module": "test_tokens.py",
    "mona_module": "test_tokens.py",
}
