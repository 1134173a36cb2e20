"""`import peftbench as pb`: tune, merge, store, and share one backbone in memory."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import tuners
from support.rounding import assert_alike
from support.tiny_backbones import NUM_CLASSES, TINY, fill, fresh, images, randomise
from support.tiny_runs import digits, short_timings, tiny_spec
from timm.models import VisionTransformer
from torch import Tensor, nn

import peftbench as pb
from peftbench.errors import ConfigError, NotMergeable, UnknownName, Unsupported, WeightsError
from peftbench.methods import METHODS, discover
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.export import export

discover()

CLASSES = 7


def tuned_on(backbone: str, method: str, num_classes: int | None = CLASSES, **options: Any) -> Any:
    size = TINY[backbone].image_size
    return pb.tune(fresh(backbone), method, num_classes, image_size=size, **options)


def step(tuned: pb.TunedModel, x: Tensor) -> None:
    """One step on everything that trains, in the modes of training."""
    optimizer = torch.optim.SGD(pb.trainable(tuned.train()), lr=0.1)
    F.cross_entropy(tuned(x), torch.arange(len(x)) % NUM_CLASSES).backward()
    optimizer.step()


# ------------------------------------------------------------------- importing


def printed(code: str) -> str:
    """What a fresh process that runs the code prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_neither_torch_nor_timm() -> None:
    code = (
        "import sys, peftbench\n"
        "print({'tune', 'load', 'list_methods'} <= set(dir(peftbench)))\n"
        "print(sorted({'torch', 'timm', 'hydra'} & set(sys.modules)))"
    )
    assert printed(code) == "True\n[]\n"


def test_the_first_thing_of_a_process_may_be_to_tune() -> None:
    """Nothing before it has found the methods."""
    code = (
        "import timm, peftbench\n"
        "model = timm.create_model('resnet10t', num_classes=3)\n"
        "print(type(peftbench.tune(model, 'norm')).__name__)"
    )
    assert printed(code) == "TunedModel\n"


def test_methods_are_listed_by_name() -> None:
    assert pb.list_methods() == list(METHODS)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        _ = pb.tuen  # type: ignore[attr-defined]


# ------------------------------------------------------------------- tuning


def test_a_new_classifier_has_the_classes_asked_for() -> None:
    tuned = tuned_on("swin", "bias")
    assert tuned(images("swin", 2)).shape == (2, CLASSES)


def test_without_a_number_of_classes_the_classifier_is_kept_and_trains() -> None:
    tuned, x = tuned_on("vit", "lora", None), images("vit", 4)
    assert_alike(tuned.eval()(x), fresh("vit")(x))
    kept = fresh("vit").head
    assert torch.equal(tuned.tuned.head_params["head.weight"], kept.weight)
    step(tuned, x)
    assert not torch.equal(tuned.tuned.head_params["head.weight"], kept.weight)


def test_a_method_with_a_head_of_its_own_keeps_no_classifier() -> None:
    with pytest.raises(ConfigError, match=r"^method=mlp makes a head of its own\. Give num_cl"):
        tuned_on("vit", "mlp", None)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"]
)
def test_a_model_without_a_classifier_gets_one_if_the_classes_are_given(name: str) -> None:
    with torch.device("meta"):
        bare = timm.create_model(name, num_classes=0)
    kinds = [type(m) for m in bare.modules()]
    with pytest.raises(ConfigError, match=r"built with num_classes=0.* Give num_classes\.$"):
        pb.tune(bare, "bias")
    assert [type(m) for m in bare.modules()] == kinds
    tuned = pb.tune(bare, "bias", CLASSES)  # 224 pixels, which timm knows
    assert tuned(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, CLASSES)
    assert [type(m) for m in pb.detach(tuned).modules()] == kinds


def test_training_mode_reaches_what_trains_and_nothing_else() -> None:
    tuned = tuned_on("resnet_basic", "partial")
    assert tuned.training and tuned.model.layer4[1].training and tuned.model.fc.training
    assert not tuned.model.layer1.training and not tuned.model.training
    assert not any(m.training for m in tuned.eval().modules())
    assert tuned.train() is tuned and tuned.model.layer4[1].bn1.training


def test_what_an_optimiser_gets_is_what_requires_gradients() -> None:
    tuned = tuned_on("vit", "lora", rank=2)
    assert tuned.tuned.method == METHODS["lora"](rank=2)
    wanted = [p for p in tuned.parameters() if p.requires_grad]
    assert {id(p) for p in pb.trainable(tuned)} == {id(p) for p in wanted}
    assert len(pb.trainable(tuned)) == len(wanted)


