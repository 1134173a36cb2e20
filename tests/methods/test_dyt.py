"""Dynamic tuning: which tokens are computed, what that saves, and what training minimises."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import noise, start
from torch import Tensor

from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned, apply
from peftbench.methods.layers.dispatch import Dispatching, DispatchObjective, Router
from peftbench.run.cost import measured_gmacs
from peftbench.run.simulation import step_cost
from peftbench.run.step import StepPlan
from peftbench.spec import BackboneSpec, Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.device import Compute, seeded
from peftbench.training.loop import Fittable, Objective
from peftbench.training.objective import StepBatch
from peftbench.training.recomputation import recomputing

CPU = Compute(torch.device("cpu"), torch.float32)
RAW = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3)


def _moved(backbone: str = "vit", **options: Any) -> Tuned:
    tuned = start("dyt", backbone, dropout=0.0, **options)
    fill(tuned.trainable, seed=2)
    return tuned


def _routers(tuned: Tuned) -> list[Router]:
    return [module for module in tuned.model.modules() if isinstance(module, Router)]


def test_a_block_by_hand() -> None:
    """Patch tokens above the threshold take the MLP, the class token always, all the adapter."""
    tuned = _moved(scale=0.7)
    tuned.model.double().eval()
    block, x = fresh("vit").double().blocks[1], noise(2, 17, 24)
    t = {n: p.detach() for n, p in tuned.method_params.items() if n.startswith("blocks.1.")}
    t = {n.partition("adapter.")[2]: p for n, p in t.items()}
    with torch.no_grad():
        y = x + block.attn(block.norm1(x))
        t["router.bias"].copy_(-(y @ t["router.weight"].T).median())  # half of the tokens go
        keep = (y @ t["router.weight"].T + t["router.bias"]).sigmoid() > 0.5
        keep[:, 0] = True
        assert 0 < int(keep[:, 1:].sum()) < 32
        hidden = (y @ t["bottleneck.down.weight"].T + t["bottleneck.down.bias"]).relu()
        adapted = hidden @ t["bottleneck.up.weight"].T + t["bottleneck.up.bias"]
        expected = y + torch.where(keep, block.mlp(block.norm2(y)), 0) + 0.7 * adapted
        torch.testing.assert_close(tuned.model.blocks[1](x), expected)
    dense = tuned.model.blocks[1](x)  # with gradients all tokens are computed
    torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize("backbone", ["vit", "swin", "vit_average"])
def test_skipping_changes_no_output(backbone: str) -> None:
    tuned = _moved(backbone)
    tuned.model.double().eval()
    x = images(backbone, 3, dtype=torch.float64)
    with torch.no_grad():
        skipped = tuned.model(x)
    torch.testing.assert_close(skipped, tuned.model(x))


@pytest.mark.parametrize("share", ["none", "all"])
def test_tokens_that_skip_the_mlp_are_not_computed(share: str) -> None:
    tuned = start("dyt", "vit")
    with torch.no_grad():
        for router in _routers(tuned):
            router.bias.fill_(100.0 if share == "all" else -100.0)
    pixels = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    found = measured_gmacs(tuned.model, pixels, RAW, CPU)
    # 16 patches and a class token, width 24, two blocks: embedding of 48 numbers; qkv, attention
    # (two products over 17 keys) and projection; router; adapter of 8; MLP of 96; head of 7
    every = 16 * 48 * 24 + 24 * 7
    block = 17 * (3 * 24 * 24 + 2 * 17 * 24 + 24 * 24) + 16 * 24 + 17 * 2 * 24 * 8
    tokens = 17 if share == "all" else 1
    assert found * 1e9 == pytest.approx(every + 2 * (block + tokens * 2 * 24 * 96), rel=1e-9)


def test_with_no_token_at_all_the_mlp_gives_zeros() -> None:
    tuned = start("dyt", "vit_average")  # has no class token
    with torch.no_grad():
        for router in _routers(tuned):
            router.bias.fill_(-100.0)
        out = tuned.model.eval()(images("vit_average", 2))
    assert out.isfinite().all()


def test_the_objective_by_hand() -> None:
    """Cross-entropies of both ways, what the one differs from the other, and the ratio."""
    dispatching = Dispatching()
    logits, full = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]], requires_grad=True)

    def model(x: Tensor) -> Tensor:
        assert len(x) == 2 and dispatching.rows.value == 1 and dispatching.ratios is not None
        dispatching.ratios += [torch.tensor(0.2), torch.tensor(0.4)]
        return torch.cat([logits, full])

    batch = StepBatch(torch.zeros(1, 3, 2, 2), torch.tensor([0]), model, CLASSIFICATION)
    total, outputs = DispatchObjective(dispatching, 0.5, 2.0)(batch)
    assert torch.equal(outputs, logits)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))  # of class 0: dispatched, and with all
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert float(total.detach()) == pytest.approx(
        -math.log(p) - math.log(q) + divergence + 2 * (0.3 - 0.5) ** 2
    )
    (gradient,) = torch.autograd.grad(total, full)  # of its own cross-entropy alone
    torch.testing.assert_close(gradient, torch.tensor([[q - 1, 1 - q]]))
    assert dispatching.rows.value is None and dispatching.ratios is None


def test_the_teacher_takes_every_token_and_the_student_its_own() -> None:
    tuned = _moved()
    tuned.model.double().eval()
    everything = copy.deepcopy(tuned)
    for router in _routers(everything):
        router.bias.data.fill_(1000.0)
    x = images("vit", 3, dtype=torch.float64)
    objective: Any = tuned.objective
    with objective.dispatching.watched(3) as ratios:
        student, teacher = tuned.model(torch.cat([x, x])).chunk(2)
    torch.testing.assert_close(student, tuned.model(x))
    torch.testing.assert_close(teacher, everything.model(x))
    assert len(ratios) == 2 and all(0 <= float(ratio.detach()) <= 1 for ratio in ratios)


def _gradients(wanted: bool) -> dict[str, Tensor]:
    tuned = _moved()
    tuned.train()
    parameters = list(tuned.trainable.values())
    fittable = Fittable(tuned.model, parameters, tuned.train, RAW, objective=tuned.objective)
    objective = Objective(fittable, 0.0)
    with seeded(0, CPU), recomputing(tuned.model, wanted):
        objective(images("vit", 4), torch.arange(4))[0].backward()
    return {name: p.grad for name, p in tuned.trainable.items() if p.grad is not None}


def test_blocks_that_compute_again_route_as_they_did() -> None:
    plain, again = _gradients(wanted=False), _gradients(wanted=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


def test_routers_draw_in_training_and_not_at_inference() -> None:
    router = Router(4, 1, temperature=5.0, threshold=0.5, generator=torch.Generator())
    y = torch.zeros(2, 3, 4)  # logits of zero
    first, second = torch.tensor([[[1.0], [3.0]]] * 2), torch.tensor([[[2.0], [0.5]]] * 2)
    router.draw = lambda z: (first, second)
    router.train()
    mask = router(y)
    # (log 2 - log 1) / 5 > 0 goes, (log 0.5 - log 3) / 5 < 0 does not
    assert mask[0].flatten().tolist() == [1.0, 0.0]
    probability = 1 / (1 + math.exp(-math.log(2) / 5))
    (gradient,) = torch.autograd.grad(mask[0, 0].sum(), router.bias)
    assert float(gradient) == pytest.approx(probability * (1 - probability) / 5)
    assert router.eval()(y).flatten().tolist() == [0.0] * 4  # 0.5 is not above the threshold


def test_a_step_costs_two_passes() -> None:
    """Twice the operations of an adapter at the same place, but for the router's."""
    recipe = Recipe(batch_size=4)
    costs = {}
    for method, options in (("dyt", {"bottleneck": 8}), ("adaptformer", {"bottleneck": 8})):
        plan = StepPlan(start(method, "vit", **options), recipe, RAW, 7)
        costs[method] = step_cost(plan, 4, CPU).training_gflops
    assert costs["dyt"] == pytest.approx(2 * costs["adaptformer"], rel=0.02)


