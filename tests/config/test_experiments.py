"""Experiments: what the head of a file says is what its body runs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.tiny_runs import compose

from peftbench.config.choices import catalogue, choices, config_dir, method_of
from peftbench.methods import METHODS
from peftbench.spec import DatasetSpec
from peftbench.sweep import experiments
from peftbench.training.optim import check_recipe

ROOT = config_dir().parent
sys.path.insert(0, str(ROOT / "tools"))

import estimate_hours  # noqa: E402 - beside the tools

FILES = sorted((ROOT / "experiments").glob("*.yaml"))
# methods, backbones, data sets, shots and seeds of each: the papers' rows, columns and repeats
SHAPES = {
    "demo": (8, 1, 2, 1, 1),
    "mini": (20, 1, 4, 1, 3),
    "peftbench_vtab": (20, 1, 19, 1, 3),
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
def test_an_experiment_is_what_its_head_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    card, sweep = experiments.read(path), experiments.sweep(path)
    assert card.command in (f"peftbench run -m experiments={path.stem}", "make demo", "make sweep")
    assert card.question.endswith("?") and card.table

    # the product, counted without composing it
    assert set(sweep.axes) <= set(AXES)
    sizes = tuple(len(sweep.axes.get(axis, ("one",))) for axis in AXES)
    assert sizes == SHAPES[path.stem]
    assert all(len(set(values)) == len(values) for values in sweep.axes.values())
    assert card.runs == len(sweep) == math.prod(sizes)
    assert card.trials == sweep.trials
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_hours_of_an_experiment_are_the_estimate(path: Path) -> None:
    card = experiments.read(path)
    if card.gpu_hours == "0":
        return
    both, alone = estimate_hours.hours(experiments.sweep(path))
    assert card.gpu_hours == estimate_hours.rounded(both)
    if card.trials:
        assert f"of which {estimate_hours.rounded(alone)} are" in card.told["GPU hours"]


def test_an_estimate_is_epochs_times_images_times_passes() -> None:
    """FacT-TT on dtd: 100 epochs of 1,000 images at two passes, ten looks at 1,880 test images."""
    sweep = experiments.sweep(ROOT / "experiments" / "fact_vtab.yaml")
    run = estimate_hours.Run(sweep, {"method": "fact_tt", "dataset": "vtab/dtd"})
    images = 100 * 1_000 * 2 + 10 * 1_880
    assert run.seconds(final=True) == pytest.approx(20 + images * 17.6e9 / 50e12)
    trial = 100 * 800 * 2 + 200
    assert run.seconds(final=False) == pytest.approx(20 + trial * 17.6e9 / 50e12)


def test_our_own_experiments_leave_no_method_out() -> None:
    built_in = {n for n in METHODS if METHODS[n].__module__.startswith("peftbench.methods")}
    for name in ("mini", "peftbench_vtab"):
        sweep = experiments.sweep(ROOT / "experiments" / f"{name}.yaml")
        assert set(sweep.axes["method"]) == built_in