def test_a_tuned_model_says_what_it_is() -> None:
    text = repr(tuned_on("vit", "bias"))
    assert text.startswith("TunedModel(Bias(") and "on VisionTransformer" in text
    # 11 L D + 2 D with L = 2, D = 24
    assert "training 0 parameters of the method, 576 of the backbone's 16,104" in text
    assert text.endswith("and 175 of the head)")


def test_the_seed_decides_the_new_tensors() -> None:
    states = [tuned_on("vit", "lora", seed=seed).tuned.state() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: pb.tune(m, "loar"), UnknownName, r"^Unknown method 'loar'\. Did you mean: lora"),
        (lambda m: pb.tune(m, "lora", rnk=2), UnknownName, r"of lora: 'rnk'\. Did you mean: rank"),
        (lambda m: pb.tune(m, "lora", rank="x"), ConfigError, r"^method=lora: rank: .*'x'.*\.$"),
        (lambda m: pb.tune(m, "lora", rank=0), ConfigError, r"^method=lora: rank=0"),
        (lambda m: pb.tune(m, "lora", image_size=20), ConfigError, r"^image_size=20 does not suit"),
        (lambda m: pb.tune(m, "vpt_pad"), Unsupported, "vpt_pad"),
        (lambda m: pb.tune(nn.ReLU(), "bias", image_size=8), Unsupported, "no single classifier"),
        (lambda m: pb.tune(fresh("convnext"), "bias"), ConfigError, r"Give image_size\.$"),
    ],
)
def test_a_refused_call_says_why_and_leaves_the_model_as_it_was(
    call: Callable[[nn.Module], object], kind: type[Exception], message: str
) -> None:
    model = fresh("vit").train()
    before = told(model)
    with pytest.raises(kind, match=message):
        call(model)
    assert told(model) == before
    assert pb.detach(pb.tune(model, "lora")) is model  # it carries nothing


# ------------------------------------------------------------------- merging


MERGEABLE = [n for n in METHODS if METHODS[n].card.mergeable and not METHODS[n].card.solved]
ARCHITECTURE: dict[str, Any] = dict(
    model_name="vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3
)


@pytest.mark.parametrize("method", MERGEABLE)
def test_a_merged_model_is_what_timm_builds(method: str) -> None:
    backbone = randomise(timm.create_model(**ARCHITECTURE, num_classes=NUM_CLASSES), seed=0)
    tuned = pb.tune(backbone, method, CLASSES, **tuners.options(method, 8, 3, 16, 16))
    fill(tuned.tuned.trainable, seed=1)
    tuned.double().eval()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    expected = tuned(x)
    merged = pb.merge(tuned)
    assert type(merged) is VisionTransformer
    plain = timm.create_model(**ARCHITECTURE, num_classes=CLASSES).double().eval()
    plain.load_state_dict(merged.state_dict(), strict=True)
    exact = 1e-6 if method in tuners.FOLDED_IN_FLOAT32 else 1e-10
    scale = expected.abs().max().item()
    for model in (plain, merged, tuned):  # the tuned model stays as it was
        torch.testing.assert_close(model(x), expected, rtol=0, atol=exact * max(1, scale))


@pytest.mark.parametrize("method", ["vpt_deep", "mlp", "sidetune"])
def test_what_cannot_be_merged_says_so(method: str) -> None:
    with pytest.raises(NotMergeable, match=method):
        pb.merge(tuned_on("vit", method))


# ------------------------------------------------------------------- detaching


def told(model: nn.Module) -> list[object]:
    """Everything that `detach` promises to restore, values as bytes."""
    modules = [(n, id(m), type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()]
    tensors = [
        (n, id(t), t.dtype, t.requires_grad, t.grad is None, t.detach().numpy().tobytes())
        for n, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return [*modules, *tensors, getattr(model, "num_classes", None)]


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("vit", "full"),
        ("vit", "bias"),
        ("vit", "lora"),
        ("vit", "vpt_deep"),
        ("vit", "sidetune"),
        ("beit", "lora"),  # parametrized weights
        ("swin", "bias"),
        ("resnet_basic", "full"),
        ("resnet_basic", "partial"),  # running statistics of the trained blocks
    ],
)
@pytest.mark.parametrize("classes", [CLASSES, None])
def test_detaching_gives_back_the_backbone_bit_for_bit(
    backbone: str, method: str, classes: int | None
) -> None:
    model, x = fresh(backbone).train(), images(backbone, 4)
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    before = told(model)
    tuned = pb.tune(model, method, classes, image_size=TINY[backbone].image_size)
    step(tuned, x)
    assert told(model) != before
    assert pb.detach(tuned) is model
    assert told(model) == before
    assert repr(tuned) == "TunedModel(detached)"
    for use in (lambda: tuned(x), lambda: pb.detach(tuned), lambda: pb.trainable(tuned)):
        with pytest.raises(ConfigError, match=r"detached from its backbone\. Attach the task"):
            use()


