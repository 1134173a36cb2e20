"""Every tensor of a file has a place, a known reason to stay out, or is named in the refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_weights import TINY, VIT, State, body_of, small_model
from torch import nn

from peftbench.backbones.checkpoints import fitting, layouts, leftovers
from peftbench.backbones.checkpoints.conversion import Needs, _run, _unused
from peftbench.errors import WeightsError


def _fit(tmp_path: Path, content: object, model: nn.Module) -> fitting.FittedWeights:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return fitting.fit(path, model)


def _refusal(tmp_path: Path, content: object, model: nn.Module) -> str:
    with pytest.raises(WeightsError) as caught:
        _fit(tmp_path, content, model)
    line = str(caught.value)
    assert line.isprintable() and line.endswith(".")
    return line


def _under(prefix: str, state: State, factor: float = 1.0) -> State:
    return {prefix + n: t * factor for n, t in state.items()}


def _equal(found: fitting.FittedWeights, state: State) -> bool:
    return all(torch.equal(found.state[n], t) for n, t in state.items())


# ------------------------------------------------------------------- what has no place


@pytest.mark.parametrize(
    ("saved", "options", "named", "looks"),
    [
        (VIT, {"init_values": 0.1}, "blocks.0.ls1.gamma", "LayerScale"),
        (VIT, {"reg_tokens": 2}, "reg_token", "register tokens"),
        (VIT, {"qk_norm": True}, "blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        (VIT, {"depth": 3}, "blocks.2.norm1.weight", "blocks of a deeper network"),
        (VIT, {"pre_norm": True}, "norm_pre.weight", "a norm"),
        (VIT, {"fc_norm": True, "final_norm": True}, "fc_norm", "norm"),
    ],
)
def test_tensors_of_a_variant_are_named(
    tmp_path: Path, saved: str, options: dict[str, object], named: str, looks: str
) -> None:
    state = small_model(saved, **{**TINY, **options}).state_dict()
    state = {**body_of(small_model(**TINY)), **{n: t for n, t in state.items() if n != "pos_embed"}}
    line = _refusal(tmp_path, state, small_model(**TINY))
    assert named in line and looks in line and VIT in line


def test_biases_of_qkv_are_named_unless_they_are_zeros(tmp_path: Path) -> None:
    model = small_model(**TINY, qkv_bias=False)
    biased = body_of(small_model(**TINY))
    assert "biases of qkv" in _refusal(tmp_path, biased, model)
    zeros = {n: t * 0 if n.endswith("qkv.bias") else t for n, t in biased.items()}
    rest = {n: t for n, t in zeros.items() if not n.endswith("qkv.bias")}
    assert _equal(_fit(tmp_path, zeros, model), rest)


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("blocks.0.attn.qkv.lora_A.default.weight", "LoRA"),
        ("blocks.1.mlp.fc1.lora_b", "LoRA"),
        ("blocks.0.norm1.ssf_scale", "SSF"),
        ("blocks.0.adapter.down_proj.weight", "adapters"),
        ("blocks.0.adaptmlp.up_proj.bias", "adapters"),
        ("prompt_embeddings", "prompts"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
        ("blocks.0.se.conv_reduce.weight", "squeeze-and-excitation"),
        ("something.else.weight", ""),
    ],
)
def test_what_was_tuned_or_added_is_named(tmp_path: Path, name: str, looks: str) -> None:
    state = body_of(small_model(**TINY))
    line = _refusal(tmp_path, {**state, name: torch.ones(4, 4)}, small_model(**TINY))
    assert f"holds 1 tensor that {VIT} has no place for: {name}" in line
    assert looks in line


def test_squeeze_and_excitation_under_a_plain_resnet_is_named(tmp_path: Path) -> None:
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_width": 8}
    options = {**small, "block_args": {"attn_layer": "se"}}
    saved = small_model("resnet18", **options)
    line = _refusal(tmp_path, saved.state_dict(), small_model("resnet18", **small))
    assert "layer1.0.se.fc1.weight" in line and "squeeze-and-excitation" in line


def test_a_deeper_resnet_is_named(tmp_path: Path) -> None:
    small = {"channels": (8, 8, 8, 8), "stem_width": 8}
    saved = small_model("resnet18", **small, layers=(1, 2, 1, 1))
    small_one = small_model("resnet18", **small, layers=(1, 1, 1, 1))
    line = _refusal(tmp_path, saved.state_dict(), small_one)
    assert "layer2.1.conv1.weight" in line and "blocks of a deeper network" in line


def test_a_tensor_that_the_converter_drops_is_named(tmp_path: Path) -> None:
    """With another grid, timm's converter runs: it leaves out what is not below its prefix."""
    state = _under("visual.trunk.", body_of(small_model(**TINY)))
    state["adapter.weight"] = torch.ones(4, 4)
    other = small_model(**{**TINY, "img_size": 32})
    line = _refusal(tmp_path, state, other)
    assert "adapter.weight" in line


