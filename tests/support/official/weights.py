"""Methods that change weights: of the official files, and those that folding makes ones."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "arc_swin": ("arc", {"rank": 5, "variant": "released"}),
    "arc_vit": ("arc", {"rank": 8}),
    "biadaptformer_1bit_vit": (
        "bi_adaptformer",
        {"bottleneck": 8, "scale": 0.7, "dropout": 0.0},
    ),
    "bilora_1bit_vit": ("bi_lora", {"rank": 6, "dropout": 0.0}),
    "cara_vit": ("cara", {"rank": 6, "scale": 0.7, "num_heads": 4, "dropout": 0.0}),
    "glora_full_vit": ("glora", {"rank": 4}),
    "glora_paths_vit": (
        "glora",
        {
            "rank": 3,
            "variant": "released",
            "paths": [
                "0.proj:vector/constant/vector/constant/none",
                "0.fc1:constant/vector/none/none/constant",
                "0.fc2:none/lora/lora/vector/vector",
                "1.qkv:lora/none/vector/none/vector",
                "1.proj:vector/vector/none/constant/constant",
                "1.fc1:none/none/none/none/none",
            ],
        },
    ),
    "rlrr_vit": ("rlrr", {"variant": "released"}),
    "snell_vit": ("snell", {"rank": 8, "threshold": 0.7}),
    "snella_vit": ("snell", {"form": "snella", "rank": 6, "threshold": 0.6}),
}

ELSEWHERE = {"kadaptation_module": "test_weights.py"}

NAMES: tuple[tuple[str, str], ...] = (
    # U is shared: by all blocks of a ViT, and by those of a stage
    (r"arc\.att\.down", r"blocks.0.attn.qkv.adapter.shared.value"),
    (r"arc\.mlp\.down", r"blocks.0.mlp.fc1.adapter.shared.value"),
    (r"blocks\.(\d)\.arc_att\.(\w+)", r"blocks.\1.attn.qkv.adapter.\2"),
    (r"blocks\.(\d)\.arc_mlp\.(\w+)", r"blocks.\1.mlp.fc1.adapter.\2"),
    (r"(layers\.\d)\.arc_att\.down", r"\1.blocks.0.block.attn.qkv.adapter.shared.value"),
    (r"(layers\.\d)\.arc_mlp\.down", r"\1.blocks.0.block.norm2.adapter.shared.value"),
    (r"(layers\.\d\.blocks\.\d)\.arc_att\.(\w+)", r"\1.block.attn.qkv.adapter.\2"),
    (r"(layers\.\d\.blocks\.\d)\.arc_mlp\.(\w+)", r"\1.block.norm2.adapter.\2"),
    (r"(.+)\.ssf_(scale|shift)", r"\1.adapter.\2"),
    (r"(blocks\.\d\.attn)\.(q|k|v)\.rlrr_(?:bias_)?(\w+)", r"\1.qkv.delta.\3.\2"),
    (r"(.+)\.(proj|fc1|fc2)\.rlrr_(?:bias_)?(\w+)", r"\1.\2.delta.\3.\2"),
    *((rf"(.+)\.glora_{name.upper()}d", rf"\1.delta.supports.{name}_down") for name in "abc"),
    *((rf"(.+)\.glora_{name.upper()}u", rf"\1.delta.supports.{name}_up") for name in "abc"),
    *((rf"(.+)\.glora_{name.upper()}", rf"\1.delta.supports.{name}") for name in "de"),
    # tensors and biases are shared by all blocks
    (r"cara\.attn\.in", r"blocks.0.attn.qkv.delta.factors.into"),
    (r"cara\.attn\.headdim", r"blocks.0.attn.qkv.delta.factors.head_width"),
    (r"cara\.attn\.lambda", r"blocks.0.attn.qkv.delta.factors.weights"),
    (r"cara\.attn\.(\w+)", r"blocks.0.attn.qkv.delta.factors.\1"),
    (r"cara\.ffn\.lambda", r"blocks.0.attn.proj.delta.factors.weights"),
    (r"cara\.ffn\.(\w+)", r"blocks.0.attn.proj.delta.factors.\1"),
    (r"cara\.proj\.bias", r"blocks.0.attn.proj.delta.bias.value"),
    (r"cara\.(fc1|fc2)\.bias", r"blocks.0.mlp.\1.delta.bias.value"),
    # the coefficients of all targets of a layer are one buffer
    (r"(blocks\.\d\.attn)\.[qkv]\.snell_coeff", r"\1.qkv.delta.coefficients"),
    (r"(.+)\.snell_coeff", r"\1.delta.coefficients"),
    (r"(blocks\.\d\.attn)\.([qkv])\.snell_(in|out)", r"\1.qkv.delta.\3puts.\2"),
    (r"(.+)\.(\w+)\.snell_(in|out)", r"\1.\2.delta.\3puts.\2"),
    (r"(blocks\.\d\.attn)\.([qkv])\.snell_(\w+)", r"\1.qkv.delta.\3.\2"),
    (r"(.+)\.(\w+)\.snell_(\w+)", r"\1.\2.delta.\3.\2"),
    (r"blocks\.(\d)\.bilora_(q|v)\.(down|up)", r"blocks.\1.attn.qkv.delta.\3.\2.full"),
    (r"blocks\.(\d)\.biadapter\.(down|up)", r"blocks.\1.block.norm2.adapter.\2.full"),
)
