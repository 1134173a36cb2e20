"""Official subnets of NOAH: built at their widths, and cut out of a supernet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from support.golden import EXACT, Golden, assert_close, read
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.methods import discover
from peftbench.methods.layers.evolution import Subnet
from peftbench.methods.noah import NOAH

discover()
FILES = ("module_noah_subnet", "module_noah_subnet_rise")
# of the official adapter and of ours
ADAPTER = {"ln1": "down", "ln2": "up"}
# prompts that the first block takes away unread, and their position embedding
UNREAD = ("visual_prompt_token", "visual_prompt_token_pos_embed")


class Cut:
    """The subnet of a file in float64, with the tensors of the file."""

    def __init__(self, golden: Golden, from_supernet: bool) -> None:
        h, self.golden = golden.meta["hparams"], golden
        self.subnet = Subnet(*(tuple(h[kind]) for kind in ("prompt", "lora", "adapter")))
        prompts, lora, adapters = self.subnet.kinds
        self.method = NOAH(prompts=prompts, lora=lora, adapters=adapters, dropout=0.0)
        official = golden.under("backbone")
        patch = official["patch_embed.proj.weight"].shape[-1]
        self.model: nn.Module = VisionTransformer(
            h["img"], patch, embed_dim=h["D"], depth=h["L"], num_heads=h["H"], num_classes=5
        ).eval()
        plain = {name: official[name] for name in self.model.state_dict()}
        self.model.load_state_dict(plain)
        self.anatomy = describe(self.model, h["img"])
        full = Subnet(*([(h["super"],) * h["L"]] * 3)) if from_supernet else self.subnet
        generator = torch.Generator().manual_seed(0)
        self.attached, choose = self.method._build(self.model, self.anatomy, full, generator)
        choose(self.subnet)
        with torch.no_grad():
            for ours, theirs in self.pairs():
                here = self.model.get_parameter(ours)
                here.copy_(official[theirs].squeeze(0)[tuple(map(slice, here.shape))])
        self.model.double()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Names of our tensors and of those in the file, of which ours are the first rows."""
        held = dict(self.model.named_parameters())
        for i in range(self.golden.meta["hparams"]["L"]):
            names = {
                f"blocks.{i}.tokens": f"blocks.{i}.visual_prompt_token",
                f"blocks.{i}.block.attn.qkv.delta.a": f"blocks.{i}.attn.LoRA_a.weight",
                f"blocks.{i}.block.attn.qkv.delta.b": f"blocks.{i}.attn.LoRA_b.weight",
            }
            for kind in ("weight", "bias"):
                for theirs, ours in ADAPTER.items():
                    name = f"blocks.{i}.block.mlp.fc2.adapter.{ours}.{kind}"
                    names[name] = f"blocks.{i}.adapter.{theirs}.{kind}"
            yield from ((ours, theirs) for ours, theirs in names.items() if ours in held)


@pytest.mark.parametrize("from_supernet", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_subnet_is_the_official_one(name: str, from_supernet: bool) -> None:
    golden = read(name)
    cut = Cut(golden, from_supernet)
    outputs: dict[str, Tensor] = {}
    depth = golden.meta["hparams"]["L"]
    for i in range(depth):
        cut.model.get_submodule(f"blocks.{i}").register_forward_hook(
            lambda module, args, out, i=i: outputs.update({f"blocks.{i}": out})
        )
    head = cut.model.get_submodule("head")
    head.register_forward_pre_hook(lambda module, args: outputs.update(pooled=args[0]))
    logits = cut.model(golden.tensors["x"].double())
    for place, found in outputs.items():
        expected = golden.tensors[f"out64/{place}"]
        if place == f"blocks.{depth - 1}":  # prompts are left out behind the last block
            expected = expected[:, : found.shape[1]]
        assert_close(found, expected, EXACT)
    assert_close(logits, golden.tensors["out64/logits"], EXACT)
    F.cross_entropy(logits, golden.tensors["labels"]).backward()
    compared = set()
    for ours, theirs in cut.pairs():
        gradient = cut.model.get_parameter(ours).grad
        expected = golden.tensors.get(f"grad64/{theirs}")
        if expected is None:  # of a kind that this block lacks in the subnet
            assert gradient is None or not gradient.any()
            continue
        compared.add(theirs)
        assert gradient is not None
        rows = expected.squeeze(0)
        assert_close(gradient, rows[tuple(map(slice, gradient.shape))], 1e-9)
        assert torch.count_nonzero(rows) <= torch.count_nonzero(gradient)
    keys = {k for k in golden.meta["grad_keys"] if not k.startswith("head.")}
    assert keys - set(UNREAD) == compared
    assert not any(golden.tensors[f"grad64/{k}"].any() for k in keys & set(UNREAD))


@pytest.mark.parametrize("name", FILES)
def test_the_count_is_the_official_one_without_what_nothing_reads(name: str) -> None:
    golden = read(name)
    cut, h = Cut(golden, False), golden.meta["hparams"]
    unread = h["prompt"][0] * h["D"] if h["prompt"][0] else 0
    if h["prompt"][0] and not h["nopos"]:
        unread += h["super"] * h["D"]
    counted = cut.method.expected_params(cut.anatomy)
    assert counted == golden.meta["sampled_params_numel"] - unread
    assert counted == sum(p.numel() for p in cut.attached.trainable)
