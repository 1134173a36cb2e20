"""A rate that a search chose is no variant of a method; a rate that was given is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from own_runs import own_data, predicted_run, stored

from peftbench.report import statistics, tables
from peftbench.report.advice import Budget, advise
from peftbench.report.page import render
from peftbench.report.view import View, Views
from peftbench.results.frame import epochs, frame

RATES = (0.003, 0.01, 0.003, 0.001, 0.01)  # of five folds


def searched(*keys: str, trials: int = 3) -> dict[str, Any]:
    told = {"tuner": "grid", "trials": trials, "epochs": 5, "val_top1": 0.5}
    return told | ({"searched": list(keys)} if keys else {})


def folded(make_record: Any, method: str, hits: str, **facts: Any) -> list[Any]:
    """A run on each of five folds of 10 images, whose rate a search chose on each fold."""
    return [
        predicted_run(
            make_record,
            method,
            hits,
            range(10 * fold, 10 * fold + 10),
            trained=40,
            **own_data("birds", folds=5, fold=fold, split_seed=0),
            **{"manifest": f"m{fold}", "tuning": searched(), "recipe": {"lr": rate}} | facts,
        )
        for fold, rate in enumerate(RATES)
    ]


@pytest.fixture
def folds(make_record: Any, tmp_path: Path) -> Any:
    runs = folded(make_record, "linear", "1" * 9 + "0")
    return stored(tmp_path, [*runs, *folded(make_record, "lora", "1" * 5 + "0" * 5)])


def labels(records: Any) -> list[str]:
    return list(dict.fromkeys(tables.summary(frame(records))["label"]))


def test_rates_chosen_for_each_fold_leave_one_row_that_says_them(folds: Any) -> None:
    cells = View.of(frame(folds), store=folds).cells
    assert list(cells["label"]) == ["linear", "lora"]
    assert list(cells["state"]) == ["ok", "ok"] and list(cells["n"]) == [5, 5]
    assert list(cells["note"]) == ["lr searched for each split: 0.001 to 0.01"] * 2
    assert "[a] lr searched for each split: 0.001 to 0.01" in tables.to_text(cells)


def test_statistics_advice_and_page_have_the_same_rows(folds: Any) -> None:
    table = frame(folds)
    (compared,) = statistics.comparisons(View.of(table, store=folds), folds)
    assert compared.labels == ("linear", "lora")
    (answer,) = advise(table, Budget(), store=folds)
    assert [one.label for one in answer.chosen] == ["linear"]
    assert [one.label for one in answer.worse] == ["lora"]
    assert [one.runs for one in (*answer.chosen, *answer.worse)] == [5, 5]
    page = render(Views(table, (), folds), epochs(folds.scan().records), folds)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    (panel,) = json.loads(text)["panels"]
    rows = panel["scores"]["top1"]
    assert [row["label"] for row in rows] == ["linear", "lora"]
    assert rows[0]["cells"]["birds"]["note"] == "lr searched for each split: 0.001 to 0.01"


def test_what_a_search_chose_is_in_the_record(make_record: Any) -> None:
    rows = [
        make_record(seed=0),
        make_record(seed=1, tuning=searched()),
        make_record(seed=2, tuning=searched("recipe.lr", "method.scale")),
        make_record(seed=3, tuning={**searched(), "searched": "no list"}),
        make_record(seed=4, tuning={**searched(), "searched": ["recipe.lr", 3]}),
    ]
    assert frame(rows)["searched"].fillna("").tolist() == [
        "",
        "recipe.lr,recipe.weight_decay",  # of a record from before it was said
        "recipe.lr,method.scale",
        "",
        "recipe.lr",
    ]


def test_rates_that_were_given_are_rows_beside_the_one_that_was_searched(make_record: Any) -> None:
    found = [
        make_record(seed=seed, recipe={"lr": rate}, tuning=searched("recipe.lr"))
        for seed, rate in enumerate((0.02, 0.01))
    ]
    given = [make_record(seed=seed, recipe={"lr": 0.001}) for seed in range(2)]
    assert labels(found + given) == ["lora lr=0.001", "lora lr=searched"]
    cells = tables.summary(frame(found + given)).set_index("label")
    assert cells.loc["lora lr=searched", "n"] == 2
    assert cells.loc["lora lr=searched", "note"].endswith("0.01 to 0.02")


def test_what_was_given_beside_a_search_makes_rows(make_record: Any) -> None:
    records = [
        make_record(
            seed=seed,
            hyperparameters={"rank": rank},
            recipe={"lr": rate},
            tuned=1000 * rank,
            tuning=searched("recipe.lr"),
        )
        for rank, rates in ((4, (0.01, 0.001)), (8, (0.001, 0.003)))
        for seed, rate in enumerate(rates)
    ]
    assert labels(records) == ["lora rank=4", "lora rank=8"]


def test_a_setting_of_the_method_that_was_searched_is_a_row_where_sizes_differ(
    make_record: Any,
) -> None:
    def runs(tuned: int) -> list[Any]:
        return [
            make_record(
                seed=seed,
                hyperparameters={"tokens": tokens},
                tuned=tuned * tokens,
                tuning=searched("method.tokens"),
            )
            for seed, tokens in enumerate((5, 10))
        ]

    assert labels(runs(100)) == ["lora tokens=5", "lora tokens=10"]
    assert labels(runs(0)) == ["lora"]


def test_two_searches_on_the_same_seeds_are_told_by_budget_or_else_by_what_they_chose(
    make_record: Any,
) -> None:
    def runs(trials: int, *rates: float) -> list[Any]:
        return [
            make_record(seed=s, recipe={"lr": x}, tuning=searched("recipe.lr", trials=trials))
            for s, x in enumerate(rates)
        ]

    assert labels(runs(3, 0.1, 0.2) + runs(9, 0.3, 0.2)) == [
        "lora search=grid: 3 trials x 5 epochs",
        "lora search=grid: 9 trials x 5 epochs",
    ]
    assert labels(runs(3, 0.1) + runs(3, 0.3)) == ["lora lr=0.1", "lora lr=0.3"]


def test_a_setting_that_method_and_recipe_share_keeps_its_group(make_record: Any) -> None:
    records = [
        make_record(
            dataset="a",
            seed=seed,
            hyperparameters={"lr": 5},
            recipe={"lr": rate},
            tuning=searched("recipe.lr"),
        )
        for seed, rate in enumerate((0.1, 0.2))
    ]
    assert labels(records) == ["lora"]
    (cell,) = tables.summary(frame(records)).to_dict("records")
    assert cell["note"] == "recipe.lr searched for each seed: 0.1 to 0.2"
    assert json.loads(records[0].to_json())["tuning"]["searched"] == ["recipe.lr"]
