"""What the tensors of a file are that an architecture has no place for.

Parts that are known to be no part of a backbone may stay out, and the record says so; anything else
would change what the backbone computes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

# components of a name that wrap a network and say nothing about what is in it
WRAPPERS = frozenset(
    (
        *("model", "module", "_orig_mod", "net", "network", "state_dict", "params", "weights"),
        *(
            "backbone",
            "encoder",
            "visual",
            "trunk",
            "vision_model",
            "vision_tower",
            "vision_encoder",
        ),
        *("image_encoder", "vit", "deit", "swin", "beit", "dinov2", "convnext", "clip", "resnet"),
        *("state_dict_ema", "model_ema", "model_state_dict", "model_state", "base_model"),
        *("feature_extractor", "features_extractor", "wrapped", "_module", "_fsdp_wrapped_module"),
        *("dinov2_with_registers", "convnextv2", "swinv2", "siglip", "lightning_module"),
    )
)
PARTS = (  # by the first component of a name that wraps nothing, and what to call it
    (r"(optimizer|optim|opt|optimizers|optimizer_state.*|optimizer_states|scaler|scheduler"
     r"|lr_scheduler.*|lr_schedulers|amp.*|loops|callbacks|rng.*|.*rng_state.*|args|config|cfg"
     r"|hyper_parameters|message_hub|meta|grad_scaler|param_groups)", "the training's own state"),
    (r"(decoder|dec|decode|.*_decoder|decoder_.*|pixel_decoder|reconstruct.*)", "a decoder"),
    (r"(mask_token|mask_embed.*|.*_mask_token|\[mask\])", "a mask token"),
    (r"(text|text_.*|textual|.*_text|.*text_model|language_model|bert|token_embedding|ln_final"
     r"|text_projection|tokenizer|embed_tokens)", "a text tower"),
    (r"(logit_.*|temperature|temp|tau|.*logit_scale)", "the scale of a contrastive loss"),
    (r"(momentum_.*|.*_momentum|encoder_k|k_encoder|key_encoder|target_.*|teacher.*|student.*"
     r"|ema|ema_.*|.*_ema|online_.*|encoder_q|base_encoder|query_encoder|averaged_model"
     r"|target_encoder)", "another copy of a network"),
    (r"(queue.*|.*_queue|center|centers|prototypes.*|memory_bank|codebook|vqkd|d_?vae|tokenizer)",
     "a queue or prototypes"),
    (r"(proj|projection|projector.*|.*_projector|proj_head|.*projection|predictor.*|.*_predictor"
     r"|pred|pred_.*|projectors|pooler)", "a projector"),
    (r"(head|heads|.*_head|.*_heads|head_.*|fc|fc_head|.*classifier.*|last_linear|linear|cls|cls_blocks|logits"
     r"|aux.*|AuxLogits|neck|necks|fpn|rpn|roi.*|.*_fc|last_layer|lm_head|probe|linear_probe"
     r"|class_embed|bbox_embed|keypoint.*|segmentation.*|output_layer)", "a head"),
    (r"(.*loss.*|criterion.*|.*metric.*|.*_acc|.*accuracy.*)", "a loss or a metric"),
    (r"(n_averaged|mean|std|pixel_mean|pixel_std|image_mean|image_std|normalize|normalise"
     r"|preprocess.*|data_preprocessor|pre_logits|local_cls_norm|norms)", "a part that timm leaves "
     "out"),
)  # fmt: skip
# the last components of a name: tensors that are made again from the sizes of the model
BUFFERS = re.compile(
    r"(.*\.)?(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|periods"
    r"|bias_mask|position_ids|attention_bias_idxs|pre_logits\..*"
    r"|rope\.(?!freqs).*|freqs_(cos|sin)|inv_freq|rope_embed.*|k_bias_zero)"
)
BUFFER = "buffers that timm makes anew"
# of OpenAI's CLIP, whose text tower has no name of its own
TEXT = re.compile(r"(transformer|positional_embedding)(\..*)?")
LOOKS = (  # what a part of a name is known for, most telling first
    (r"lora|loha|lokr|dora_|vera_", "LoRA that was never merged into the weights"),
    (r"ssf_|\.ssf\b", "SSF scales and shifts that were never merged into the weights"),
    (r"adapter|adaptmlp|adapt_mlp|down_proj|up_proj|ia3", "adapters that were never merged"),
    (r"prompt", "prompts"),
    (r"register_token|reg_token|storage_token", "register tokens"),
    (r"dist_token|distillation_token", "a distillation token"),
    (r"\bls[12]\b|gamma_[12]|\.gamma\b|lambda_?[12]|layer_scale", "LayerScale"),
    (r"[qk]_norm|q_ln|k_ln", "norms of queries and keys"),
    (r"qkv\.bias|[qkv]_bias|[qkv]_proj\.bias|(query|key|value)\.bias", "biases of qkv"),
    (r"relative_position_bias|rel_pos", "relative positions"),
    (r"\bse\b|se_module|conv_reduce|conv_expand|squeeze|\beca\b", "squeeze-and-excitation"),
    (r"cls_token|class_embedding", "a class token"),
    (r"pos_embed|position_embedding|positional", "a position embedding"),
    (r"attn_pool|map_head", "an attention pool"),
    (r"fc_norm|norm_pre|(^|\.)norm\d?\.|layernorm|ln_", "a norm that the architecture lacks"),
)


def part(name: str, wrapped: Collection[str] = ()) -> str | None:
    """The known part, no part of a backbone, that the tensor `name` belongs to; else None.

    `wrapped` are further components that wrap the network of this file.
    """
    if BUFFERS.fullmatch(name):
        return BUFFER
    components = name.split(".")
    if components[-1] == "mask_token":
        return "a mask token"
    while len(components) > 1 and components[0] in WRAPPERS | set(wrapped):
        components.pop(0)
    for pattern, what in PARTS:
        if re.fullmatch(pattern, components[0]):
            return what
    return None


def looks_like(names: Iterable[str], own: Collection[str]) -> str:
    """What tensors without a place look like, or an empty string."""
    kinds: dict[str, None] = {}
    for name in names:
        if _is_deeper(name, own):
            kinds["blocks of a deeper network"] = None
            continue
        for pattern, what in LOOKS:
            if re.search(pattern, name):
                kinds[what] = None
                break
    return ", ".join(list(kinds)[:3])


def _is_deeper(name: str, own: Collection[str]) -> bool:
    """Whether the model has this tensor in another block, and not one tensor in this one."""
    numbers = list(re.finditer(r"(?<=\.)\d+(?=\.)", name))
    for number in numbers:
        start, rest = name[: number.start()], name[number.end() :]
        if any(n.startswith(name[: number.end()] + ".") for n in own):
            continue
        pattern = re.compile(re.escape(start) + r"\d+" + re.sub(r"\d+", r"\\d+", re.escape(rest)))
        return any(pattern.fullmatch(n) for n in own)
    return False


def summed(names: Iterable[str], wrapped: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Sentences about the known parts among `names`, and the names of no known part."""
    groups: dict[str, list[str]] = {}
    unknown: list[str] = []
    names = list(names)
    with_text = any(n.split(".")[-2:-1] == ["token_embedding"] for n in names)
    for name in names:
        what = part(name, wrapped)
        bare = re.sub(r"^(module|model|state_dict|_orig_mod)\.", "", name)
        if what is None and with_text and TEXT.fullmatch(bare):
            what = "a text tower"
        if what is None:
            unknown.append(name)
        else:
            groups.setdefault(what, []).append(name)
    groups.pop(BUFFER, None)  # they hold nothing that was learned
    sentences = [
        f"{len(members)} tensor{'s' * (len(members) > 1)} of {what} ({members[0]}"
        f"{', ...' if len(members) > 1 else ''})"
        for what, members in groups.items()
    ]
    return sentences, unknown
