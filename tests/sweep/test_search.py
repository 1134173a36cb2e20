"""Which points a search tries, in which order, and which of them wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.errors import ConfigError, StoreError
from peftbench.sweep.tuning import search
from peftbench.sweep.tuning.search import (
    GridSearch,
    OptunaSearch,
    Range,
    Search,
    Trial,
    check_budgets,
    space_of,
    written,
)

SPACE = {"recipe.lr": (0.1, 0.01), "method.rank": (4, 8, 16)}


def ask_all(search: Search) -> list[Trial]:
    trials = []
    while (trial := search.ask()) is not None:
        trials.append(trial)
    return trials


def test_a_grid_is_the_product_with_the_last_key_fastest() -> None:
    search = GridSearch(SPACE)
    assert [trial.overrides for trial in ask_all(search)] == [
        ("recipe.lr=0.1", "method.rank=4"),
        ("recipe.lr=0.1", "method.rank=8"),
        ("recipe.lr=0.1", "method.rank=16"),
        ("recipe.lr=0.01", "method.rank=4"),
        ("recipe.lr=0.01", "method.rank=8"),
        ("recipe.lr=0.01", "method.rank=16"),
    ]
    assert search.ask() is None


def test_a_smaller_budget_takes_the_same_points_of_the_grid_each_time() -> None:
    some = [trial.overrides for trial in ask_all(GridSearch(SPACE, trials=3, seed=1))]
    assert len(set(some)) == 3
    assert set(some) < {trial.overrides for trial in ask_all(GridSearch(SPACE))}
    assert some == [t.overrides for t in ask_all(GridSearch(SPACE, trials=3, seed=1))]
    others = [[t.overrides for t in ask_all(GridSearch(SPACE, trials=3, seed=s))] for s in range(9)]
    assert any(other != some for other in others)


def test_the_best_on_val_wins_and_a_tie_goes_to_the_smaller_rate() -> None:
    search = GridSearch({"recipe.lr": (0.1, 0.01, 0.001)})
    high, middle, low = ask_all(search)
    for trial, score in ((high, 0.7), (low, 0.5)):
        search.tell(trial, score)
    assert not search.over
    search.tell(middle, 0.7)
    assert search.over
    assert search.winner() == middle


def test_a_failed_trial_counts_in_the_budget_and_cannot_win() -> None:
    search = GridSearch({"recipe.lr": (0.1, 0.01)})
    first, second = ask_all(search)
    search.tell(first, None)
    search.tell(second, 0.1)
    assert search.over
    assert search.winner() == second
    nothing = GridSearch({"recipe.lr": (0.1,)})
    nothing.tell(*ask_all(nothing), float("nan"))
    with pytest.raises(ConfigError, match="none of 1 trials ended well"):
        nothing.winner()


def test_all_methods_get_the_same_number_of_trials() -> None:
    same = {"lora": GridSearch(SPACE), "bias": GridSearch({"recipe.lr": (1, 2, 3, 4, 5, 6)})}
    check_budgets(same)
    with pytest.raises(ConfigError, match=r"2 for bias; 6 for lora.*tuner\.trials=2"):
        check_budgets({"lora": GridSearch(SPACE), "bias": GridSearch({"recipe.lr": (1, 2)})})


def objective(trial: Trial) -> float:
    """Highest at a rate of 1e-3."""
    import math

    rate = float(dict(trial.point)["recipe.lr"])
    return 1 - abs(math.log10(rate) + 3) / 10


def optuna_search(journal: Path, trials: int = 8) -> OptunaSearch:
    space = {"recipe.lr": Range(1e-5, 1e-1, log=True), "method.rank": (4, 8)}
    return OptunaSearch(space, trials, str(journal), "cell", seed=3)


def finish(search: OptunaSearch, count: int | None = None) -> list[Trial]:
    trials = []
    while (count is None or len(trials) < count) and (trial := search.ask()) is not None:
        search.tell(trial, objective(trial))
        trials.append(trial)
    return trials


def test_an_interrupted_optuna_search_goes_on_and_finds_the_same_winner(tmp_path: Path) -> None:
    whole = optuna_search(tmp_path / "whole.log")
    expected = finish(whole)
    assert len(expected) == 8

    first = optuna_search(tmp_path / "parts.log")
    finish(first, count=3)
    lost = first.ask()  # drawn, and the process died before it was told
    again = optuna_search(tmp_path / "parts.log")
    found = finish(again)
    assert found[3] == lost
    assert [t.point for t in found] == [t.point for t in expected]
    assert again.winner() == whole.winner()


def test_a_lock_that_a_killed_process_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "STALE_SECONDS", 3)
    journal = tmp_path / "journal.log"
    (tmp_path / "journal.log.lock").touch()
    assert len(finish(optuna_search(journal, trials=1))) == 1


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_journal_whose_last_line_was_cut_short_goes_on(tmp_path: Path, cut: int) -> None:
    journal = tmp_path / "journal.log"
    expected = finish(optuna_search(tmp_path / "whole.log"))
    finish(optuna_search(journal), count=3)
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = finish(optuna_search(journal))
    assert [t.point for t in again] == [t.point for t in expected]
    assert finish(optuna_search(journal)) == again


def test_a_journal_that_is_none_is_named_in_one_line(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    for text in ("not a journal\nat all\n", "[1]\n[2]\n", "{}\n{}\n"):
        journal.write_text(text)
        with pytest.raises(StoreError, match=r"journal\.log is no journal of a search: ") as told:
            optuna_search(journal)
        assert "\n" not in str(told.value)


def test_optuna_stays_inside_the_space(tmp_path: Path) -> None:
    for trial in finish(optuna_search(tmp_path / "journal.log")):
        point = dict(trial.point)
        assert list(point) == ["recipe.lr", "method.rank"]
        assert 1e-5 <= point["recipe.lr"] <= 1e-1
        assert point["method.rank"] in (4, 8)


def test_a_space_is_lists_and_ranges() -> None:
    rate = {"low": 1e-4, "high": 1e-1, "log": True}
    space = space_of({"recipe": {"lr": rate}, "method": {"rank": [4, 8]}})
    assert space == {"recipe.lr": Range(1e-4, 1e-1, log=True), "method.rank": (4, 8)}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "tuner.space is empty"),
        ({"recipe": {"lr": 0.1}}, "is no range"),
        ({"recipe.lr": 0.1}, "neither a list of values nor a range"),
        ({"recipe.lr": "0.1"}, "neither a list of values nor a range"),
        ({"recipe.lr": {"low": 1.0, "high": 0.1}}, "low and a larger high"),
        ({"recipe.lr": {"from": 1.0, "to": 2.0}}, "no range"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(declared: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(declared)


def test_a_grid_takes_no_range() -> None:
    with pytest.raises(ConfigError, match="a grid needs a list of values"):
        GridSearch({"recipe.lr": Range(0.1, 1.0)})
    with pytest.raises(ConfigError, match="is empty"):
        GridSearch({"recipe.lr": ()})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "1e-05"),
        (0.1, "0.1"),
        (None, "null"),
        (True, "true"),
        (("q", "v"), "[q,v]"),
        (8, "8"),
    ],
)
def test_values_are_written_as_hydra_reads_them(value: object, text: str) -> None:
    assert written(value) == text
