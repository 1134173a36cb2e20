"""Experiments: a file is the product that it means, and its cost is computed from it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.tiny_runs import compose

from peftbench.config.choices import catalogue, choices, config_dir, method_of
from peftbench.methods import METHODS, discover
from peftbench.spec import DatasetSpec
from peftbench.sweep import experiments, hours
from peftbench.training.recipe import check_recipe

ROOT = config_dir().parent
FILES = sorted((ROOT / "experiments").glob("*.yaml"))
discover()
# our own; the tuners of peft need a package that not everybody has
BUILT_IN = {
    n
    for n in METHODS
    if METHODS[n].__module__.startswith("peftbench.methods.")
    and not n.startswith("hf_")
    and n != "compose"
}
# methods, backbones, data sets, shots and seeds of each: the papers' rows, columns and repeats
SHAPES = {
    "demo": (8, 1, 2, 1, 1),
    "mini": (len(BUILT_IN), 1, 4, 1, 3),
    "peftbench_vtab": (len(BUILT_IN), 1, 19, 1, 3),
    "vpt_table1": (14, 1, 24, 1, 5),
    "vpt_swin": (7, 1, 19, 1, 5),
    "vpt_backbone_scale": (5, 3, 19, 1, 5),
    "vpt_convnets": (6, 2, 19, 1, 5),
    "vpt_ssl": (7, 2, 19, 1, 5),
    "ssf_vtab_fgvc": (7, 1, 24, 1, 1),
    "ssf_robustness": (7, 1, 1, 1, 1),
    "fact_vtab": (10, 1, 19, 1, 1),
    "fact_fewshot": (6, 1, 5, 5, 3),
}
AXES = ("method", "backbone", "dataset", "dataset.shots", "seed")


def test_every_question_has_its_file() -> None:
    assert {path.stem for path in FILES} == set(SHAPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_is_the_product_of_its_axes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    command = rf"peftbench run -m experiments={path.stem}|make demo|make sweep"
    assert re.match(rf"# @package _global_\n# ({command})\n", text)
    sweep = experiments.sweep(path)
    card = sweep.card
    assert card.question.endswith("?") and card.table

    # the product, counted without composing it
    assert set(sweep.axes) <= set(AXES)
    sizes = tuple(len(sweep.axes.get(axis, ("one",))) for axis in AXES)
    assert sizes == SHAPES[path.stem]
    assert all(len(set(values)) == len(values) for values in sweep.axes.values())
    assert len(sweep) == math.prod(sizes)
    for axis in ("method", "backbone", "dataset"):
        assert set(sweep.axes.get(axis, ())) <= choices(axis)
    protocol = sweep.choice("protocol")
    if protocol and "dataset.shots" not in sweep.axes:
        declared = catalogue("protocol")[protocol]["seeds"]
        assert list(map(int, sweep.axes["seed"])) == declared

    # one job of it, from the far end of each axis
    far = [f"{axis}={values[-1]}" for axis, values in sweep.axes.items()]
    cfg = compose(f"experiments={path.stem}", *far)
    method = OmegaConf.to_object(cfg.method)
    assert method.name == method_of(sweep.axes["method"][-1])
    assert cfg.phase == "final"
    check_recipe(OmegaConf.to_object(cfg.recipe))
    assert isinstance(OmegaConf.to_object(cfg.dataset), DatasetSpec)
    assert cfg.protocol == (protocol or "peftbench")
    # what the file states is what is in force
    stated = {k: v for k, v in sweep.body.items() if k not in ("defaults", "hydra")}
    assert OmegaConf.merge(cfg, stated) == cfg


# trials on val, and GPU hours of all and of the final runs, where no glob makes them grow
COSTS = {
    "vpt_table1": (18432, "1100", "87"),
    "vpt_swin": (8056, "190", "16"),
    "vpt_backbone_scale": (30552, "3100", "170"),
    "vpt_convnets": (13528, "200", "18"),
    "vpt_ssl": (22040, "580", "37"),
    "ssf_vtab_fgvc": (0, "46", "46"),
    "ssf_robustness": (0, "80", "80"),
    "fact_vtab": (0, "8.8", "8.8"),
    "fact_fewshot": (750, "28", "13"),
}


@pytest.mark.parametrize("name", COSTS)
def test_trials_and_hours_of_an_experiment_are_computed(name: str) -> None:
    sweep = experiments.sweep(ROOT / "experiments" / f"{name}.yaml")
    assert (sweep.trials, *map(hours.rounded, hours.hours(sweep))) == COSTS[name]


def test_every_experiment_states_its_hours_or_has_an_estimate() -> None:
    for path in FILES:
        stated = experiments.sweep(path).card.gpu_hours
        assert stated == "0" or hours.hours(experiments.sweep(path))[0] > 1


def test_a_file_that_says_nothing_of_itself_is_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\nexperiments:\nseed: 5\n")
    assert experiments.sweep(path).card == experiments.Experiment("mine", "", "", "")
    path.write_text('experiments: {question: "why?", gpu_hours: 3}\n')
    assert experiments.sweep(path).card == experiments.Experiment("mine", "why?", "", "3")


def test_an_estimate_is_epochs_times_images_times_passes() -> None:
    """FacT-TT on dtd: 100 epochs of 1,000 images at two passes, ten looks at 1,880 test images."""
    sweep = experiments.sweep(ROOT / "experiments" / "fact_vtab.yaml")
    run = hours.ExpectedRun(sweep, {"method": "fact_tt", "dataset": "vtab/dtd"}, hours.Known.now())
    images = 100 * 1_000 * 2 + 10 * 1_880
    assert run.seconds(final=True) == pytest.approx(20 + images * 17.6e9 / 50e12)
    trial = 100 * 800 * 2 + 200
    assert run.seconds(final=False) == pytest.approx(20 + trial * 17.6e9 / 50e12)


def test_our_own_experiments_leave_no_method_out() -> None:
    for name in ("mini", "peftbench_vtab"):
        sweep = experiments.sweep(ROOT / "experiments" / f"{name}.yaml")
        assert set(sweep.axes["method"]) == BUILT_IN
        # eight trials for each method and data set, in the experiment that searches
        assert sweep.trials == (8 * len(BUILT_IN) * 19 if name == "peftbench_vtab" else 0)
