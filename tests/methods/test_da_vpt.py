"""DA-VPT: what prompts see, how tokens are compared with proxies, and whose proxy each class is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import noise, start
from torch import Tensor

from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned, apply
from peftbench.methods.layers.proxies import ProxyLoss, grouped
from peftbench.run.simulation import step_cost
from peftbench.run.step import StepPlan
from peftbench.spec import BackboneSpec, Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.device import Compute
from peftbench.training.loop import Fittable, Objective
from peftbench.training.objective import StepBatch
from peftbench.training.recomputation import recomputing

CPU = Compute(torch.device("cpu"), torch.float32)
RAW = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
MAPPING = [0, 1, 0, 1, 0, 1, 0]


def _moved(**options: Any) -> Tuned:
    given = {"proxy_prompts": 2, "other_prompts": 3, "proxy_layers": [1, 1], "mapping": MAPPING}
    tuned = start("da_vpt", "vit", **(given | options))
    fill(tuned.trainable, seed=2)
    return tuned


@pytest.mark.parametrize("masked", [True, False])
def test_a_block_by_hand(masked: bool) -> None:
    tuned = _moved(mask=masked)
    tuned.model.double().eval()
    block, x = fresh("vit").double().blocks[0], noise(2, 17, 24)
    with torch.no_grad():
        raw = tuned.model.blocks[0].prompts
        prompts = raw / raw.norm(dim=1, keepdim=True)
        tokens = torch.cat([x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]], 1)
        n = block.norm1(tokens)
        q, k, v = block.attn.qkv(n).reshape(2, 20, 3, 3, 8).permute(2, 0, 3, 1, 4)
        products = q @ k.transpose(-2, -1) / math.sqrt(8)
        if masked:  # neither the class token nor prompts
            products[:, :, 1:4, :4] = -torch.inf
        mixed = (products.softmax(-1) @ v).transpose(1, 2).reshape(2, 20, 24)
        y = tokens + block.attn.proj(mixed)
        z = y + block.mlp(block.norm2(y))
        expected = torch.cat([z[:, :1], z[:, 4:]], 1)
        torch.testing.assert_close(tuned.model.blocks[0](x), expected)


def test_proxy_anchor_by_hand() -> None:
    """Two samples of proxy 0 and none of proxy 1; proxies are twice as long once normalised."""
    samples = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    proxies = torch.tensor([[7.0, 0.0], [0.0, 1.0]])
    found = ProxyLoss(2.0, 3.0, 0.1, over_images=True)(samples, proxies, torch.tensor([0, 0]))
    # similarities [[2, 0], [0, 2]]
    near = math.log(1 + math.exp(-3 * (2 - 0.1)) + math.exp(-3 * (0 - 0.1)))  # of proxy 0
    far = math.log(1 + math.exp(3 * (0 + 0.1)) + math.exp(3 * (2 + 0.1)))  # of proxy 1
    assert float(found) == pytest.approx(near / 2 + far / 2)


def test_proxy_nca_by_hand() -> None:
    samples = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    proxies = torch.tensor([[7.0, 0.0], [0.0, 1.0]])
    found = ProxyLoss(2.0, 3.0, 0.1, over_images=False)(samples, proxies, torch.tensor([0, 0]))
    near = [math.log(1 + math.exp(-3 * (s - 0.1))) for s in (2, 0)]
    far = [math.log(1 + math.exp(3 * (s + 0.1))) for s in (0, 2)]
    assert float(found) == pytest.approx(sum(near) / 2 + sum(far) / 2)


def _terms(**options: Any) -> tuple[float, Tuned, Tensor]:
    """What is minimised beside the task's loss, and what block 1 took, (B, 19, D)."""
    tuned = _moved(**options)
    tuned.model.double().eval()
    x, target = images("vit", 4, dtype=torch.float64), torch.arange(4)
    taken: list[Tensor] = []
    tuned.model.blocks[1].block.norm1.register_forward_pre_hook(lambda _, a: taken.append(a[0]))
    batch = StepBatch(x, target, tuned.model, CLASSIFICATION)
    assert tuned.objective is not None
    total, outputs = tuned.objective(batch)
    return float((total - batch.loss(outputs)).detach()), tuned, taken[0].detach()


def test_the_term_compares_what_the_block_took() -> None:
    found, tuned, taken = _terms(cls_type="cls", patch_weight=0.3, cls_weight=0.7)
    labels = torch.tensor(MAPPING)[:4]
    metric = ProxyLoss(5.0, 32.0, 0.1, over_images=True)
    prompts = tuned.model.blocks[1].prompts.detach()
    expected = 0.3 * metric(taken[:, 3:].mean(1), prompts, labels)
    expected = expected + 0.7 * metric(taken[:, 0], prompts, labels)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_queries_and_keys_are_those_of_the_normed_input_with_all_heads_joined() -> None:
    options = {"proxy_for_cls": "key", "patch_weight": 0.0, "cls_weight": 1.0}
    found, tuned, taken = _terms(**options)
    block = fresh("vit").double().blocks[1]
    with torch.no_grad():
        query, key, _ = block.attn.qkv(block.norm1(taken)).chunk(3, dim=-1)
    metric = ProxyLoss(5.0, 32.0, 0.1, over_images=True)
    expected = metric(query[:, 0], key[:, 1:3].mean(0), torch.tensor(MAPPING)[:4])
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert tuned.model.blocks[1].sights.open() is None  # nothing is held behind a pass


