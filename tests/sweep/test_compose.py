"""Jobs that share most of their composition, against Hydra, which composes each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from peftbench.config.choices import config_dir
from peftbench.sweep.compose import Composer
from peftbench.sweep.launchers.register import register

CHOICES = ("method=lora", "recipe=vpetl", "dataset=mini/digits")

# values behind choices that they all share
SHARING = (
    (
        *("seed='1'", "method.rank=4", "method.targets=[k,v]", "micro_batch=null", "phase=tune"),
        *("recipe.lr=1e-2", "recipe.lr=1e-3"),  # the last one counts
        *("recipe.epochs=${seed}", "results_dir='a b/${oc.env:HOME}'", "tuner.name=grid"),
        'tuning=\'{"tuner": "grid, of one"}\'',
    ),
    ("recipe={lr: 1e-2, epochs: 3}", "recipe.lr=1e-3"),  # a mapping is no choice of a file
    ("recipe.lr=1e-3", "recipe={lr: 1e-2, epochs: 3}"),
)
# another choice, an addition behind a value, and what is refused
ALONE = (
    ("experiments=demo", "seed=1"),
    ("seed=4", "++seed=3"),
    ("sede=1",),
    ("method.rank=many",),
)


@pytest.fixture(scope="module")
def hydra_itself() -> Iterator[tuple[ConfigLoader, DictConfig]]:
    """What composes, and the configuration of the sweep."""
    register()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        whole = hydra.compose("config", return_hydra_config=True)
        yield GlobalHydra.instance().config_loader(), whole


def by_hydra(loader: ConfigLoader, sweep: DictConfig, overrides: tuple[str, ...]) -> DictConfig:
    composed = loader.load_sweep_config(sweep, list(overrides))
    with open_dict(composed):
        del composed["hydra"]
    return composed


def test_a_job_is_composed_as_hydra_does_or_refused_in_its_words(
    hydra_itself: tuple[ConfigLoader, DictConfig],
) -> None:
    loader, sweep = hydra_itself
    compose = Composer(loader, sweep)
    for values in (*SHARING, *ALONE):
        overrides = (*CHOICES, *values)
        try:
            expected = by_hydra(loader, sweep, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            assert values in ALONE
            with pytest.raises(type(error)) as refused:
                compose(overrides)
            assert str(refused.value) == str(error)
            continue
        composed = compose(overrides)
        assert composed == expected, values
        assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected)  # before it is resolved
        assert OmegaConf.is_struct(composed)
        assert OmegaConf.get_type(composed.method) is OmegaConf.get_type(expected.method)


@pytest.fixture
def loads(
    hydra_itself: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """The overrides of each composition by Hydra."""
    loader, _ = hydra_itself
    found: list[list[str]] = []
    load = loader.load_sweep_config

    def counted(master: DictConfig, overrides: list[str]) -> DictConfig:
        found.append(overrides)
        return load(master, overrides)

    monkeypatch.setattr(loader, "load_sweep_config", counted)
    return found


def test_jobs_that_differ_in_values_are_composed_once(
    hydra_itself: tuple[ConfigLoader, DictConfig], loads: list[list[str]]
) -> None:
    loader, sweep = hydra_itself
    compose = Composer(loader, sweep)
    for values in SHARING:
        composed = compose((*values, *CHOICES))
        composed.seed = 99  # does not reach the next job
    assert loads == [list(CHOICES)]
    assert compose(CHOICES).seed == 0


SETS = ("vtab/dtd", "vtab/svhn", "fgvc/cub200", "fgvc/stanford_cars", "mini/digits")
METHODS = ("linear", "lora", "vpt_deep")
RECIPES = ("vpetl",)


def product(recipes: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (f"method={method}", f"recipe={recipe}", f"dataset={name}")
        for recipe in recipes
        for method in METHODS
        for name in SETS
    ]


def test_choices_are_put_together_of_parts_as_hydra_composes_them(
    hydra_itself: tuple[ConfigLoader, DictConfig], loads: list[list[str]]
) -> None:
    """Recipes that papers tuned by suite and method, with suites that change data sets."""
    loader, sweep = hydra_itself
    compose = Composer(loader, sweep)
    made = {choices: compose((*choices, "seed=2")) for choices in product(RECIPES)}
    # for each recipe: all sets for the first method, and one of three suites for the two others
    assert len(loads) == len(RECIPES) * (len(SETS) + 2 * 3)
    for choices, composed in made.items():
        expected = by_hydra(loader, sweep, (*choices, "seed=2"))
        assert composed == expected, choices
        assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected), choices
        assert OmegaConf.is_struct(composed)
        for part in ("dataset", "method", "recipe"):
            assert OmegaConf.get_type(composed[part]) is OmegaConf.get_type(expected[part])
        assert composed.dataset._get_parent() is composed


@pytest.mark.parametrize(
    "local",
    [
        ("method/odd.yaml", "# @package _global_\ndataset: {limit: 7}\n"),
        ("tuned/default/lora.yaml", "# @package _global_\ndataset: {limit: 7}\n"),
        ("recipe/odd.yaml", "defaults: [default, optional /suite@_global_: '${dataset}']\n"),
        ("dataset/odd.yaml", "defaults: [mini/digits, '/recipe: ${method}']\n"),
    ],
)
def test_where_parts_do_not_stand_apart_hydra_composes_every_choice(
    hydra_itself: tuple[ConfigLoader, DictConfig],
    loads: list[list[str]],
    local: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "conf" / local[0]
    path.parent.mkdir(parents=True)
    path.write_text(local[1])
    compose = Composer(*hydra_itself)
    every = [(f"method={m}", f"dataset={d}") for m in METHODS[:2] for d in SETS[:2]]
    for choices in every:
        compose(choices)
    assert loads == [list(choices) for choices in every]


def test_a_choice_that_changes_what_a_data_set_is_is_not_put_together(
    hydra_itself: tuple[ConfigLoader, DictConfig], loads: list[list[str]]
) -> None:
    """The protocol of V-PETL trains on other parts of these sets than that of VPT's recipe."""
    compose = Composer(*hydra_itself)
    every = [
        (f"protocol={protocol}", f"dataset={name}")
        for protocol in ("peftbench", "vpt")
        for name in SETS[2:4]
    ]
    values = [compose(choices).dataset.final_trains_on for choices in every]
    assert values == ["train+val", "train+val", "train", "train"]
    assert len(loads) == len(every)
