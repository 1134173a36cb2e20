"""Salient channel tuning: which channels are chosen, what is added to them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import noise, start, tensors_at
from torch import Tensor

from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, UnknownName, Unsupported
from peftbench.methods import METHODS, apply
from peftbench.methods.layers.channels import ChannelLinear, strongest
from peftbench.spec import BackboneSpec

LABELS = torch.tensor([0, 2, 2])  # class 1 has no image


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [(images("vit", 2, seed=0), LABELS[:2]), (images("vit", 1, seed=1), LABELS[2:])]


def _output_of(path: str) -> list[Tensor]:
    """What the module at `path` of the plain ViT gives for both batches."""
    model, found = fresh("vit").eval(), []
    model.get_submodule(path).register_forward_hook(lambda _, args, out: found.append(out))
    with torch.no_grad():
        for x, _ in _batches():
            model(x)
    return [out.double() for out in found]


def _strength(values: list[Tensor]) -> Tensor:
    """The mean over two classes of the L2 norm over images and patches, by its definition."""
    patches = torch.cat(values)[:, 1:]  # without the class token
    classes = LABELS
    norms = [patches[classes == label].pow(2).sum((0, 1)).sqrt() for label in (0, 2)]
    return (norms[0] + norms[1]) / 2


def test_mode_mlp_chooses_by_the_output_of_the_block() -> None:
    method = METHODS["sct"](mode="mlp", channels=3)
    found = method.prepare(fresh("vit"), anatomy_of("vit"), _batches(), torch.Generator())
    expected = _strength(_output_of("blocks.1")).topk(3).indices.sort().values
    assert torch.equal(found.tensors["blocks.1.mlp.fc2"], expected)
    assert found.facts == {"batches": 2, "classes": 2}


def test_mode_qkv_chooses_for_query_and_value_apart() -> None:
    method = METHODS["sct"](mode="qkv", channels=3)
    found = method.prepare(fresh("vit"), anatomy_of("vit"), _batches(), torch.Generator())
    strength = _strength(_output_of("blocks.1.attn.qkv"))
    for part, own in (("q", strength[:24]), ("v", strength[48:])):
        expected = own.topk(3).indices.sort().values
        assert torch.equal(found.tensors[f"blocks.1.attn.qkv:{part}"], expected)


def test_the_same_images_and_seed_choose_the_same_channels_and_leave_the_backbone_as_it_was() -> (
    None
):
    method, backbone = METHODS["sct"](channels=5), fresh("swin")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    seen = [(images("swin", 4, seed=3), torch.tensor([0, 1, 0, 1]))]
    first, second = (
        method.prepare(backbone, anatomy_of("swin"), seen, torch.Generator()) for _ in range(2)
    )
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(t, second.tensors[name]) for name, t in first.tensors.items())
    assert all(torch.equal(t, before[name]) for name, t in backbone.state_dict().items())


def test_the_strongest_channels_are_in_rising_order() -> None:
    assert strongest(torch.tensor([0.1, 9.0, 3.0, 5.0, 4.0]), 3).tolist() == [1, 3, 4]


@pytest.mark.parametrize("channels_last", [True, False])
def test_only_the_chosen_channels_change_and_by_a_linear_map_of_themselves(
    channels_last: bool,
) -> None:
    layer = ChannelLinear(torch.tensor([1, 3]), channels_last, 0.02, torch.Generator())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    x = torch.tensor([[5.0, 1.0, 7.0, 3.0]])
    # 1 * 1 + 2 * 3 + 10 = 17 in channel 1, -1 * 3 + 20 = 17 in channel 3
    expected = torch.tensor([[0.0, 17.0, 0.0, 17.0]])
    if not channels_last:
        x, expected = x[..., None, None], expected[..., None, None]
    assert torch.equal(layer(x), expected)


def test_mode_attn_changes_the_stream_behind_attention() -> None:
    tuned = start("sct", "vit", channels=4)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    block, x = fresh("vit").double().blocks[1], noise(2, 17, 24)
    t = tensors_at(tuned, "blocks.1.block.norm2")
    with torch.no_grad():
        y = x + block.attn(block.norm1(x))
        y[..., :4] += y[..., :4] @ t["weight"].T.double() + t["bias"].double()
        expected = y + block.mlp(block.norm2(y))
        torch.testing.assert_close(tuned.model.blocks[1](x), expected)


def test_mode_qkv_adds_to_query_and_value_and_not_to_the_key() -> None:
    tuned = start("sct", "vit", channels=4, mode="qkv")
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    x, plain = noise(2, 17, 24), fresh("vit").double().blocks[0].attn.qkv
    changes = tuned.model.blocks[0].attn.qkv.adapter.changes
    with torch.no_grad():
        expected = plain(x)
        for part, start_of in (("q", 0), ("v", 48)):
            own = expected[..., start_of : start_of + 4]
            own += own @ changes[part].weight.T + changes[part].bias
        torch.testing.assert_close(tuned.model.blocks[0].attn.qkv(x), expected)


@pytest.mark.parametrize(("mode", "count"), [("attn", 111_744), ("mlp", 111_744), ("qkv", 223_488)])
def test_the_count_on_vit_b_is_the_published_one(mode: str, count: int) -> None:
    """12 (96^2 + 96) in the paper; query and value have one each."""
    spec = BackboneSpec("vit_base_patch16_224", pretrained=False)
    backbone = load(spec, 2, device="meta").model
    anatomy = describe(backbone, 224)
    method = METHODS["sct"](mode=mode)
    tuned = apply(method, backbone, anatomy, 10, torch.Generator())
    assert sum(p.numel() for p in tuned.method_params.values()) == count
    assert method.expected_params(anatomy) == count


@pytest.mark.parametrize(
    ("options", "error"),
    [({"channels": 0}, ConfigError), ({"mode": "head"}, UnknownName)],
)
def test_settings_without_a_meaning_are_refused(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match="method=sct"):
        METHODS["sct"](**options)


@pytest.mark.parametrize(
    ("mode", "backbone", "advice"),
    [
        ("qkv", "beit", "Use method.mode=attn"),  # reads the weight
        ("qkv", "convnext", "Set method.mode=attn"),
        ("attn", "resnet_basic", "Use method=lora"),
    ],
)
def test_a_refusal_says_which_mode_or_method_to_use(mode: str, backbone: str, advice: str) -> None:
    with pytest.raises(Unsupported, match=advice):
        METHODS["sct"](mode=mode).check(anatomy_of(backbone))
