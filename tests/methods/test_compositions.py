"""Several methods on one backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh, images
from torch import nn

from peftbench.errors import ConfigError, NotMergeable, Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.methods.building import method_of

discover()
CLASSES = 5


def composed(backbone: str, *parts: str, settings: tuple[str, ...] = ()) -> Tuned:
    method = METHODS["compose"](parts=parts, settings=settings)
    generator = torch.Generator().manual_seed(0)
    return apply(method, fresh(backbone), anatomy_of(backbone), CLASSES, generator)


def test_a_pair_computes_what_its_weights_written_by_hand_compute() -> None:
    tuned = composed("vit", "lora", "norm", settings=("lora.rank:2", "lora.alpha:4"))
    fill(tuned.trainable, seed=1)
    by_hand = fresh("vit")
    by_hand.head = copy.deepcopy(tuned.model.head)
    trained = dict(tuned.trainable)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            if name in trained and not name.startswith("head"):
                parameter.copy_(trained[name])
        for i, block in enumerate(by_hand.blocks):
            width = block.attn.proj.in_features
            for rows, part in ((slice(0, width), "q"), (slice(2 * width, None), "v")):
                a = trained[f"blocks.{i}.attn.qkv.delta.a.{part}"]
                b = trained[f"blocks.{i}.attn.qkv.delta.b.{part}"]
                block.attn.qkv.weight[rows] += 2.0 * b @ a  # alpha / rank = 4 / 2
        x = images("vit", 3)
        torch.testing.assert_close(tuned.model.eval()(x), by_hand.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [("ssf", "lora"), ("lora", "ssf"), ("repadapter", "bias")],
    ids="+".join,
)
def test_what_folds_alone_folds_together(parts: tuple[str, ...]) -> None:
    tuned = composed("vit", *parts)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    x = images("vit", 3, dtype=torch.float64)
    with torch.no_grad():
        before = tuned.model(x)
        merged = tuned.method.merge(tuned.model)
        torch.testing.assert_close(merged(x), before, rtol=0.0, atol=1e-10)
    assert [type(m) for m in merged.modules()] == [type(m) for m in fresh("vit").modules()]


def test_parts_inside_parts_are_found_where_they_are_then() -> None:
    """Prompts stand around the blocks in which adapters stand around the second layers."""
    tuned = composed("vit", "vpt_deep", "adapter", "lora", "bias")
    alone = [METHODS[part]() for part in ("vpt_deep", "adapter", "lora", "bias")]
    anatomy = anatomy_of("vit")
    outside = [p for n, p in tuned.trainable.items() if n not in tuned.head_params]
    assert sum(p.numel() for p in outside) == sum(m.expected_params(anatomy) for m in alone)
    modules = dict(tuned.model.named_modules()) | dict(tuned.model.named_parameters())
    assert all(path in modules for path in tuned.touched)
    fill(tuned.trainable, seed=3)
    loss = tuned.model(images("vit", 2)).square().mean()
    gradients = torch.autograd.grad(loss, list(tuned.trainable.values()))
    assert all(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize(
    "parts, reason",
    [
        (("lora", "full"), r"lora and full both change 'blocks\.0\.attn\.qkv\.weight'"),
        (("norm", "full"), r"both change 'blocks\.0\.norm1\.bias'"),
        (("lora", "fact_tt"), r"both change 'blocks\.0\.attn\.qkv\.weight'"),
        (("adaptformer", "convpass"), r"carry changes along the stream of 'blocks\.0'"),
        (("convpass", "vpt_deep"), "do not stand together on this vit backbone"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_what_touches_one_thing_twice_is_refused_in_a_line(
    parts: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        composed("vit", *parts)
    assert "\n" not in str(caught.value)
    assert "Choose other parts" in str(caught.value)


def test_the_same_weight_may_be_shared_by_blocks() -> None:
    tuned = composed("vit", "lora", "fact_tt", settings=("lora.blocks:[0]", "fact_tt.blocks:[-1]"))
    assert any(n.startswith("blocks.0.") for n in tuned.method_params)


@pytest.mark.parametrize(
    "parts, settings, reason",
    [
        (("lora",), (), "name two methods or more"),
        (("lora", "lora"), (), "name a method twice"),
        (("lora", "compose"), (), "name its parts"),
        (("lora", "linear"), (), "linear trains the head alone"),
        (("lora", "knn"), (), "knn computes its head"),
        (("lora", "norms"), (), "Unknown method 'norms'"),
        (("lora", "norm"), ("adapter.bottleneck:4",), "write PART.KEY:VALUE once"),
        (("lora", "norm"), ("lora.rank:4", "lora.rank:5"), "write PART.KEY:VALUE once"),
        (("lora", "norm"), ("lora.rank",), "no KEY:VALUE"),
        (("lora", "norm"), ("lora.rang:4",), "hyper-parameter of lora"),
        (("lora", "norm"), ("lora.rank:x",), "lora"),
    ],
)
def test_what_is_no_composition_is_refused(
    parts: tuple[str, ...], settings: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        METHODS["compose"](parts=parts, settings=settings)


def test_its_identity_spells_out_every_part_and_gives_it_back() -> None:
    method = METHODS["compose"](
        parts=("lora", "norm"), settings=("lora.targets:[q,proj]", "lora.blocks:[1]")
    )
    values = method.identity()["hyperparameters"]
    assert values == {
        "parts": ["lora", "norm"],
        "lora.rank": 8,
        "lora.alpha": 8.0,
        "lora.targets": ["q", "proj"],
        "lora.dropout": 0.0,
        "lora.blocks": [1],
    }
    again = method_of("compose", values)
    assert again.identity() == method.identity()


def test_a_part_that_stays_beside_the_backbone_keeps_the_whole_from_folding() -> None:
    tuned = composed("vit", "lora", "adapter")
    with pytest.raises(NotMergeable, match=r"^adapter of this composition"):
        tuned.method.merge(tuned.model)


def test_a_head_of_one_part_is_the_head_of_all() -> None:
    tuned = composed("vit", "lora", "mlp")
    assert isinstance(tuned.model.head, nn.Sequential)


def test_parts_that_look_at_images_look_before_and_are_loaded_without() -> None:
    anatomy = anatomy_of("vit")
    settings = ("spt_lora.budget:2", "spt_lora.unit:1000", "spt_lora.rank:2", "spt_lora.alpha:2")
    method = METHODS["compose"](parts=("sct", "spt_lora"), settings=settings)
    assert method.card.prepared
    seen = [(images("vit", 8, seed=each), torch.arange(8) % CLASSES) for each in range(2)]
    prepared = method.prepare(fresh("vit"), anatomy, seen, torch.Generator().manual_seed(0))
    assert prepared.facts.keys() == {"sct", "spt_lora"}
    generator = torch.Generator().manual_seed(0)
    tuned = apply(method, fresh("vit"), anatomy, CLASSES, generator, prepared)
    fill(tuned.trainable, seed=4)
    assert tuned.method != method  # so that the card of a stored task has what images decided
    known = method_of("compose", tuned.method.identity()["hyperparameters"])
    again = apply(known, fresh("vit"), anatomy, CLASSES, torch.Generator().manual_seed(1))
    again.load_state({name: tensor.clone() for name, tensor in tuned.state().items()})
    x = images("vit", 2)
    with torch.no_grad():
        torch.testing.assert_close(again.model.eval()(x), tuned.model.eval()(x))


def test_two_objectives_are_one_too_many() -> None:
    with pytest.raises(Unsupported, match="both minimise an objective"):
        composed("vit", "dyt", "da_vpt")
