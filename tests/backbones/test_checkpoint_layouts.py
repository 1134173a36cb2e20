"""Files under the names of their original projects, by inverse tables of names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.tiny_weights import TINY, VIT, State, body_of, small_model

from peftbench.backbones.checkpoints import fitting
from peftbench.errors import WeightsError

Pairs = list[tuple[str, str]]
SWIN = {
    **{"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)},
    "window_size": 4,
}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}


def _renamed(state: State, pairs: Pairs) -> State:
    found = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in pairs:
            new, count = re.subn(f"^{pattern}$", replacement, name)
            if count:
                break
        assert new not in found, new
        found[new] = tensor
    return found


def _split(state: State, names: tuple[str, str, str]) -> State:
    """Fused projections apart: `....attn.qkv.weight` becomes `....attn.NAME.weight` three times."""
    found = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, third in zip(names, tensor.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{part}.")] = third.clone()
        else:
            found[name] = tensor
    return found


HF = ("query", "key", "value")
HF_BLOCK: Pairs = [
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (
        r"blocks\.(\d+)\.attn\.(query|key|value)\.(.*)",
        r"encoder.layer.\1.attention.attention.\2.\3",
    ),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.norm1\.(.*)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"encoder.layer.\1.output.dense.\2"),
    (r"(cls_token)", r"embeddings.\1"),
]
HF_AROUND: Pairs = [
    ("pos_embed", "embeddings.position_embeddings"),
    (r"norm\.(.*)", r"layernorm.\1"),
]


def _hf_vit(state: State) -> State:
    return _renamed(_split(state, HF), [*HF_BLOCK, *HF_AROUND])


def _hf_dinov2(state: State) -> State:
    pairs: Pairs = [
        (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (r"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(.*)", r"encoder.layer.\1.\2.\3"),
    ]
    return _renamed(_split(state, HF), [*pairs, *HF_BLOCK, *HF_AROUND])


def _beit(state: State) -> State:
    """Their keys have no bias; timm holds the two others apart."""
    state = _split(state, HF)
    return _renamed(
        state,
        [
            *HF_BLOCK,
            (r"blocks\.(\d+)\.attn\.q_bias", r"encoder.layer.\1.attention.attention.query.bias"),
            (r"blocks\.(\d+)\.attn\.v_bias", r"encoder.layer.\1.attention.attention.value.bias"),
            (
                r"blocks\.(\d+)\.attn\.relative_position_bias_table",
                r"encoder.layer.\1.attention.attention.relative_position_bias."
                r"relative_position_bias_table",
            ),
            (r"blocks\.(\d+)\.gamma_([12])", r"encoder.layer.\1.lambda_\2"),
            (r"fc_norm\.(.*)", r"pooler.layernorm.\1"),
        ],
    )


def _beit_index(state: State) -> State:
    index = "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
    return {**_beit(state), index: torch.zeros(5, 5, dtype=torch.int64)}


def _swin(state: State) -> State:
    """Theirs downsample at the end of a stage."""
    block, new = r"layers\.(\d+)\.blocks\.(\d+)", r"encoder.layers.\1.blocks.\2"
    found = _renamed(
        _split(state, HF),
        [
            (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
            (r"patch_embed\.norm\.(.*)", r"embeddings.norm.\1"),
            (rf"{block}\.attn\.proj\.(.*)", rf"{new}.attention.output.dense.\3"),
            (rf"{block}\.attn\.(.*)", rf"{new}.attention.self.\3"),
            (rf"{block}\.norm1\.(.*)", rf"{new}.layernorm_before.\3"),
            (rf"{block}\.norm2\.(.*)", rf"{new}.layernorm_after.\3"),
            (rf"{block}\.mlp\.fc1\.(.*)", rf"{new}.intermediate.dense.\3"),
            (rf"{block}\.mlp\.fc2\.(.*)", rf"{new}.output.dense.\3"),
            (r"layers\.1\.downsample\.(.*)", r"encoder.layers.0.downsample.\1"),
            (r"norm\.(.*)", r"layernorm.\1"),
        ],
    )
    index = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    return {**found, index: torch.zeros(16, 16, dtype=torch.int64)}


def _convnext(state: State) -> State:
    block, new = r"stages\.(\d+)\.blocks\.(\d+)", r"encoder.stages.\1.layers.\2"
    return _renamed(
        state,
        [
            (r"stem\.0\.(.*)", r"embeddings.patch_embeddings.\1"),
            (r"stem\.1\.(.*)", r"embeddings.layernorm.\1"),
            (r"stages\.(\d+)\.downsample\.(.*)", r"encoder.stages.\1.downsampling_layer.\2"),
            (rf"{block}\.conv_dw\.(.*)", rf"{new}.dwconv.\3"),
            (rf"{block}\.norm\.(.*)", rf"{new}.layernorm.\3"),
            (rf"{block}\.mlp\.fc([12])\.(.*)", rf"{new}.pwconv\3.\4"),
            (rf"{block}\.gamma", rf"{new}.layer_scale_parameter"),
            (r"head\.norm\.(.*)", r"layernorm.\1"),
        ],
    )


CLIP_SPLIT = ("q_proj", "k_proj", "v_proj")
CLIP: Pairs = [
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding.weight"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.attn\.(.*)", r"encoder.layers.\1.self_attn.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"encoder.layers.\1.mlp.\2"),
    (r"norm_pre\.(.*)", r"pre_layrnorm.\1"),
    (r"norm\.(.*)", r"post_layernorm.\1"),
    (r"attn_pool\.latent", "head.probe"),
    (r"attn_pool\.proj\.(.*)", r"head.attention.out_proj.\1"),
    (r"attn_pool\.norm\.(.*)", r"head.layernorm.\1"),
    (r"attn_pool\.mlp\.(.*)", r"head.mlp.\1"),
]


def _hf_clip(state: State) -> State:
    state = {**state, "cls_token": state["cls_token"][0, 0], "pos_embed": state["pos_embed"][0]}
    return _renamed(_split(state, CLIP_SPLIT), CLIP)


def _siglip(state: State) -> State:
    found = _split(state, CLIP_SPLIT)
    for kind in ("weight", "bias"):
        joint = [found.pop(f"attn_pool.{part}.{kind}") for part in ("q", "kv")]
        found[f"head.attention.in_proj_{kind}"] = torch.cat(joint)
    found["pos_embed"] = found["pos_embed"][0]
    return _renamed(found, CLIP)


def _swin_official(state: State) -> State:
    found = _renamed(state, [(r"layers\.1\.downsample\.(.*)", r"layers.0.downsample.\1")])
    return {
        **found,
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
        "layers.0.blocks.0.attn_mask": torch.zeros(16, 16, 16),
        "head.weight": torch.ones(5, 16),
        "head.bias": torch.ones(5),
    }


def _beit_official(state: State) -> State:
    return {
        **state,
        "blocks.0.attn.relative_position_index": torch.zeros(5, 5, dtype=torch.int64),
        "mask_token": torch.ones(1, 1, 16),
        "lm_head.weight": torch.ones(9, 16),
    }


def _clip_openai(state: State) -> State:
    state = {**state, "cls_token": state["cls_token"][0, 0], "pos_embed": state["pos_embed"][0]}
    block = r"blocks\.(\d+)"
    found = _renamed(
        state,
        [
            ("cls_token", "class_embedding"),
            ("pos_embed", "positional_embedding"),
            (r"patch_embed\.proj\.weight", "conv1.weight"),
            (r"norm_pre\.(.*)", r"ln_pre.\1"),
            (r"norm\.(.*)", r"ln_post.\1"),
            (rf"{block}\.attn\.qkv\.(.*)", r"transformer.resblocks.\1.attn.in_proj_\2"),
            (rf"{block}\.attn\.proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
            (rf"{block}\.norm([12])\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
            (rf"{block}\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
            (rf"{block}\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
        ],
    )
    return {
        **{f"visual.{n}": t for n, t in found.items()},
        "visual.proj": torch.ones(16, 4),
        "transformer.resblocks.0.ln_1.weight": torch.ones(16),
        "token_embedding.weight": torch.ones(9, 16),
        "positional_embedding": torch.ones(7, 16),
        "ln_final.weight": torch.ones(16),
        "logit_scale": torch.ones(()),
    }


def _torchvision(state: State) -> State:
    block, new = r"blocks\.(\d+)", r"encoder.layers.encoder_layer_\1"
    return _renamed(
        state,
        [
            ("cls_token", "class_token"),
            ("pos_embed", "encoder.pos_embedding"),
            (r"patch_embed\.proj\.(.*)", r"conv_proj.\1"),
            (r"norm\.(.*)", r"encoder.ln.\1"),
            (rf"{block}\.attn\.qkv\.(.*)", rf"{new}.self_attention.in_proj_\2"),
            (rf"{block}\.attn\.proj\.(.*)", rf"{new}.self_attention.out_proj.\2"),
            (rf"{block}\.norm([12])\.(.*)", rf"{new}.ln_\2.\3"),
            (rf"{block}\.mlp\.fc1\.(.*)", rf"{new}.mlp.linear_1.\2"),
            (rf"{block}\.mlp\.fc2\.(.*)", rf"{new}.mlp.linear_2.\2"),
        ],
    )


def _mmpretrain(state: State) -> State:
    return _renamed(
        state,
        [
            (r"patch_embed\.proj\.(.*)", r"patch_embed.projection.\1"),
            (r"blocks\.(\d+)\.norm([12])\.(.*)", r"layers.\1.ln\2.\3"),
            (r"blocks\.(\d+)\.attn\.(.*)", r"layers.\1.attn.\2"),
            (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"layers.\1.ffn.layers.0.0.\2"),
            (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"layers.\1.ffn.layers.1.\2"),
            (r"norm\.(.*)", r"ln1.\1"),
        ],
    )


def _convnext_official(state: State) -> State:
    return _renamed(
        state,
        [
            (r"stem\.(.*)", r"downsample_layers.0.\1"),
            (r"stages\.(\d+)\.downsample\.(.*)", r"downsample_layers.\1.\2"),
            (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.*)", r"stages.\1.\2.dwconv.\3"),
            (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(.*)", r"stages.\1.\2.pwconv\3.\4"),
            (r"stages\.(\d+)\.blocks\.(\d+)\.(.*)", r"stages.\1.\2.\3"),
            (r"head\.norm\.(.*)", r"norm.\1"),
        ],
    )


CASES = {
    "transformers' ViT": (VIT, TINY, _hf_vit, "vit."),
    "transformers' ViT without a prefix": (VIT, TINY, _hf_vit, ""),
    "transformers' DeiT": (VIT, TINY, _hf_vit, "model.deit."),
    "transformers' DINOv2": ("vit_small_patch14_dinov2", TINY, _hf_dinov2, "dinov2."),
    "transformers' CLIP": ("vit_base_patch32_clip_224", TINY, _hf_clip, "vision_model."),
    "MMPretrain's ViT": (VIT, TINY, _mmpretrain, "backbone."),
    "ConvNeXt": ("convnext_tiny", CONVNEXT, _convnext_official, ""),
    "transformers' BEiT": ("beit_base_patch16_224", TINY, _beit, "beit."),
    "transformers' BEiT with its index": ("beit_base_patch16_224", TINY, _beit_index, ""),
    "transformers' Swin": ("swin_tiny_patch4_window7_224", SWIN, _swin, "swin."),
    "transformers' ConvNeXt": ("convnext_tiny", CONVNEXT, _convnext, "convnext."),
    "transformers' SigLIP": ("vit_base_patch16_siglip_224", TINY, _siglip, "vision_model."),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, _swin_official, ""),
    "BEiT": ("beit_base_patch16_224", TINY, _beit_official, ""),
    "OpenAI's CLIP": ("vit_base_patch16_clip_quickgelu_224", TINY, _clip_openai, ""),
    "torchvision's ViT": ("vit_tiny_patch16_224", TINY, _torchvision, ""),
}

NOTED = {  # the project that the record names
    "transformers' ViT": "transformers' ViT or DeiT",
    "transformers' DeiT": "transformers' ViT or DeiT",
    "transformers' DINOv2": "transformers' DINOv2",
    "transformers' CLIP": "transformers' CLIP or SigLIP",
    "transformers' Swin": "transformers' Swin",
    "MMPretrain's ViT": "MMPretrain's ViT",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_names_of_a_project_are_read(tmp_path: Path, case: str) -> None:
    name, options, rename, prefix = CASES[case]
    state = body_of(small_model(name, **options))
    foreign = {prefix + n: t for n, t in rename(dict(state)).items()}
    assert foreign.keys() != state.keys()
    torch.save({"model": foreign}, tmp_path / "weights.pth")
    found = fitting.fit(tmp_path / "weights.pth", small_model(name, 1, **options))
    for own, tensor in state.items():
        assert torch.equal(found.state[own], tensor), own
    project = NOTED.get(case, "")
    assert any(f"(names of {project})" in note for note in found.notes) or not project


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tensor_too_many_under_the_names_of_a_project_is_named(tmp_path: Path, case: str) -> None:
    name, options, rename, prefix = CASES[case]
    foreign = {prefix + n: t for n, t in rename(body_of(small_model(name, **options))).items()}
    inside = "visual." if case == "OpenAI's CLIP" else prefix
    foreign[f"{inside}extra_scale.weight"] = torch.ones(16, 3)
    torch.save({"model": foreign}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"extra_scale\.weight"):
        fitting.fit(tmp_path / "weights.pth", small_model(name, 1, **options))


def test_a_decoder_does_not_stop_the_converter_of_a_project(tmp_path: Path) -> None:
    """timm's converter of ConvNeXt looks up each matrix of the file in the model."""
    state = body_of(small_model("convnext_tiny", **CONVNEXT))
    foreign = {
        **_convnext_official(dict(state)),
        **{f"decoder.{i}.pwconv1.weight": torch.ones(4, 4) for i in range(40)},
        "decoder.0.pwconv1.bias": torch.ones(4),
        "mask_token": torch.ones(1, 4, 1, 1),
        "proj.weight": torch.ones(4, 16),
    }
    torch.save({"model": foreign}, tmp_path / "weights.pth")
    found = fitting.fit(tmp_path / "weights.pth", small_model("convnext_tiny", 1, **CONVNEXT))
    for own, tensor in state.items():
        assert torch.equal(found.state[own], tensor), own
    note = next(note for note in found.notes if "left out" in note)
    for part in ("41 tensors of a decoder", "a mask token", "a projector (proj.weight)"):
        assert part in note