def test_similar_classes_share_a_proxy() -> None:
    near = {0: torch.tensor([1.0, 0.0, 0.0]), 1: torch.tensor([0.0, 1.0, 0.0])}
    near |= {3: torch.tensor([2.0, 0.1, 0.0]), 4: torch.tensor([0.1, 3.0, 0.0])}
    found = grouped(near, 2, seed=0)
    assert found[0] == found[3] != found[1] == found[4]
    assert found[2] == 0  # a class without an image
    assert grouped(near, 5, seed=0) == (0, 1, 2, 3, 4)  # each class has its own


def test_classes_are_grouped_by_what_the_classifier_reads_of_ten_images_each() -> None:
    """The eleventh image of a class changes nothing."""
    method = METHODS["da_vpt"](proxy_prompts=2)
    backbone, anatomy = fresh("vit"), anatomy_of("vit")
    first = (images("vit", 10, seed=0), torch.zeros(10).long())
    others = (images("vit", 20, seed=1), torch.arange(20) % 2 + 1)
    more = (1000 * images("vit", 5, seed=2), torch.zeros(5).long())
    found = [
        method.prepare(backbone, anatomy, seen, torch.Generator().manual_seed(0))
        for seen in ([first, others], [first, others, more])
    ]
    assert torch.equal(found[0].tensors["mapping"], found[1].tensors["mapping"])
    assert found[0].facts == {"classes": 3, "proxies": 2}


def test_a_given_mapping_needs_no_look_at_images() -> None:
    method = METHODS["da_vpt"](mapping=[1, 0])
    found = method.prepare(fresh("vit"), anatomy_of("vit"), [], torch.Generator())
    assert found.tensors["mapping"].tolist() == [1, 0]


def test_a_part_of_a_fused_bias_trains_by_itself() -> None:
    tuned = start("da_vpt", "vit", train_biases=["k", "v", "proj"], mapping=[0])
    own = {n: p.numel() for n, p in tuned.trainable.items() if "block.attn" in n}
    assert set(own.values()) == {2 * 24, 24} and len(own) == 4
    plain = start("da_vpt", "vit", mapping=[0])
    x = images("vit", 2)
    torch.testing.assert_close(tuned.model.eval()(x), plain.model.eval()(x))  # from zero
    qkv = tuned.model.blocks[0].block.attn.qkv
    with torch.no_grad():
        next(p for n, p in qkv.named_parameters() if "shift" in n).copy_(torch.arange(48.0))
        shifted = qkv(torch.zeros(1, 1, 24))
    expected = fresh("vit").blocks[0].attn.qkv.bias + torch.cat([torch.zeros(24), torch.arange(48)])
    torch.testing.assert_close(shifted[0, 0], expected)
    whole = start("da_vpt", "vit", train_biases=["q", "k", "v"], mapping=[0])
    assert "blocks.0.block.attn.qkv.bias" in {n.replace(".base", "") for n in whole.unfrozen_params}


def test_blocks_that_compute_again_change_no_gradient() -> None:
    found = []
    for wanted in (False, True):
        tuned = _moved()
        tuned.train()
        parameters = list(tuned.trainable.values())
        fittable = Fittable(tuned.model, parameters, tuned.train, RAW, objective=tuned.objective)
        with recomputing(tuned.model, wanted):
            Objective(fittable, 0.0)(images("vit", 4), torch.arange(4))[0].backward()
        found.append([p.grad for p in parameters])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_a_step_can_be_counted_without_storage() -> None:
    plan = StepPlan(_moved(), Recipe(batch_size=4), RAW, 7)
    assert step_cost(plan, 4, CPU).training_gflops > 0


def test_the_count_on_vit_b() -> None:
    """12 * 20 * 768 prompts; + has 12 * 2 * 768 biases of keys and values besides."""
    backbone = load(BackboneSpec("vit_base_patch16_224", pretrained=False), 2, device="meta").model
    anatomy = describe(backbone, 224)
    assert METHODS["da_vpt"]().expected_params(anatomy) == 184_320
    method = METHODS["da_vpt"](train_biases=["k", "v"], mapping=[0])
    tuned = apply(method, backbone, anatomy, 10, torch.Generator())
    assert sum(p.numel() for p in tuned.method_params.values()) == 184_320 + 18_432
    assert method.expected_params(anatomy) == 184_320 + 18_432


@pytest.mark.parametrize(
    "options",
    [{"proxy_prompts": 0}, {"proxy_layers": [1]}, {"mapping": [20]}, {"alpha": 0.0}]
    + [{"cls_type": "value"}, {"criterion": "triplet"}, {"train_biases": ["head"]}]
    + [{"prompt_norm": "layer"}, {"dropout": 1.0}, {"cls_weight": -1.0}],
)
def test_settings_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method=da_vpt"):
        METHODS["da_vpt"](**options)


@pytest.mark.parametrize(
    ("options", "backbone", "advice"),
    [
        ({}, "vit_average", r"Set method\.cls_weight=0\."),
        ({}, "swin", "Use method="),
        ({"proxy_layers": [0, 2]}, "vit", r"has 2\. Set method\.proxy_layers\."),
        ({"train_biases": ["fc1"]}, "vit", ""),
    ],
)
def test_a_refusal_says_what_to_set(options: dict[str, Any], backbone: str, advice: str) -> None:
    method = METHODS["da_vpt"](**options)
    if not advice:
        return method.check(anatomy_of(backbone))
    with pytest.raises(Unsupported, match=advice):
        method.check(anatomy_of(backbone))


def test_a_block_that_takes_no_mask_is_refused() -> None:
    backbone = fresh("vit")
    forward = backbone.blocks[1].forward
    backbone.blocks[1].forward = lambda x: forward(x)
    with pytest.raises(Unsupported, match=r"'blocks\.1'.* Set method\.mask=false\."):
        METHODS["da_vpt"]().rehearse(backbone, anatomy_of("vit"))
    METHODS["da_vpt"](mask=False).rehearse(backbone, anatomy_of("vit"))
