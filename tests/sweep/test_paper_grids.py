"""Cells that search the grids of papers: budgets of their own, rows that fix what they name."""

from __future__ import annotations

import dataclasses

import pytest
from support.tiny_runs import tiny_spec

from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError, UnknownName
from peftbench.methods.adapter import AdapterVPT
from peftbench.spec import RunSpec
from peftbench.sweep.tuning.cells import make_cells

PAPER = TunerConfig(name="grid", grid="vpt")


def job(choice: str, spec: RunSpec, seed: int) -> tuple[tuple[str, ...], RunSpec]:
    return (f"method={choice}", f"seed={seed}"), dataclasses.replace(spec, seed=seed)


def test_each_method_has_the_grid_that_its_paper_searched() -> None:
    rows = {
        "linear": tiny_spec("linear"),
        "adapter_vpt/64": tiny_spec(AdapterVPT(reduction=64)),
        "bias": tiny_spec("bias"),
    }
    jobs = [job(choice, spec, seed) for choice, spec in rows.items() for seed in (42, 44)]
    cells = make_cells(jobs, PAPER, "nowhere")
    # ten rates and four decays; four rates and two optimisers, the reduction being the row's
    assert [cell.search.trials for cell in cells] == [40, 8, 8]
    assert [len(cell.finals) for cell in cells] == [2, 2, 2]
    first = cells[1].search.ask()
    assert first is not None
    assert cells[1].trial_overrides(first) == (
        "method=adapter_vpt/64",
        "recipe.lr=0.005",
        "recipe.optimizer=adamw",
        "recipe.weight_decay=0.01",
        "seed=0",
        "phase=tune",
        "tuner.name=none",
    )


def test_seeds_with_lists_of_their_own_share_a_search() -> None:
    spec = tiny_spec("linear")

    def drawn(seed: int) -> RunSpec:
        dataset = dataclasses.replace(spec.dataset, shots=1, shot_seed=seed)
        return dataclasses.replace(spec, dataset=dataset)

    cells = make_cells([job("linear", drawn(seed), seed) for seed in (0, 1, 2)], PAPER, "nowhere")
    assert [len(cell.finals) for cell in cells] == [3]


def test_a_method_that_the_paper_did_not_search_is_refused() -> None:
    with pytest.raises(UnknownName, match="method in this grid: 'lora'"):
        make_cells([job("lora", tiny_spec("lora"), 0)], PAPER, "nowhere")
    wrong = TunerConfig(name="optuna", trials=3, grid="vpt")
    with pytest.raises(ConfigError, match=r"tuner\.grid=vpt needs tuner=grid"):
        make_cells([job("linear", tiny_spec("linear"), 0)], wrong, "nowhere")


def test_runs_of_a_search_are_not_told_how_it_searches() -> None:
    """Hydra composes a job with ~KEY as a whole, 0.2 s for each of many thousand trials."""
    said = ("tuner=grid", "tuner.grid=vpt", "~tuner.space.recipe.lr", "+tuner.x=1", "tuning=null")
    jobs = [(("method=linear", *said, "seed=3"), tiny_spec("linear", seed=3))]
    (cell,) = make_cells(jobs, PAPER, "nowhere")
    assert cell.overrides == ("method=linear", "tuning=null")
    assert cell.finals == [("method=linear", "tuning=null", "seed=3")]