def test_the_count_on_vit_b_is_the_published_one() -> None:
    """0.16 M in the paper: 12 (2 * 768 * 8 + 8 + 768) of adapters and 12 * 769 of routers."""
    spec = BackboneSpec("vit_base_patch16_224", pretrained=False)
    backbone = load(spec, 2, device="meta").model
    anatomy = describe(backbone, 224)
    method = METHODS["dyt"]()
    tuned = apply(method, backbone, anatomy, 10, torch.Generator())
    assert sum(p.numel() for p in tuned.method_params.values()) == 165_996
    assert method.expected_params(anatomy) == 165_996


@pytest.mark.parametrize(
    "options",
    [{"bottleneck": 0}, {"dropout": 1.0}, {"target_ratio": 1.5}, {"temperature": 0.0}]
    + [{"ratio_weight": -1.0}, {"threshold": 2.0}],
)
def test_settings_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^method=dyt: "):
        METHODS["dyt"](**options)


@pytest.mark.parametrize("backbone", ["resnet_basic", "swin_v2", "convnext", "hat_net"])
def test_backbones_without_an_mlp_of_tokens_behind_a_norm_are_refused(backbone: str) -> None:
    with pytest.raises(Unsupported, match="dyt lets tokens skip an MLP"):
        METHODS["dyt"]().check(anatomy_of(backbone))


def test_an_mlp_that_mixes_tokens_is_refused() -> None:
    backbone = fresh("vit")
    mixing = backbone.blocks[0].mlp
    forward = mixing.forward
    mixing.forward = lambda x: forward(x) + F.softmax(x, 1).mean(1, keepdim=True)
    with pytest.raises(Unsupported, match=r"'blocks\.0\.mlp' of this vit backbone does not treat"):
        METHODS["dyt"]().rehearse(backbone, anatomy_of("vit"))
