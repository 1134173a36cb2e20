"""The grids of papers as lists of overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.config.choices import config_dir, pinned
from peftbench.config.grids import Grid, find, named, read
from peftbench.errors import ConfigError, UnknownName
from peftbench.methods import METHODS
from peftbench.spec import Recipe
from peftbench.training.recipe import check_recipe

FILES = sorted((config_dir() / "grid").glob("*.yaml"))
GRIDS = [(path.stem, grid) for path in FILES for grid in read(path).values()]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    text = """
one:
  source: a paper, table 3
  methods: [lora, fact_tt]
  axes:
    method.rank: [4, 8]
    kind:
      - {recipe.optimizer: adamw, recipe.weight_decay: 0.01}
      - {recipe.optimizer: momentum, recipe.eps: null, method.targets: [q, v]}
"""
    (grid,) = read(write(tmp_path / "own.yaml", text)).values()
    assert (grid.name, grid.source) == ("one", "a paper, table 3")
    assert grid.methods == ("lora", "fact_tt")
    assert len(grid) == 4
    adamw = ["recipe.optimizer=adamw", "recipe.weight_decay=0.01"]
    momentum = ["recipe.optimizer=momentum", "recipe.eps=null", 'method.targets=["q","v"]']
    assert grid.overrides() == [
        ["method.rank=4", *adamw],
        ["method.rank=4", *momentum],
        ["method.rank=8", *adamw],
        ["method.rank=8", *momentum],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "holds a list, not keys with values"),
        ("", "holds no grids"),
        ("a: 3\n", "a must have exactly the keys source, methods, axes"),
        ("a: {source: s, methods: [lora]}\n", "must have exactly the keys"),
        ("a: {source: s, methods: [lora], axes: {recipe.lr: []}}\n", "none of them empty"),
        ("a: {source: s, methods: [lora], axes: {recipe.lr: 3}}\n", "must be lists of values"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path / "own.yaml", text))


@pytest.mark.parametrize(
    ("protocol", "method", "trials"),
    [
        # ten rates and four decays, times six lengths
        ("vpt", "linear", 40),
        ("vpt", "vpt_deep", 240),
        ("vpt", "vpt_pad", 6 * 36),
        ("vpt", "bias", 8),
        ("vpt", "adapter_vpt", 24),
        ("fact", "fact_tt", 15),
        ("adapter_plus", "adapter_plus", 6),
        ("osu", "linear", 4),
        ("osu", "adapter", 64),
    ],
)
def test_a_paper_searched_this_many_trials(protocol: str, method: str, trials: int) -> None:
    grid = find(read(config_dir() / "grid" / f"{protocol}.yaml"), method)
    assert len(grid) == len(grid.overrides()) == trials
    assert len({tuple(point) for point in grid.overrides()}) == trials


def test_a_method_without_a_grid_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(UnknownName, match=r"'lora'.*Known: .*vpt_deep"):
        find(read(config_dir() / "grid" / "vpt.yaml"), "lora")


@pytest.mark.parametrize(("file", "grid"), GRIDS, ids=lambda part: getattr(part, "name", part))
def test_every_method_of_a_grid_takes_every_point(file: str, grid: Grid) -> None:
    assert set(grid.methods) <= set(METHODS)
    assert "/" in grid.source
    for method in grid.methods:
        for point in grid.points():
            values: dict[str, dict] = {"method": {}, "recipe": {}}
            for key, value in point:
                section, _, name = key.partition(".")
                values[section][name] = tuple(value) if isinstance(value, list) else value
            METHODS[method](**values["method"])
            check_recipe(Recipe(**values["recipe"]))


@pytest.mark.parametrize(
    ("file", "method", "trials"),
    [
        ("vpt_swin", "vpt_deep", 4 * 40),
        ("vpt_ssl", "linear", 52),
        ("vpt_convnets", "full", 20),
        ("vpt_convnets", "vpt_pad", 6 * 36),
        ("fact_fewshot", "lora", 5),
        ("fact_fewshot", "fact_tk", 5),
    ],
)
def test_a_grid_for_other_nets_has_this_many_trials(file: str, method: str, trials: int) -> None:
    assert len(find(named(file), method)) == trials


def test_a_row_that_fixes_a_value_does_not_search_it() -> None:
    grid = find(named("vpt"), "adapter_vpt")
    assert pinned("adapter_vpt/64") == {"method.reduction"}
    assert pinned("adapter_vpt") == frozenset()
    free = grid.without(pinned("adapter_vpt/64"))
    assert (len(grid), len(free)) == (24, 8)
    assert free.points()[-1] == (
        ("recipe.lr", 0.0001),
        ("recipe.optimizer", "momentum"),
        ("recipe.weight_decay", 0.0),
        ("recipe.eps", None),
    )


def test_an_unknown_grid_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UnknownName, match=r"tuner\.grid 'vtp'. Did you mean: vpt"):
        named("vtp")


def test_no_method_has_two_grids_in_a_file() -> None:
    for path in FILES:
        methods = [method for grid in read(path).values() for method in grid.methods]
        assert len(set(methods)) == len(methods)
