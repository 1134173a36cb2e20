"""The first twenty methods and their official files."""

from __future__ import annotations

from typing import Any

# file -> method and hyper-parameters that give the same function
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter_houlsby_ap_vit": ("adapter", {"position": "houlsby", "bottleneck": 6}),
    "adapter_noah_vit": ("adapter", {"bottleneck": 6, "activation": "quick_gelu"}),
    "adapter_plus_vit": ("adapter_plus", {"bottleneck": 8}),
    "adapter_vpt_vit": ("adapter_vpt", {"reduction": 4}),
    "adaptformer_bnhead_vit": ("adaptformer", {"bottleneck": 6, "variant": "released"}),
    "adaptformer_nobias_vit": ("adaptformer", {"bottleneck": 8, "bias": False}),
    "adaptformer_vit": ("adaptformer", {"bottleneck": 8}),
    "bias_swin": ("bias", {"variant": "released"}),
    "bias_vit": ("bias", {}),
    "convpass_vit": ("convpass", {"bottleneck": 8, "scale": 0.5}),
    "fact_tk_vit": ("fact_tk", {"rank": 6, "scale": 0.5, "variant": "released"}),
    "fact_tt_vit": ("fact_tt", {"rank": 4, "scale": 0.5}),
    "full_vit": ("full", {}),
    "linear_vit": ("linear", {}),
    "lora_fused_qkv_noah_vit": ("lora", {"rank": 4, "alpha": 4.0, "targets": ["qkv"]}),
    "lora_qv_vit": ("lora", {"rank": 4, "alpha": 4.0, "targets": ["q", "v"]}),
    "mlp3_vit_eval": ("mlp", {"num_layers": 3, "dropout": 0.0}),
    "mlp3_vit_train": ("mlp", {"num_layers": 3, "dropout": 0.0}),
    "partial0_convnext": ("partial", {"num_blocks": 1}),
    "partial0_resnet_trainbn": ("partial", {"num_blocks": 1}),
    "partial1_vit": ("partial", {"num_blocks": 1}),
    "repadapter_block_vit": ("repadapter", {"bottleneck": 8, "groups": 2, "scale": 0.7}),
    "sidetune_vit": ("sidetune", {"alpha": 0.4}),
    "ssf_convnext": ("ssf", {"variant": "released"}),
    "ssf_swin": ("ssf", {"variant": "released"}),
    "ssf_vit": ("ssf", {}),
    "vpt_deep_mae_vit": ("vpt_deep", {"num_tokens": 3, "pool_prompts": True}),
    "vpt_deep_swin": ("vpt_deep", {"num_tokens": 2, "pool_prompts": True}),
    "vpt_deep_vit": ("vpt_deep", {"num_tokens": 4}),
    "vpt_deep_vit_project": ("vpt_deep", {"num_tokens": 3, "project_width": 16}),
    "vpt_pad_convnext": ("vpt_pad", {"num_tokens": 4}),
    "vpt_pad_resnet": ("vpt_pad", {"num_tokens": 3}),
    "vpt_shallow_swin": ("vpt_shallow", {"num_tokens": 3, "pool_prompts": True}),
    "vpt_shallow_vit": ("vpt_shallow", {"num_tokens": 5}),
}

# role in a file -> name of the tensor here; {head} is the path of the classifier, {last} of its
# last layer, which differs for an MLP head, and {stem} of the layer that reads the image
NAMES: tuple[tuple[str, str], ...] = (
    (r"head\.hidden\.(\d)\.(linear|bn)\.(\w+)", r"{head}.\2\1.\3"),
    (r"prompt\.layer0(\d)", r"blocks.\1.prompts.tokens"),
    (r"prompt\.proj\.(weight|bias)", r"blocks.0.prompts.projection.\1"),
    (r"prompt\.(layers\.\d\.blocks\.\d)", r"\1.prompts.tokens"),
    (r"prompt\.(top_bottom|left_right)", r"{stem}.\1"),
    (r"blocks\.(\d)\.adapter\.(.+)", r"blocks.\1.{adapter}.\2"),
    (r"blocks\.(\d)\.adapter_attn\.(.+)", r"blocks.\1.attn.proj.adapter.\2"),
    (r"blocks\.(\d)\.convpass_attn\.(.+)", r"blocks.\1.block.norm1.adapter.\2"),
    (r"blocks\.(\d)\.convpass_mlp\.(.+)", r"blocks.\1.block.norm2.adapter.\2"),
    (r"blocks\.(\d)\.repadapter_attn\.(.+)", r"blocks.\1.attn.qkv.adapter.\2"),
    (r"blocks\.(\d)\.repadapter_mlp\.(.+)", r"blocks.\1.mlp.fc1.adapter.\2"),
    # behind the last block, which the released code does on ConvNeXt alone
    (r"stages\.ssf_(scale|shift)", r"stages.3.blocks.0.adapter.\1"),
    (r"stages\.3\.blocks\.0\.(.+)\.ssf_(scale|shift)", r"stages.3.blocks.0.base.\1.adapter.\2"),
    (r"(.+)\.ssf_(scale|shift)", r"\1.adapter.\2"),
    (r"fact\.(u|v)", r"blocks.0.attn.qkv.delta.factors.\1"),  # shared by all blocks
    (r"fact\.(core|p)", r"blocks.0.attn.qkv.delta.tucker.\1"),
    (r"fact\.blocks\.(\d)\.attn\.(q|k|v)\.core", r"blocks.\1.attn.qkv.delta.core.\2"),
    (r"fact\.blocks\.(\d)\.(attn|mlp)\.(\w+)\.core", r"blocks.\1.\2.\3.delta.core.\3"),
    (r"blocks\.(\d)\.attn\.lora_(q|v|qkv)\.(a|b)", r"blocks.\1.attn.qkv.delta.\3.\2"),
    (r"side\.(alpha|projection\.weight)", r"\1"),
    (r"(side\.features\..+)", r"\1"),
)
