"""Variants of released codes, against the same network written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from torch import Tensor, nn

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover

discover()
DTYPE = torch.float64


def tuned_with(method: str, backbone: str = "vit", **options: Any) -> Tuned:
    chosen = METHODS[method](dropout=0.0, **options)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(chosen, fresh(backbone), anatomy_of(backbone), 5, generator)
    fill(tuned.trainable, seed=1)
    tuned.model.to(DTYPE).eval()
    return tuned


def bottleneck(tuned: Tuned, block: int, scale: float, norm: str = "none") -> Any:
    """The adapter of a block as a function of a tensor (B, N, D), of its tensors alone."""
    mine = {
        name.rpartition(".adapter.")[2]: tensor.to(DTYPE)
        for name, tensor in tuned.model.named_parameters()
        if name.startswith(f"blocks.{block}.") and ".adapter." in name
    }
    width = mine["down.weight"].shape[1]
    biased = "down.bias" in mine
    activation = F.gelu if tuned.method.name == "adapter" else F.relu

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), mine[f"{name}.weight"], mine[f"{name}.bias"], 1e-5)

    def change(x: Tensor) -> Tensor:
        if norm == "in":
            x = layer_norm(x, "norm")
        x = activation(F.linear(x, mine["down.weight"], mine.get("down.bias")))
        x = F.linear(x, mine["up.weight"], mine.get("up.bias"))
        x = mine["scale"] * x if "scale" in mine else scale * x
        return layer_norm(x, "norm_behind") if norm == "out" else x

    change.biased = biased  # type: ignore[attr-defined]
    return change


def by_hand(tuned: Tuned, backbone: str, block_of: Any) -> Tensor:
    """Logits of plain blocks in which `block_of` makes the output of a block's parts."""
    model = fresh(backbone).to(DTYPE).eval()
    x = images(backbone, 2, dtype=DTYPE)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    for i, block in enumerate(model.blocks):
        y = x + block.ls1(block.attn(block.norm1(x)))
        x = block_of(i, y, block.ls2(block.mlp(block.norm2(y))))
    return tuned.model.head(model.pool(model.norm(x)))


CASES = [
    ("adapter", {"position": "intermediate", "bias": False, "scale": 0.7}, 0.7, "sequential"),
    ("adapter", {"position": "intermediate", "learned_scale": "channel"}, 1.0, "sequential"),
    ("adaptformer", {"learned_scale": "scalar", "bottleneck": 3}, 0.1, "parallel"),
    ("adaptformer", {"layer_norm": "in", "bottleneck": 3, "scale": 0.6}, 0.6, "parallel"),
    ("adaptformer", {"layer_norm": "out", "bottleneck": 3, "scale": 0.6}, 0.6, "parallel"),
    ("adaptformer", {"placement": "sequential", "bias": False, "scale": 0.6}, 0.6, "sequential"),
]


@pytest.mark.parametrize("backbone", ["vit", "vit_registers"])  # the second has layer scale
@pytest.mark.parametrize("method, options, scale, place", CASES)
def test_an_adapter_is_what_its_released_code_computes(
    method: str, options: dict[str, Any], scale: float, place: str, backbone: str
) -> None:
    tuned = tuned_with(method, backbone, **options)
    norm = options.get("layer_norm", "none")

    def block_of(i: int, y: Tensor, u: Tensor) -> Tensor:
        change = bottleneck(tuned, i, scale, norm)
        assert change.biased == options.get("bias", True)
        return y + u + change(u if place == "sequential" else y)

    with torch.no_grad():
        logits = tuned.model(images(backbone, 2, dtype=DTYPE))
        expected = by_hand(tuned, backbone, block_of)
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-10)
    added = sum(p.numel() for p in tuned.method_params.values())
    assert added == tuned.method.expected_params(anatomy_of(backbone))


def test_repadapter_may_stand_in_front_of_attention_alone() -> None:
    tuned = tuned_with("repadapter", branches="attention", groups=1, bottleneck=4)
    assert {path.rpartition(".")[2] for path in tuned.touched} == {"qkv"}
    both = METHODS["repadapter"](groups=1, bottleneck=4).expected_params(anatomy_of("vit"))
    assert 2 * tuned.method.expected_params(anatomy_of("vit")) == both
    x = images("vit", 2, dtype=DTYPE)
    with torch.no_grad():
        before = tuned.model(x)
        after = tuned.method.merge(tuned.model)(x)
    torch.testing.assert_close(after, before, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("location", ["prepend", "append"])
@pytest.mark.parametrize("read", ["prompts", "patches", "all"])
def test_the_mean_that_is_read_is_that_of_the_normed_tokens(read: str, location: str) -> None:
    tuned = tuned_with("vpt_deep", num_tokens=3, read=read, location=location)
    seen: list[Tensor] = []
    tuned.model.norm.base.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        logits = tuned.model(images("vit", 2, dtype=DTYPE))
    (tokens,) = seen  # class, then 3 prompts and 16 patches in one order or the other
    assert tokens.shape[1] == 1 + 3 + 16
    first = slice(1, 4) if location == "prepend" else slice(17, 20)
    rest = slice(4, 20) if location == "prepend" else slice(1, 17)
    chosen = {"prompts": first, "patches": rest, "all": slice(1, 20)}[read]
    head = tuned.model.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        expected = head(tokens[:, chosen].mean(1))
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-12)


def test_variants_that_make_no_sense_are_refused() -> None:
    for method, options in (
        ("repadapter", {"branches": "all"}),
        ("vpt_deep", {"read": "mean"}),
        ("vpt_shallow", {"read": "all", "location": "below"}),
        ("adaptformer", {"layer_norm": "both"}),
        ("adaptformer", {"placement": "before"}),
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            METHODS[method](**options)
    with pytest.raises(Unsupported, match=r"read='all' .* Set method.read=class"):
        METHODS["vpt_deep"](read="all").check(anatomy_of("vit_average"))


@pytest.mark.parametrize("method", ["adapter", "adaptformer", "repadapter", "vpt_deep"])
def test_new_options_at_their_defaults_leave_the_identity_as_it_was(method: str) -> None:
    new = {"bias", "placement", "learned_scale", "layer_norm", "init", "branches", "read"}
    before = {"adapter": {"learned_scale", "init"}, "adaptformer": {"bias"}}.get(method, set())
    named = set(METHODS[method]().identity()["hyperparameters"])
    assert named & new == before