def test_a_layer_too_many_in_another_projects_names_is_named(tmp_path: Path) -> None:
    foreign = _hf_vit(body_of(small_model(**{**TINY, "depth": 3})))
    torch.save(foreign, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"blocks\.2\..*deeper"):
        fitting.fit(tmp_path / "weights.pth", small_model(**TINY))


def _notes(tmp_path: Path, name: str, rename: object) -> str:
    assert callable(rename)
    torch.save(rename(body_of(small_model(name, **TINY))), tmp_path / "weights.pth")
    return " | ".join(fitting.fit(tmp_path / "weights.pth", small_model(name, 1, **TINY)).notes)


def test_an_activation_that_differs_from_the_projects_own_is_noted(tmp_path: Path) -> None:
    """timm's first SigLIP names compute the exact GELU, transformers its tanh approximation."""
    exact = _notes(tmp_path, "vit_base_patch16_siglip_224", _siglip)
    assert "vit_base_patch16_siglip_224 computes the exact GELU" in exact and "tanh" in exact
    assert "GELU" not in _notes(tmp_path, "vit_base_patch32_siglip_256", _siglip)
    exact = _notes(tmp_path, "vit_base_patch16_clip_224", _clip_openai)
    assert "computes the exact GELU" in exact and "quickgelu" in exact
    assert "GELU" not in _notes(tmp_path, "vit_base_patch16_clip_quickgelu_224", _clip_openai)
