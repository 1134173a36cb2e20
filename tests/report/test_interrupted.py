"""A run that was stopped is no failure, wherever it is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.report import build
from peftbench.report.tables import summary, to_text
from peftbench.results.frame import frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

STOPPED = {"status": Status.INTERRUPTED, "error": "stopped before its end"}


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        ([Status.INTERRUPTED, Status.INTERRUPTED], "interrupted"),
        ([Status.INTERRUPTED, Status.UNSUPPORTED], "interrupted"),
        ([Status.INTERRUPTED, Status.DIVERGED], "failed"),
        ([Status.UNSUPPORTED, Status.UNSUPPORTED], "unsupported"),
        ([Status.INTERRUPTED, Status.OK], "ok"),
    ],
)
def test_a_cell_whose_runs_were_stopped_is_interrupted(make_record, statuses, state: str) -> None:
    records = [
        make_record("lora", seed=seed, status=status, error="a reason")
        for seed, status in enumerate(statuses)
    ]
    cells = summary(frame([*records, make_record("linear")]))
    (cell,) = cells[cells["method"] == "lora"].to_dict("records")
    assert cell["state"] == state


def test_a_table_says_which_seeds_were_stopped_apart_from_those_that_failed(make_record) -> None:
    records = [
        make_record("lora", seed=0, top1=0.5),
        make_record("lora", seed=1, **STOPPED),
        make_record("lora", seed=2, status=Status.DIVERGED, error="loss is nan"),
        make_record("bias", seed=0, **STOPPED),
    ]
    text = to_text(summary(frame(records)), width=None)
    rows = {line.split()[0]: line for line in text.split("\n") if line.strip()}
    assert rows["bias"].endswith("  interrupted")
    assert "1 of 3 seeds interrupted" in text
    assert "1 of 3 seeds failed: DIVERGED" in text
    assert "1 run failed:\n  - lora x vit_mini x digits, seed 2: DIVERGED: loss is nan" in text
    assert "2 runs interrupted:\n  - bias x vit_mini x digits, seed 0: INTERRUPTED: stopped" in text


def test_the_page_lists_what_was_stopped_apart_from_failures(make_record, tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.add(make_record("lora"))
    store.add(make_record("bias", seed=7, **STOPPED))
    page = build(tmp_path, parts=("page",)).paths[0].read_text()
    assert "2 runs on 1 data set with up to 2 seeds; 1 finished; 1 interrupted." in page
    assert "1 interrupted: the same command goes on from there" in page
    assert "<li>bias on vit_mini, digits, seed 7</li>" in page
    assert "did not finish" not in page and '<span class="status">' not in page