def test_detaching_undoes_a_conversion_of_the_tuned_model() -> None:
    model = fresh("resnet_basic")
    before = told(model)
    tuned = pb.tune(model, "partial", CLASSES, image_size=32).double()
    step(tuned, images("resnet_basic", 4).double())
    pb.detach(tuned)
    assert told(model) == before


def test_a_deep_copy_is_detached_by_itself() -> None:
    tuned = tuned_on("vit", "lora")
    twin = copy.deepcopy(tuned)
    bare = pb.detach(twin)
    assert_alike(bare(images("vit", 2)), fresh("vit")(images("vit", 2)))
    assert tuned(images("vit", 2)).shape == (2, CLASSES)


def test_a_second_method_needs_the_first_one_detached() -> None:
    model = fresh("vit")
    tuned = pb.tune(model, "lora")
    with pytest.raises(ConfigError, match=r"^this VisionTransformer carries .* peftbench\.detach"):
        pb.tune(model, "bias")
    pb.tune(pb.detach(tuned), "bias")


# ------------------------------------------------------------------- exported tasks


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folders of two tasks on one backbone, and of a merged one."""
    root = tmp_path_factory.mktemp("exported")
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(root / "cache"))
        store = ResultsStore(root / "results")
        folders = {}
        for method in ("lora", "bias"):
            spec = tiny_spec(method, dataset=digits(12), recipe={"lr": 1e-2})
            record = experiment.run(spec, store)
            folders[method] = export(record.run_id, store.root, root / method)
            folders[f"{method} merged"] = export(
                record.run_id, store.root, root / f"{method}-merged", merged=True
            )
        yield folders


def vit_mini() -> nn.Module:
    from peftbench.backbones.load import load
    from peftbench.spec import BackboneSpec

    return load(BackboneSpec("vit_mini", image_size=12), 3).model


X = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_two_tasks_share_one_backbone(exported: dict[str, Path]) -> None:
    backbone = vit_mini()
    before = told(backbone)
    for method in ("lora", "bias", "lora"):
        alone = pb.load(exported[method])
        tuned = pb.attach(backbone, exported[method])
        assert not tuned.training and tuned.tuned.method.name == method
        assert torch.equal(tuned(X), alone(X))
        assert tuned.card is not None and tuned(X).shape == (5, len(tuned.card["classes"]))
        with pytest.raises(ConfigError, match="carries a tuning method already"):
            pb.attach(backbone, exported["bias"])
        assert pb.detach(tuned) is backbone
        assert told(backbone) == before


def test_a_task_goes_onto_a_backbone_without_a_classifier(exported: dict[str, Path]) -> None:
    backbone = vit_mini()
    backbone.reset_classifier(0)
    tuned = pb.attach(backbone, exported["bias"])
    assert torch.equal(tuned(X), pb.load(exported["bias"])(X))
    assert isinstance(pb.detach(tuned).get_classifier(), nn.Identity)


@pytest.mark.parametrize("method", ["lora", "bias"])
def test_a_merged_folder_gives_the_same_logits(exported: dict[str, Path], method: str) -> None:
    task, merged = pb.load(exported[method]), pb.load(exported[f"{method} merged"])
    assert type(merged) is VisionTransformer and not merged.training
    assert_alike(merged(X), task(X))
    again = pb.merge(task)
    torch.testing.assert_close(
        merged.double()(X.double()), again.double()(X.double()), rtol=0, atol=1e-10
    )


def test_a_task_of_another_backbone_is_refused(exported: dict[str, Path]) -> None:
    backbone = randomise(vit_mini(), seed=0)
    before = told(backbone)
    with pytest.raises(WeightsError, match=r"was tuned on vit_mini with weights [0-9a-f]{12}"):
        pb.attach(backbone, exported["lora"])
    assert told(backbone) == before
    pb.detach(pb.tune(backbone, "bias"))


def test_a_folder_that_is_no_task_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"card\.json does not exist\. Give a folder"):
        pb.load(tmp_path)
    for name in ("lora", "lora merged"):
        broken = tmp_path / name
        shutil.copytree(exported[name], broken)
        (weights,) = broken.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(WeightsError, match=weights.name):
            pb.load(broken)
        (broken / "card.json").write_text("{")
        with pytest.raises(WeightsError, match="not a readable card"):
            pb.load(broken)
        (broken / "card.json").write_text("{}")
        with pytest.raises(WeightsError, match="lacks classes, provenance, spec"):
            pb.load(broken)


def test_a_task_of_another_version_of_its_method_is_refused(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(exported["lora"], folder)
    card = json.loads((folder / "card.json").read_text())
    card["spec"]["method"]["version"] = 99
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"version 99 of lora.* Install peftbench "):
        pb.load(folder)