def test_two_norms_do_not_overwrite_each_other(tmp_path: Path) -> None:
    state = _under("backbone.", body_of(small_model(**TINY)))
    state["norm.weight"] = torch.full((16,), 7.0)
    assert "norm.weight" in _refusal(tmp_path, state, small_model(**TINY))


# ------------------------------------------------------------------- what may stay out


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mask_token", "a mask token"),
        ("decoder_blocks.0.norm1.weight", "a decoder"),
        ("decoder.layers.0.weight", "a decoder"),
        ("text_model.encoder.layers.0.weight", "a text tower"),
        ("text.transformer.resblocks.0.ln_1.weight", "a text tower"),
        ("logit_scale", "the scale of a contrastive loss"),
        ("momentum_encoder.blocks.0.norm1.weight", "another copy of a network"),
        ("encoder_k.norm.weight", "another copy of a network"),
        ("queue", "a queue or prototypes"),
        ("prototypes.weight", "a queue or prototypes"),
        ("predictor.0.weight", "a projector"),
        ("projection_head.0.weight", "a head"),
        ("dino_head.mlp.0.weight", "a head"),
        ("ibot_head.last_layer.weight", "a head"),
        ("head.0.weight", "a head"),
        ("fc.weight", "a head"),
        ("module.classifier.weight", "a head"),
        ("head_dist.weight", "a head"),
        ("decode_head.conv.weight", "a head"),
        ("dino_loss.center", "a loss or a metric"),
        ("pre_logits.fc.weight", leftovers.BUFFER),
        ("blocks.0.attn.relative_position_index", leftovers.BUFFER),
        ("layer1.0.bn1.num_batches_tracked", leftovers.BUFFER),
    ],
)
def test_known_parts_stay_out(name: str, what: str) -> None:
    assert leftovers.part(name) == what


@pytest.mark.parametrize(
    "name",
    ["blocks.0.ls1.gamma", "reg_token", "norm.weight", "fc_norm.weight", "blocks.12.norm1.weight",
     "layer1.2.conv1.weight", "transformer.layers.3.weight", "stages.0.head.weight", "dist_token",
     "encoder.layer.12.output.dense.weight", "backbone.prompt", "cls_token", "pos_embed"],
)  # fmt: skip
def test_parts_of_a_backbone_are_not_taken_for_others(name: str) -> None:
    assert leftovers.part(name) is None


def test_the_note_says_what_stayed_out(tmp_path: Path) -> None:
    state = body_of(small_model(**TINY))
    content = {
        "model": {
            **state,
            "decoder_embed.weight": torch.ones(2, 2),
            "decoder_pred.bias": torch.ones(2),
        }
    }
    found = _fit(tmp_path, content, small_model(**TINY, seed=3))
    assert _equal(found, state)
    assert found.notes == (
        "weights.pth (read under 'model.'): left out 2 tensors of a decoder "
        "(decoder_embed.weight, ...)",
    )


