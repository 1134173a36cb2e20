"""Data sets as configured: what is published of them, and that each goes with every recipe."""

from __future__ import annotations

import dataclasses

import hydra
import pytest
import yaml
from omegaconf import OmegaConf
from support.tiny_runs import compose

from peftbench.config.build import dataset_specs
from peftbench.config.choices import config_dir
from peftbench.config.hydra import _writable
from peftbench.data import READERS
from peftbench.spec import DatasetSpec, Recipe
from peftbench.sweep.launchers.register import register

CONF = config_dir()
FILES = sorted((CONF / "dataset").rglob("*.yaml"))

# VTAB-1k: classes and test images (VTAB paper; VPT, data table). 800 images train, 200 are val.
VTAB = {
    "natural": {
        "cifar100": (100, 10_000),
        "caltech101": (102, 6_084),
        "dtd": (47, 1_880),
        "flowers102": (102, 6_149),
        "pets": (37, 3_669),
        "svhn": (10, 26_032),
        "sun397": (397, 21_750),
    },
    "specialized": {
        "patch_camelyon": (2, 32_768),
        "eurosat": (10, 5_400),
        "resisc45": (45, 6_300),
        "retinopathy": (5, 42_670),
    },
    "structured": {
        "clevr_count": (8, 15_000),
        "clevr_distance": (6, 15_000),
        "dmlab": (6, 22_735),
        "kitti": (4, 711),
        "dsprites_location": (16, 73_728),
        "dsprites_orientation": (16, 73_728),
        "smallnorb_azimuth": (18, 12_150),
        "smallnorb_elevation": (9, 12_150),
    },
}
# classes, train, val, test: VPT, table 8; NOAH, data/few-shot; the authors of CIFAR and ImageNet,
# whose val is cut from train here; SSF, utils/
OTHERS = {
    "fgvc/cub200": (200, 5_394, 600, 5_794),
    "fgvc/nabirds": (555, 21_536, 2_393, 24_633),
    "fgvc/oxford_flowers": (102, 1_020, 1_020, 6_149),
    "fgvc/stanford_dogs": (120, 10_800, 1_200, 8_580),
    "fgvc/stanford_cars": (196, 7_329, 815, 8_041),
    "fewshot/fgvc_aircraft": (100, None, 3_333, 3_333),
    "fewshot/food101": (101, None, 20_200, 30_300),
    "fewshot/flowers102": (102, None, 1_633, 2_463),
    "fewshot/pets": (37, None, 736, 3_669),
    "fewshot/stanford_cars": (196, None, 1_635, 8_041),
    "cifar100": (100, 50_000 - 5_000, 5_000, 10_000),
    "imagenet1k": (1_000, 1_281_167 - 10_000, 10_000, 50_000),
    "imagenet_a": (200, None, None, 7_500),
    "imagenet_r": (200, None, None, 30_000),
    "imagenet_c": (1_000, None, None, 50_000),
    "imagenet_sketch": (1_000, None, None, 50_889),
    "imagenet_v2": (1_000, None, None, 10_000),
}
SUITES = {"vtab": "vtab1k", "fgvc": "fgvc", "fewshot": "fewshot", "cifar100": "cifar100_full"}


def test_classes_and_sizes_are_the_published_ones() -> None:
    expected = {
        f"vtab/{name}": (group, (classes, 800, 200, test))
        for group, tasks in VTAB.items()
        for name, (classes, test) in tasks.items()
    }
    expected |= {name: ("", sizes) for name, sizes in OTHERS.items()}
    specs = {n: s for n, s in dataset_specs("here").items() if s.reader in ("public", "shift")}
    assert specs.keys() == expected.keys()
    for name, spec in specs.items():
        facts = spec.facts
        group, sizes = expected[name]
        assert (facts.classes, facts.train, facts.val, facts.test) == sizes, name
        assert (spec.name, spec.group, spec.root, spec.suite_version) == (name, group, "here", 1)
        assert spec.suite == SUITES.get(name.partition("/")[0], spec.suite)
    # 19 tasks with 940 classes together
    assert sum(classes for group in VTAB.values() for classes, _ in group.values()) == 940


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_data_set_sets_its_own_keys_only_so_that_it_goes_with_every_recipe(path) -> None:
    """Neither file of the two groups reaches into the other, so any two of them compose."""
    name = path.relative_to(CONF / "dataset").with_suffix("").as_posix()
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# peftbench run ")
    assert name in text.splitlines()[0]
    assert "@package" not in text
    entry = yaml.safe_load(text)
    assert entry["name"] == name
    assert entry["reader"] in READERS
    schema = _writable(DatasetSpec)
    assert set(entry) <= {f.name for f in dataclasses.fields(DatasetSpec)}
    merged = OmegaConf.merge(schema, entry)  # every value has the type of its field
    assert merged.name == name


def test_a_recipe_sets_its_own_keys_only() -> None:
    known = {f.name for f in dataclasses.fields(Recipe)}
    for path in sorted((CONF / "recipe").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert "@package" not in text
        assert set(yaml.safe_load(text)) <= known


RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


@pytest.mark.slow  # seconds for each recipe; the two tests above say why it cannot fail
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_data_set_composes_with_every_recipe(recipe: str) -> None:
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for path in FILES:
            name = path.relative_to(CONF / "dataset").with_suffix("").as_posix()
            own = {"folder": ["dataset.root=images"], "hf": ["dataset.hub=a/b"]}.get(name, [])
            cfg = hydra.compose(
                "config", [f"dataset={name}", f"recipe={recipe}", "method=linear", "seed=0", *own]
            )
            dataset, chosen = (OmegaConf.to_object(cfg[key]) for key in ("dataset", "recipe"))
            assert isinstance(dataset, DatasetSpec) and isinstance(chosen, Recipe)
            assert (dataset.name, chosen.name) == (name, recipe)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # a suite of each kind under the recipe of another paper
        (
            ["dataset=vtab/dtd", "recipe=ssf", "data_dir=/all"],
            {"dataset.root": "/all", "recipe.name": "ssf", "dataset.facts.classes": 47},
        ),
        (
            ["dataset=fewshot/pets", "recipe=fact", "seed=2", "dataset.shots=4"],
            {"dataset.shot_seed": 2, "dataset.shots": 4, "dataset.final_trains_on": "train"},
        ),
        (
            ["dataset=fgvc/cub200", "protocol=vpt", "method=full"],
            {
                "dataset.final_trains_on": "train",
                "preprocessing.resize": "crop",
                "preprocessing.interpolation": "bilinear",
                "preprocessing.train_size": None,
                "recipe.augmentation": "random_crop_flip",
            },
        ),
        (
            ["dataset=fgvc/cub200", "protocol=vpetl"],
            {"preprocessing.interpolation": "bilinear", "recipe.augmentation": "random_crop_flip"},
        ),
        (
            ["dataset=imagenet1k", "dataset.shifts=[imagenet_a]", "recipe=short"],
            {
                "dataset.shifts": ["imagenet_a"],
                "recipe.augmentation": "crop_flip",
                "preprocessing.train_size": 256,
            },
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_a_composed_data_set_follows_its_suite_and_the_command_line(
    overrides: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEFTBENCH_DATA", raising=False)
    cfg = compose(*overrides)
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    spec = OmegaConf.to_object(cfg.dataset)
    assert isinstance(spec, DatasetSpec)
    assert hash(spec)


def test_the_environment_names_the_folder_for_all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTBENCH_DATA", "/from/the/environment")
    assert compose("dataset=cifar100").dataset.root == "/from/the/environment"
