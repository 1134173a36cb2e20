"""PACE: where noise is, what passes are compared, and what is remembered of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, images
from support.tiny_runs import short_timings, tiny_spec
from support.tiny_tuned import start
from timm.layers import DropPath
from torch import Tensor

from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import Tuned
from peftbench.methods.layers.noise import ChangeNoise, SharedDropPath, bare_path, sigma_at
from peftbench.methods.layers.passes import PassNote
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.objectives import objective_of
from peftbench.run.simulation import step_cost
from peftbench.run.step import StepPlan
from peftbench.spec import Precision, Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.consistency import Consistency, FastConsistency, Noise
from peftbench.training.device import Compute, seeded
from peftbench.training.loop import Fittable, Objective
from peftbench.training.objective import StepBatch
from peftbench.training.recipe import check_recipe
from peftbench.training.recomputation import recomputing
from peftbench.training.world import World

CPU = Compute(torch.device("cpu"), torch.float32)
RAW = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
PACE = Recipe(consistency="pace", consistency_weight=0.5, consistency_noise=0.8)


def _moved(method: str, backbone: str, **options: Any) -> Tuned:
    tuned = start(method, backbone, **options)
    fill(tuned.trainable, seed=2)
    tuned.model.eval()
    return tuned


def _noises(tuned: Tuned) -> dict[str, ChangeNoise]:
    found = {path: getattr(m, "disturb", None) for path, m in tuned.model.named_modules()}
    return {path: noise for path, noise in found.items() if isinstance(noise, ChangeNoise)}


@pytest.mark.parametrize(
    ("backbone", "sigmas"),
    [
        # two blocks and the classifier: none in the first block of a ViT, then 1 and 1/2
        ("vit", [0.0, 1.0, 1 / 2]),
        ("vit_average", [0.0, 1.0, 1 / 2]),
        # elsewhere all blocks have noise: three and the classifier in steps of a quarter
        ("swin", [1.0, 3 / 4, 1 / 2, 1 / 4]),
    ],
)
def test_sigma_falls_in_equal_steps_to_the_classifier(backbone: str, sigmas: list[float]) -> None:
    anatomy = anatomy_of(backbone)
    found = [sigma_at(depth, anatomy, 1.0) for depth in range(anatomy.depth + 1)]
    assert found == pytest.approx(sigmas)


def test_a_sample_and_a_channel_have_one_draw() -> None:
    noisy: PassNote[int] = PassNote()
    last, first = ChangeNoise(0.5, noisy), ChangeNoise(0.5, noisy, axis=1)
    ones = torch.ones(2, 3, 4, 5)
    assert last(ones) is ones  # outside a noisy pass
    with noisy.saying(1):
        by_last, by_first = last(ones), first(ones)
        z = torch.arange(10.0).view(2, 1, 1, 5)
        last.draw = lambda like: z
        assert torch.equal(last(ones), (1 + 0.5 * z).expand_as(ones))
    assert torch.equal(by_last, by_last[:, :1, :1].expand_as(ones))
    assert torch.equal(by_first, by_first[..., :1, :1].expand_as(ones))
    assert by_last[:, 0, 0].unique().numel() == 10 and by_first[..., 0, 0].unique().numel() == 6


# where a method adds: to the output of layers, beside branches, in front of layers, on maps
METHODS_THAT_ADD = [
    ("lora", "vit", {"targets": ["q", "v", "fc1"]}),
    ("lora", "resnet_basic", {}),
    ("pace_adapter", "swin", {"rank": 2}),
    ("adapter", "convnext", {}),
    ("adapter", "vit", {"position": "post"}),
    ("adaptformer", "swin", {}),
    ("convpass", "vit", {}),
    ("ssf", "vit", {}),
    ("repadapter", "vit", {}),
    ("fact_tt", "vit", {"rank": 2}),
]


@pytest.mark.parametrize(("method", "backbone", "options"), METHODS_THAT_ADD)
def test_noise_multiplies_what_a_method_adds(method: str, backbone: str, options: dict) -> None:
    """With z = -1 / sigma in every block nothing is left of what is added: the bare backbone."""
    tuned = _moved(method, backbone, **options)
    bare = start("linear", backbone)
    tuned.model.double(), bare.model.double().eval()
    x = images(backbone, 2, dtype=torch.float64)
    with torch.no_grad():
        for (_, mine), (_, its) in zip(
            tuned.head_params.items(), bare.head_params.items(), strict=True
        ):
            its.copy_(mine)
        plain = tuned.model(x)
        objective = objective_of(tuned, PACE, (2, 7))
        assert isinstance(objective, Consistency)
        torch.testing.assert_close(tuned.model(x), plain, rtol=0, atol=0)  # no noise by itself
        for noise in _noises(tuned).values():
            noise.sigma = 1.0
            noise.draw = lambda like: -torch.ones_like(like)
        with objective.noise.saying(1):
            silenced = tuned.model(x)
    expected = bare.model(x).detach()
    assert not torch.allclose(plain, expected, rtol=1e-3)
    torch.testing.assert_close(silenced, expected, rtol=1e-9, atol=1e-9)


def test_a_tuner_of_peft_is_disturbed_as_a_whole() -> None:
    pytest.importorskip("peft")
    for method in ("hf_lora", "hf_pissa", "hf_loha"):
        tuned = _moved(method, "vit")
        tuned.model.double()
        x = images("vit", 2, dtype=torch.float64)
        with torch.no_grad():
            plain = tuned.model(x)
            objective = objective_of(tuned, PACE, (2, 7))
            assert isinstance(objective, Consistency)
            torch.testing.assert_close(tuned.model(x), plain)
            noises = _noises(tuned)
            assert len(noises) == 2, method  # qkv of two blocks, whatever is inside
            with objective.noise.saying(1):
                assert not torch.allclose(tuned.model(x), plain)


def test_paths_are_those_of_the_bare_backbone() -> None:
    tuned = start("adaptformer", "vit")
    assert bare_path(tuned.model, "blocks.1.block.norm2") == "blocks.1.norm2"
    assert set(_noises(tuned)) == set()
    objective_of(tuned, PACE, (2, 7))
    assert set(_noises(tuned)) == {"blocks.0.block.norm2", "blocks.1.block.norm2"}


# ------------------------------------------------------------------- objectives


def _given(outputs: list[Tensor], recipe: Recipe, **size: int) -> tuple[Any, Any]:
    """The objective of a recipe, and a batch of two images of class 0 whose passes give these."""
    passes = iter(outputs)
    noisy: PassNote[int] = PassNote()
    noise = Noise(noisy.saying, lambda x: x)
    objective = (
        FastConsistency(recipe, noise, (size.get("images", 2), 2))
        if recipe.consistency == "fast"
        else Consistency(recipe, noise)
    )

    def model(x: Tensor) -> Tensor:
        assert noisy.value == (1 if len(x) == 2 and recipe.consistency != "lazy" else noisy.value)
        return next(passes)

    x, target = torch.zeros(2, 3, 2, 2), torch.zeros(2).long()
    return objective, StepBatch(x, target, model, CLASSIFICATION, numbers=torch.tensor([1, 0]))


def test_pace_by_hand() -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    objective, batch = _given([torch.cat([first, second])], PACE)
    total, outputs = objective(batch)
    assert torch.equal(outputs, first)
    # squared distances 1 + 4 and 0 + 1, their mean 3
    expected = F.cross_entropy(first, batch.target) + 0.5 * 3
    assert float(total) == pytest.approx(float(expected))


def test_lazy_compares_half_of_the_images_in_some_steps() -> None:
    recipe = dataclasses.replace(PACE, consistency="lazy", consistency_interval=3)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    whole = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    objective, batch = _given([torch.cat([first, second]), whole, whole], recipe)
    total, outputs = objective(batch)  # step 0
    assert torch.equal(outputs, first)
    expected = F.cross_entropy(first, batch.target[:1]) + 0.5 * 5
    assert float(total) == pytest.approx(float(expected))
    for step in (1, 2):
        total, outputs = objective(dataclasses.replace(batch, step=step))
        assert torch.equal(outputs, whole)
        assert float(total) == pytest.approx(float(F.cross_entropy(whole, batch.target)))


def test_fast_compares_with_the_epoch_before() -> None:
    recipe = dataclasses.replace(PACE, consistency="fast")
    first = torch.tensor([[1.0, 0.0], [0.0, 3.0]], requires_grad=True)
    second = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    objective, batch = _given([first, second, second], recipe)
    total, _ = objective(batch)  # with zeros: 1 and 9, their mean 5
    expected = F.cross_entropy(first, batch.target) + 0.5 * 5
    assert float(total.detach()) == pytest.approx(float(expected.detach()))
    total, _ = objective(batch)  # 1 and 0
    assert not total.requires_grad  # nothing flows into the epoch before
    assert float(total) == pytest.approx(float(F.cross_entropy(second, batch.target)) + 0.5 / 2)
    assert objective.state_dict()["history"][1].tolist() == [2.0, 0.0]  # of image number 1
    total, _ = objective(dataclasses.replace(batch, numbers=None))  # as a step without images
    assert float(total) == pytest.approx(
        float(F.cross_entropy(second, batch.target)) + 0.5 * 13 / 2
    )


def test_processes_share_what_they_remember() -> None:
    """Two processes: the first saw images 0 and 2, the second 1 and 2; none saw 3."""
    recipe = dataclasses.replace(PACE, consistency="fast")
    noise = Noise(PassNote().saying, lambda x: x)
    own, other = (FastConsistency(recipe, noise, (4, 1)) for _ in range(2))
    for objective in (own, other):
        objective.history.fill_(9.0)
    own.history[[0, 2]], other.history[[1, 2]] = 1.0, 3.0
    own.written[[0, 2]], other.written[[1, 2]] = 1.0, 1.0

    @dataclasses.dataclass(frozen=True)
    class Two(World):
        size: int = 2

        def all_reduce_sum(self, values: Tensor) -> Tensor:
            if values.ndim == 1:
                return values + other.written
            return values + other.history * other.written[:, None]

    own.gather(Two())
    assert own.history.flatten().tolist() == [1.0, 3.0, 2.0, 9.0]
    assert not own.written.any()


def test_views_of_an_image_share_the_mask_of_drop_path() -> None:
    noisy: PassNote[int] = PassNote()
    path = DropPath(0.5)
    path.__class__ = SharedDropPath
    path.share(noisy)
    path.train()
    with seeded(0, CPU), noisy.saying(2):
        first, second = path(torch.ones(64, 3)).chunk(2)
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, float(first.max())}
    assert float(first.mean()) == pytest.approx(1.0)
    with noisy.saying(2):
        assert torch.equal(path.eval()(torch.ones(4, 3)), torch.ones(4, 3))


@pytest.mark.parametrize("method", ["pace_adapter", "adaptformer"])
def test_blocks_that_compute_again_have_the_same_noise(method: str) -> None:
    found = []
    for wanted in (False, True):
        tuned = _moved(method, "vit")
        parameters = list(tuned.trainable.values())
        objective = objective_of(tuned, PACE, (4, 7))
        fittable = Fittable(tuned.model, parameters, tuned.train, RAW, objective=objective)
        tuned.train("train")  # drop-path and dropout act
        with seeded(0, CPU), recomputing(tuned.model, wanted):
            Objective(fittable, 0.0)(images("vit", 4), torch.arange(4))[0].backward()
        found.append([p.grad for p in parameters])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_a_step_costs_twice_as_much() -> None:
    costs = [
        step_cost(StepPlan(start("adapter", "vit"), recipe, RAW, 7), 4, CPU).training_gflops
        for recipe in (Recipe(batch_size=4), dataclasses.replace(PACE, batch_size=4))
    ]
    assert costs[1] == pytest.approx(2 * costs[0])


# ------------------------------------------------------------------- runs


@pytest.mark.parametrize("consistency", ["pace", "lazy", "fast"])
def test_a_run_trains_and_merges(consistency: str, tmp_path: Path) -> None:
    recipe = {"consistency": consistency, "epochs": 2}
    spec = tiny_spec("pace_adapter", recipe=recipe)
    spec = dataclasses.replace(spec, precision=Precision.FLOAT32)
    with short_timings():
        record = experiment.run(spec, ResultsStore(tmp_path))
    assert record.status is Status.OK
    assert record.merge is not None and record.merge["max_logit_difference"] < 1e-3
    assert record.spec["recipe"]["consistency"] == consistency


@pytest.mark.parametrize("method", ["vpt_deep", "bias", "dyt"])
def test_methods_that_add_nothing_or_have_an_objective_are_refused_in_one_line(
    method: str,
) -> None:
    has = "has an objective of its own" if method == "dyt" else "adds nothing"
    with pytest.raises(Unsupported, match=f"{method} {has}.* Use recipe.consistency=none") as error:
        objective_of(start(method, "vit"), PACE, (2, 7))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["linear", "full", "knn"])
def test_methods_without_an_adapter_are_refused_before_anything_is_loaded(method: str) -> None:
    with pytest.raises(ConfigError, match=f"method={method} adds nothing"):
        experiment.check(tiny_spec(method, recipe={"consistency": "pace"}), "cpu", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consistency": "slow"}, "Unknown recipe.consistency 'slow'"),
        ({"consistency_noise": 2.0}, "means nothing to recipe.consistency=none. Use recipe."),
        ({"consistency": "pace", "consistency_interval": 3}, "Use recipe.consistency=lazy"),
        ({"consistency": "pace", "consistency_weight": -1.0}, "is negative"),
        ({"consistency": "fast", "mixup": 0.5}, "compares an image with itself an epoch ago"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_recipe(Recipe(**change))


def test_a_recipe_without_it_is_what_it_was() -> None:
    assert not [key for key in Recipe().canonical() if "consistency" in key]
    assert Recipe(consistency="pace").canonical()["consistency"] == "pace"
    assert PACE.alone() == Recipe()