# ------------------------------------------------------------------- prefixes


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": _under("net.", s)},
        lambda s: _under("1.", s),
        lambda s: {"model_state_dict": _under("module.encoder.", s)},
        lambda s: {"model": {"backbone": s}},
        lambda s: {"student": _under("backbone.", s, 2.0), "teacher": _under("backbone.", s)},
        lambda s: {"online_encoder": s, "target_encoder": _under("", s, 2.0)},
        lambda s: _under("feature_extractor.vision.tower.", s),
        lambda s: {"ema": s, "model": _under("", s, 2.0), "optimizer": {"state": {0: s}}},
        lambda s: {**s, **_under("momentum_encoder.", s, 2.0)},
        lambda s: {"a": s, "b": dict(s)},
    ],
)
def test_the_network_is_found_where_it_is(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    state = body_of(small_model(**TINY))
    assert _equal(_fit(tmp_path, wrap(state), small_model(**TINY, seed=3)), state)


def test_two_networks_without_a_rank_are_refused(tmp_path: Path) -> None:
    state = body_of(small_model(**TINY))
    content = {"left": state, "right": _under("", state, 2.0)}
    line = _refusal(tmp_path, content, small_model(**TINY))
    assert "two networks that fit, under 'left.' and 'right.'" in line


def test_a_refusal_says_what_the_file_holds(tmp_path: Path) -> None:
    content = {"generator": {f"layers.{i}.ffn.w": torch.ones(2, 2) for i in range(9)}}
    line = _refusal(tmp_path, content, small_model(**TINY))
    for part in ("9 tensors under generator", "generator.layers.0.ffn.w", "MMPretrain"):
        assert part in line


# ------------------------------------------------------------------- layouts


def test_chunks_of_blocks_are_joined(tmp_path: Path) -> None:
    options = {**TINY, "depth": 4}
    state = body_of(small_model(**options))
    chunks = {re.sub(r"^blocks\.([01])\.", r"blocks.0.\1.", n): t for n, t in state.items()}
    chunks = {re.sub(r"^blocks\.([23])\.", r"blocks.1.\1.", n): t for n, t in chunks.items()}
    found = _fit(tmp_path, {"teacher": _under("backbone.", chunks)}, small_model(**options, seed=3))
    assert _equal(found, state)


def test_layer_scale_under_the_names_of_deit_3(tmp_path: Path) -> None:
    options = {**TINY, "init_values": 0.1}
    state = body_of(small_model("deit3_small_patch16_224", **options))
    foreign = {re.sub(r"ls([12])\.gamma", r"gamma_\1", n): t for n, t in state.items()}
    model = small_model("deit3_small_patch16_224", seed=3, **options)
    assert _equal(_fit(tmp_path, foreign, model), state)


def test_fused_and_apart_inputs_count_as_used() -> None:
    """A converter that joins three tensors drops none of them; one that forgets one does."""

    def join(state: State, model: nn.Module) -> State:
        parts = [state[f"{part}.weight"] for part in "qkv"]
        return {"weight": torch.cat(parts), "bias": state["bias"]}

    class Joint(nn.Linear):
        def get_classifier(self) -> nn.Module:
            return self.head

    model = Joint(2, 6)
    model.head = nn.Linear(2, 2)
    state = {f"{part}.weight": torch.ones(2, 2) for part in "qkv"}
    state |= {"bias": torch.zeros(6), "forgotten": torch.ones(3)}
    needs = Needs.of(model)
    run = lambda s: _run(join, model, s)  # noqa: E731
    assert _unused(run, state, list(state), needs) == ["forgotten"]


def test_the_guess_names_the_project() -> None:
    assert layouts.guess_project(["x.encoder.layer.0.attention.attention.query.weight"])
    assert layouts.guess_project(["text.ln_final.weight"]) == "OpenCLIP"
    assert layouts.guess_project(["blocks.0.norm1.weight"]) == ""
