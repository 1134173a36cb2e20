"""Jobs that share most of their composition, against Hydra, which composes each by itself."""

from __future__ import annotations

from collections.abc import Iterator

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


def test_jobs_that_differ_in_values_are_composed_once(
    hydra_itself: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, sweep = hydra_itself
    loads: list[list[str]] = []
    load = loader.load_sweep_config

    def counted(master: DictConfig, overrides: list[str]) -> DictConfig:
        loads.append(overrides)
        return load(master, overrides)

    monkeypatch.setattr(loader, "load_sweep_config", counted)
    compose = Composer(loader, sweep)
    for values in SHARING:
        composed = compose((*values, *CHOICES))
        composed.seed = 99  # does not reach the next job
    assert loads == [list(CHOICES)]
    assert compose(CHOICES).seed == 0
