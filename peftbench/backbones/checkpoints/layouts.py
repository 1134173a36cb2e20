"""Names that other projects give to the tensors of timm's architectures, and timm's own.

The tables state facts about published files; timm's own converters come after them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# one tensor's name as a regular expression, and the name here; \d and groups as in `re.sub`
Renames = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WeightLayout:
    """The names of one project for one kind of architecture."""

    project: str
    anchor: str  # a name that only this layout has
    renames: Renames
    adjust: Callable[[dict[str, Tensor], Collection[str]], dict[str, Tensor]] | None = None


def recognise(names: Collection[str]) -> WeightLayout | None:
    """The layout that `names` are in, or None for timm's own names and unknown ones."""
    for layout in LAYOUTS:
        anchor = re.compile(layout.anchor)
        if any(anchor.fullmatch(name) for name in names):
            return layout
    return None


def guess_project(names: Collection[str]) -> str:
    """The project whose names these look like, wherever they begin; empty if none is known."""
    for layout in LAYOUTS:
        anchor = re.compile(r"(.*\.)?" + f"({layout.anchor})")
        if any(anchor.fullmatch(name) for name in names):
            return layout.project
    for pattern, project in PROJECTS:
        if any(re.search(pattern, name) for name in names):
            return project
    return ""


def translate(
    layout: WeightLayout, state: Mapping[str, Tensor], own: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """`state` under timm's names, and the names that the layout says nothing about.

    `own` are the names that the model needs: they say in which form it has its projections.
    """
    renames = [(re.compile(pattern), name) for pattern, name in layout.renames]
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        for pattern, replacement in renames:
            match = pattern.fullmatch(name)
            if match is not None:
                new = match.expand(replacement)
                if new in renamed:
                    unknown.append(name)
                else:
                    renamed[new] = tensor
                break
        else:
            unknown.append(name)
    renamed = _fuse(renamed, own)
    if layout.adjust is not None:
        renamed = layout.adjust(renamed, own)
    return renamed, unknown


PARTS = (".q.", ".k.", ".v.")


def _fuse(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Queries, keys and values as one projection; a key without a bias has one of zeros."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, projection, kind = next(
            (name.partition(p) for p in PARTS if p in name), (name, "", "")
        )
        joint = f"{stem}.qkv.{kind}"
        if not projection or name in own:
            fused[name] = tensor
        elif kind == "weight":
            parts = [state.get(f"{stem}{part}{kind}") for part in PARTS]
            if all(part is not None for part in parts):
                fused[joint] = torch.cat([part for part in parts if part is not None])
            else:
                fused[name] = tensor
        elif joint in own:
            parts = [state.get(f"{stem}{part}{kind}") for part in PARTS]
            fused[joint] = torch.cat([torch.zeros_like(tensor) if p is None else p for p in parts])
        else:  # timm's BEiT and Swin v2 have no bias of the keys, or one of its own
            fused[f"{stem}.{projection[1]}_bias"] = tensor
    return fused


def _registers(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """timm adds the position of the class token to it where there are registers."""
    positions, token = state.get("pos_embed"), state.get("cls_token")
    if "reg_token" in state and "reg_token" in own and positions is not None and token is not None:
        state["cls_token"] = token + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state


def _flat_tokens(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Class token and positions as timm has them: (1, tokens, width)."""
    for name in ("cls_token", "pos_embed"):
        if name in state:
            width = state[name].shape[-1]
            state[name] = state[name].reshape(1, -1, width)
    for kind in ("weight", "bias"):
        joint = state.pop(f"attn_pool.qkv.{kind}", None)
        if joint is not None:
            width = joint.shape[0] // 3
            state[f"attn_pool.q.{kind}"] = joint[:width]
            state[f"attn_pool.kv.{kind}"] = joint[width:]
    return state


def _flat_response(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The response normalisation of ConvNeXt V2 as timm has it: one number for a channel."""
    return {n: t.reshape(-1) if ".grn." in n else t for n, t in state.items()}


def _gated(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """timm's name for the second half of a gated MLP, where there is one."""
    if not any(".fc1_g." in n for n in state):
        return state
    return {n.replace(".mlp.fc1.", ".mlp.fc1_x."): t for n, t in state.items()}


WB = r"(weight|bias)"
TOKENS: Renames = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (rf"embeddings\.patch_embeddings\.projection\.{WB}", r"patch_embed.proj.\1"),
)
# transformers 5 names layers and projections anew in memory, and as before in its files
LAYER = r"(?:encoder\.layer|layers)\.(\d+)"
BLOCK: Renames = (
    *(
        (
            rf"{LAYER}\.attention\.(?:attention\.{long}|{short}_proj)\.{WB}",
            rf"blocks.\1.attn.{short}.\2",
        )
        for long, short in (("query", "q"), ("key", "k"), ("value", "v"))
    ),
    (rf"{LAYER}\.attention\.(?:output\.dense|o_proj)\.{WB}", r"blocks.\1.attn.proj.\2"),
    (rf"{LAYER}\.layernorm_before\.{WB}", r"blocks.\1.norm1.\2"),
    (rf"{LAYER}\.layernorm_after\.{WB}", r"blocks.\1.norm2.\2"),
    (rf"{LAYER}\.(?:intermediate\.dense|mlp\.fc1)\.{WB}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{LAYER}\.(?:output\.dense|mlp\.fc2)\.{WB}", r"blocks.\1.mlp.fc2.\2"),
    (rf"layernorm\.{WB}", r"norm.\1"),
)
SWIN_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)"
CLIP_LAYER = r"encoder\.layers\.(\d+)"
CLIP: Renames = (
    (r"embeddings\.class_embedding", "cls_token"),
    (rf"embeddings\.patch_embedding\.{WB}", r"patch_embed.proj.\1"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (rf"pre_layrnorm\.{WB}", r"norm_pre.\1"),
    *(
        (rf"{CLIP_LAYER}\.self_attn\.{part}_proj\.{WB}", rf"blocks.\1.attn.{part}.\2")
        for part in ("q", "k", "v")
    ),
    (rf"{CLIP_LAYER}\.self_attn\.out_proj\.{WB}", r"blocks.\1.attn.proj.\2"),
    (rf"{CLIP_LAYER}\.layer_norm([12])\.{WB}", r"blocks.\1.norm\2.\3"),
    (rf"{CLIP_LAYER}\.mlp\.(fc[12])\.{WB}", r"blocks.\1.mlp.\2.\3"),
    (rf"post_layernorm\.{WB}", r"norm.\1"),
    (r"head\.probe", "attn_pool.latent"),
    (rf"head\.attention\.in_proj_{WB}", r"attn_pool.qkv.\1"),
    (rf"head\.attention\.out_proj\.{WB}", r"attn_pool.proj.\1"),
    (rf"head\.layernorm\.{WB}", r"attn_pool.norm.\1"),
    (rf"head\.mlp\.(fc[12])\.{WB}", r"attn_pool.mlp.\1.\2"),
)
LAYOUTS: tuple[WeightLayout, ...] = (
    WeightLayout(
        "transformers' BEiT",
        rf"{LAYER}\.lambda_1|{LAYER}\.(?:attention\.attention\.)?relative_position_bias\..*",
        (
            *TOKENS,
            *BLOCK,
            (rf"{LAYER}\.lambda_([12])", r"blocks.\1.gamma_\2"),
            (
                rf"{LAYER}\.(?:attention\.attention\.)?relative_position_bias"
                r"\.relative_position_bias_table",
                r"blocks.\1.attn.relative_position_bias_table",
            ),
            (
                r"encoder\.relative_position_bias\.relative_position_bias_table",
                "rel_pos_bias.relative_position_bias_table",
            ),
            (rf"pooler\.layernorm\.{WB}", r"fc_norm.\1"),
        ),
    ),
    WeightLayout(
        "transformers' DINOv2",
        r"encoder\.layer\.\d+\.layer_scale1\.lambda1",
        (
            *TOKENS,
            *BLOCK,
            (rf"encoder\.layer\.(\d+)\.norm([12])\.{WB}", r"blocks.\1.norm\2.\3"),
            (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (rf"encoder\.layer\.(\d+)\.mlp\.weights_in\.{WB}", r"blocks.\1.mlp.fc1.\2"),
            (rf"encoder\.layer\.(\d+)\.mlp\.weights_out\.{WB}", r"blocks.\1.mlp.fc2.\2"),
        ),
        _registers,
    ),
    WeightLayout(
        "transformers' ViT or DeiT",
        rf"{LAYER}\.layernorm_before\.weight|encoder\.layer\.\d+\.attention\.attention\.query\.weight",
        (*TOKENS, *BLOCK),
    ),
    WeightLayout(
        "transformers' Swin",
        rf"{SWIN_BLOCK}\.attention\.(?:self\.query|q_proj)\.weight",
        (
            (rf"embeddings\.patch_embeddings\.projection\.{WB}", r"patch_embed.proj.\1"),
            (rf"embeddings\.norm\.{WB}", r"patch_embed.norm.\1"),
            *(
                (
                    rf"{SWIN_BLOCK}\.attention\.(?:self\.{long}|{short}_proj)\.{WB}",
                    rf"layers.\1.blocks.\2.attn.{short}.\3",
                )
                for long, short in (("query", "q"), ("key", "k"), ("value", "v"))
            ),
            (
                rf"{SWIN_BLOCK}\.attention\.(?:self|relative_position_bias)"
                r"\.(relative_position_bias_table|logit_scale)",
                r"layers.\1.blocks.\2.attn.\3",
            ),
            (
                rf"{SWIN_BLOCK}\.attention\.self\.continuous_position_bias_mlp\.([02])\.{WB}",
                r"layers.\1.blocks.\2.attn.cpb_mlp.\3.\4",
            ),
            (
                rf"{SWIN_BLOCK}\.attention\.(?:output\.dense|o_proj)\.{WB}",
                r"layers.\1.blocks.\2.attn.proj.\3",
            ),
            (rf"{SWIN_BLOCK}\.layernorm_before\.{WB}", r"layers.\1.blocks.\2.norm1.\3"),
            (rf"{SWIN_BLOCK}\.layernorm_after\.{WB}", r"layers.\1.blocks.\2.norm2.\3"),
            (
                rf"{SWIN_BLOCK}\.(?:intermediate\.dense|mlp\.fc1)\.{WB}",
                r"layers.\1.blocks.\2.mlp.fc1.\3",
            ),
            (
                rf"{SWIN_BLOCK}\.(?:output\.dense|mlp\.fc2)\.{WB}",
                r"layers.\1.blocks.\2.mlp.fc2.\3",
            ),
            # they downsample at the end of a stage, timm at the start of the next one
            *(
                (
                    rf"encoder\.layers\.{stage}\.downsample\.(.*)",
                    rf"layers.{stage + 1}.downsample.\1",
                )
                for stage in range(6)
            ),
            (rf"layernorm\.{WB}", r"norm.\1"),
        ),
    ),
    WeightLayout(
        "transformers' ConvNeXt",
        r"encoder\.stages\.\d+\.layers\.\d+\.dwconv\.weight",
        (
            (rf"embeddings\.patch_embeddings\.{WB}", r"stem.0.\1"),
            (rf"embeddings\.layernorm\.{WB}", r"stem.1.\1"),
            (
                rf"encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.{WB}",
                r"stages.\1.downsample.\2.\3",
            ),
            (
                rf"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.{WB}",
                r"stages.\1.blocks.\2.conv_dw.\3",
            ),
            (
                rf"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.{WB}",
                r"stages.\1.blocks.\2.norm.\3",
            ),
            (
                rf"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv([12])\.{WB}",
                r"stages.\1.blocks.\2.mlp.fc\3.\4",
            ),
            (
                rf"encoder\.stages\.(\d+)\.layers\.(\d+)\.grn\.{WB}",
                r"stages.\1.blocks.\2.mlp.grn.\3",
            ),
            (
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter",
                r"stages.\1.blocks.\2.gamma",
            ),
            (rf"layernorm\.{WB}", r"head.norm.\1"),
        ),
        _flat_response,
    ),
    WeightLayout(
        "transformers' DINOv3",
        r"(?:model\.)?layer\.\d+\.layer_scale1\.lambda1",
        (
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.register_tokens", "reg_token"),
            (rf"embeddings\.patch_embeddings\.{WB}", r"patch_embed.proj.\1"),
            *(
                (
                    rf"(?:model\.)?layer\.(\d+)\.attention\.{part}_proj\.{WB}",
                    rf"blocks.\1.attn.{part}.\2",
                )
                for part in ("q", "k", "v")
            ),
            (rf"(?:model\.)?layer\.(\d+)\.attention\.o_proj\.{WB}", r"blocks.\1.attn.proj.\2"),
            (r"(?:model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
            (rf"(?:model\.)?layer\.(\d+)\.norm([12])\.{WB}", r"blocks.\1.norm\2.\3"),
            (rf"(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.{WB}", r"blocks.\1.mlp.fc1_g.\2"),
            (rf"(?:model\.)?layer\.(\d+)\.mlp\.up_proj\.{WB}", r"blocks.\1.mlp.fc1.\2"),
            (rf"(?:model\.)?layer\.(\d+)\.mlp\.down_proj\.{WB}", r"blocks.\1.mlp.fc2.\2"),
            (rf"norm\.{WB}", r"norm.\1"),
        ),
        _gated,
    ),
    WeightLayout(
        "transformers' CLIP or SigLIP",
        r"encoder\.layers\.\d+\.self_attn\.q_proj\.weight",
        CLIP,
        _flat_tokens,
    ),
    WeightLayout(
        "OpenAI's CLIP",
        r"transformer\.resblocks\.\d+\.attn\.in_proj_weight",
        (
            (r"class_embedding", "cls_token"),
            (r"positional_embedding", "pos_embed"),
            (r"conv1\.weight", "patch_embed.proj.weight"),
            (rf"ln_pre\.{WB}", r"norm_pre.\1"),
            (rf"ln_post\.{WB}", r"norm.\1"),
            (rf"transformer\.resblocks\.(\d+)\.attn\.in_proj_{WB}", r"blocks.\1.attn.qkv.\2"),
            (rf"transformer\.resblocks\.(\d+)\.attn\.out_proj\.{WB}", r"blocks.\1.attn.proj.\2"),
            (rf"transformer\.resblocks\.(\d+)\.ln_([12])\.{WB}", r"blocks.\1.norm\2.\3"),
            (rf"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.{WB}", r"blocks.\1.mlp.fc1.\2"),
            (rf"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.{WB}", r"blocks.\1.mlp.fc2.\2"),
            (r"transformer\.resblocks\.(\d+)\.ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
        ),
        _flat_tokens,
    ),
    WeightLayout(
        "MMPretrain's ViT",
        r"layers\.\d+\.ffn\.layers\.0\.0\.weight",
        (
            (r"cls_token", "cls_token"),
            (r"pos_embed", "pos_embed"),
            (rf"patch_embed\.projection\.{WB}", r"patch_embed.proj.\1"),
            (rf"pre_norm\.{WB}", r"norm_pre.\1"),
            (rf"layers\.(\d+)\.ln([12])\.{WB}", r"blocks.\1.norm\2.\3"),
            (rf"layers\.(\d+)\.attn\.(qkv|proj)\.{WB}", r"blocks.\1.attn.\2.\3"),
            (r"layers\.(\d+)\.attn\.gamma1?\.weight", r"blocks.\1.ls1.gamma"),
            (r"layers\.(\d+)\.ffn\.gamma2\.weight", r"blocks.\1.ls2.gamma"),
            (rf"layers\.(\d+)\.ffn\.layers\.0\.0\.{WB}", r"blocks.\1.mlp.fc1.\2"),
            (rf"layers\.(\d+)\.ffn\.layers\.1\.{WB}", r"blocks.\1.mlp.fc2.\2"),
            (rf"ln1\.{WB}", r"norm.\1"),
        ),
    ),
    WeightLayout(
        "torchvision's ViT",
        r"encoder\.layers\.encoder_layer_\d+\.self_attention\.in_proj_weight",
        (
            (r"class_token", "cls_token"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (rf"conv_proj\.{WB}", r"patch_embed.proj.\1"),
            (rf"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.{WB}", r"blocks.\1.norm\2.\3"),
            (
                rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_{WB}",
                r"blocks.\1.attn.qkv.\2",
            ),
            (
                rf"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.{WB}",
                r"blocks.\1.attn.proj.\2",
            ),
            (
                rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.{WB}",
                r"blocks.\1.mlp.fc1.\2",
            ),
            (
                rf"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.{WB}",
                r"blocks.\1.mlp.fc2.\2",
            ),
            (rf"encoder\.ln\.{WB}", r"norm.\1"),
        ),
    ),
    WeightLayout(
        "a ViT whose blocks are cut into chunks, as DINOv2 saves them",
        r"blocks\.\d+\.\d+\.norm1\.weight",
        (
            (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
            (r"register_tokens", "reg_token"),
            (r"(?!blocks\.)(.*)", r"\1"),
        ),
        _registers,
    ),
)
PROJECTS = (  # that no layout translates, by a part of a name
    (r"encoder\.layer\.\d+\.|embeddings\.patch_embeddings", "transformers"),
    (r"visual\.trunk\.|text\.ln_final", "OpenCLIP"),
    (r"(^|\.)layers\.\d+\.ffn\.|\.ffn\.layers\.", "MMPretrain"),
    (r"stem\.conv_[a-z]+\.weight|res[2-5]\.\d+\.conv1", "Detectron2"),
    (r"features\.\d+\.\d+\.(block|attn|mlp)\.|features\.\d+\.", "torchvision"),
    (r"layer\.\d+\.attention\.(q|o)_proj", "transformers"),
    (r"model\.diffusion_model\.|first_stage_model\.", "a diffusion model"),
    (r"self_attn\.q_proj.*|lm_head|embed_tokens", "a language model"),
)
