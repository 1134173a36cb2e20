"""Promises of reports on one's own folders: they are never taken for one data set."""

from __future__ import annotations

from own_runs import own_data

from peftbench.report import tables
from peftbench.report.advice import Budget, advise, to_text
from peftbench.results.frame import frame


def two_folders(make_record):
    """On cats lora is ahead, on dogs linear; over both they are equal."""
    levels = {("linear", "cats"): 0.5, ("lora", "cats"): 0.8}
    levels |= {("linear", "dogs"): 0.9, ("lora", "dogs"): 0.6}
    return [
        make_record(method, seed=seed, top1=level + noise, **own_data(name), manifest=name)
        for (method, name), level in levels.items()
        for seed, noise in enumerate((-0.01, 0.0, 0.01, 0.02))
    ]


def test_two_folders_are_two_columns(make_record):
    cells = tables.summary(frame(two_folders(make_record)))
    found = {
        (cell["label"], cell["column"]): round(cell["mean"], 3)
        for cell in cells[cells["kind"] == "task"].to_dict("records")
    }
    assert found == {
        ("linear", "cats"): 0.505,
        ("lora", "cats"): 0.805,
        ("linear", "dogs"): 0.905,
        ("lora", "dogs"): 0.605,
    }


def test_each_folder_is_advised_by_itself(make_record):
    answers = advise(frame(two_folders(make_record)), Budget())
    assert [(one.title, one.datasets) for one in answers] == [
        ("vit_mini · cats", ("cats",)),
        ("vit_mini · dogs", ("dogs",)),
    ]
    assert [one.chosen[0].label for one in answers] == ["lora", "linear"]
    text = to_text(answers, Budget())
    assert "vit_mini · cats · no limit\n1 data set: cats\n" in text
    (dogs,) = advise(frame(two_folders(make_record)), Budget(), datasets=["dogs"])
    assert dogs.title == "vit_mini · dogs"


def test_folders_of_one_name_are_two_columns_with_their_hashes(make_record):
    runs = [
        make_record(manifest=content, **own_data("cats", content=content * 16))
        for content in ("aaaa", "bbbb")
    ]
    cells = tables.summary(frame(runs))
    task = cells[cells["kind"] == "task"]
    assert sorted(task["column"]) == ["cats-aaaaaa", "cats-bbbbbb"]
    assert task["state"].tolist() == ["ok", "ok"]
