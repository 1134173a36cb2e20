"""Models that a function of the user's builds: `backbone.factory=MODULE:FUNCTION`."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_runs import QUICK, compose, tiny_spec

import peftbench as pb
from peftbench.backbones.load import load
from peftbench.config.build import build
from peftbench.errors import ConfigError, PeftbenchError, Unsupported, WeightsError
from peftbench.results.identity import run_id_of
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import BackboneSpec, RunSpec

# a model of nobody: no class of timm's, but its interface
MODULE = """
import torch
from torch import nn


class Pooled(nn.Module):
    def __init__(self, num_classes, drop_path_rate=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean((-2, -1)))


def pooled(num_classes):
    return Pooled(num_classes)


def with_path(num_classes, drop_path_rate):
    assert drop_path_rate == 0.25
    return Pooled(num_classes)


def fails(num_classes):
    raise OSError("no weights here\\nat all")


def number(num_classes):
    return num_classes


def headless(num_classes):
    return nn.Sequential(nn.Linear(2, 2))
"""
NAME = "factory_of_a_test"


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module, from which it can be imported."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / f"{NAME}.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(autouse=True)
def not_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[RunSpec, RunRecord, Path]:
    """A run, its record, and the folder of its files."""
    spec = build(compose("method=bias", *QUICK, f"backbone.factory={NAME}:pooled"))
    store = ResultsStore(place / "results")
    record = experiment.run(spec, store)
    return spec, record, store.artefacts(record)


def _spec(function: str, **options: object) -> BackboneSpec:
    return BackboneSpec(f"{NAME}:{function}", factory=f"{NAME}:{function}", **options)


def test_a_run_on_the_model_of_a_function_names_it_in_its_record(
    finished: tuple[RunSpec, RunRecord, Path],
) -> None:
    spec, record, _ = finished
    assert spec.backbone.name == spec.backbone.title == f"{NAME}:pooled"
    assert record.status is Status.OK, record.error
    assert record.spec["backbone"]["factory"] == f"{NAME}:pooled"
    assert record.provenance.backbone_source == f"{NAME}:pooled, seed 0"
    assert run_id_of(record.spec) == record.run_id == spec.run_id
    assert record.parameters.backbone == 3 * 3 * 3 * 8 + 8 + 2 * 8


def test_runs_without_a_function_declare_none_and_its_seed_counts() -> None:
    plain: RunSpec = tiny_spec()
    assert "factory" not in plain.identity()["backbone"]
    assert "factory" not in plain.describe()["backbone"]
    seeds = {
        dataclasses.replace(plain, backbone=_spec("pooled", seed=seed)).run_id for seed in (0, 1)
    }
    assert len(seeds | {plain.run_id}) == 3


def test_weights_are_drawn_from_the_seed_or_read_from_a_file(tmp_path: Path) -> None:
    loaded = load(_spec("pooled"), 3)
    assert loaded.image_size == 224
    assert loaded.sha256 == load(_spec("pooled"), 3).sha256
    assert loaded.sha256 != load(_spec("pooled", seed=1), 3).sha256
    state = {n: t for n, t in loaded.model.state_dict().items() if t.is_floating_point()}
    save_file({n: t + 1 for n, t in state.items()}, tmp_path / "mine.safetensors")
    read = load(_spec("pooled", checkpoint=str(tmp_path / "mine.safetensors")), 3)
    torch.testing.assert_close(read.model.state_dict()["stem.weight"], state["stem.weight"] + 1)
    assert load(_spec("pooled"), 3, device="meta").model.stem.weight.is_meta
    load(_spec("with_path", drop_path=0.25), 3)


def _line(error: pytest.ExceptionInfo[PeftbenchError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", r"cannot be imported \(AttributeError: .*PYTHONPATH"),
        ("fails", r"failed when called with num_classes=3 \(OSError: no weights here\)"),
        ("with_path", "missing 1 required positional argument"),
        ("number", "model is a int, not a module"),
    ],
)
def test_a_function_that_gives_no_model_is_refused_in_one_line(function: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.factory={NAME}:{function}.*{said}") as error:
        load(_spec(function), 3)
    _line(error)


def test_a_model_without_a_classifier_is_refused_as_anywhere() -> None:
    with pytest.raises(Unsupported, match="get_classifier"):
        load(_spec("headless"), 3)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="No module named 'no_such_module'") as error:
        load(BackboneSpec("x", factory="no_such_module:f"), 3)
    _line(error)


@pytest.mark.parametrize("text", ["models", "a b:c", "models:", ":f", "models.py:f()"])
def test_what_is_no_place_of_a_function_is_refused_before_anything_is_imported(text: str) -> None:
    with pytest.raises(ConfigError, match="is not MODULE:FUNCTION") as error:
        BackboneSpec("x", factory=text)
    _line(error)


def test_whose_weights_are_random_says_the_function_alone() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.pretrained=false") as error:
        build(compose(f"backbone.factory={NAME}:pooled", "backbone.pretrained=false"))
    _line(error)


def test_a_configuration_gives_the_function_a_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "backbone"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"factory: {NAME}:pooled\nimage_size: 32\n")
    spec = build(compose("backbone=mine"))
    assert (spec.backbone.title, spec.backbone.image_size) == ("mine", 32)
    assert NAME not in sys.modules  # what is only declared is not imported


def test_code_that_an_exported_folder_names_is_not_run(
    finished: tuple[RunSpec, RunRecord, Path],
) -> None:
    spec, _, folder = finished
    model = load(spec.backbone, 2).model
    sys.modules.pop(NAME)
    with pytest.raises(WeightsError, match=r"code that a folder names is not run.*attach") as error:
        pb.load(folder)
    _line(error)
    assert NAME not in sys.modules
    tuned = pb.attach(copy.deepcopy(model), folder)
    assert tuned(torch.zeros(2, 3, 12, 12)).shape == (2, 10)
