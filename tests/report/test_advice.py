"""Promises of the advice: the budget holds, the evidence is shown, thin evidence is named."""

from __future__ import annotations

import dataclasses

import pytest

from peftbench.cli import units
from peftbench.cli.main import main
from peftbench.errors import ConfigError, UnknownName
from peftbench.report.advice import Budget, advise, to_text
from peftbench.results.frame import frame
from peftbench.results.store import ResultsStore

# mean accuracy, tuned parameters, latency in ms, memory in GB
METHODS = {
    "linear": (0.50, 0, 2.0, 1.0),
    "bias": (0.70, 500, 2.0, 3.0),
    "lora": (0.71, 900, 2.0, 3.0),
    "adapter": (0.70, 950, 4.0, 3.5),
    "full": (0.80, 90_000, 2.0, 9.0),
}
NOISE = (-0.01, 0.0, 0.01)


@pytest.fixture
def records(make_record):
    """Five methods on four data sets with three seeds."""
    out = []
    for method, (level, tuned, latency, memory) in METHODS.items():
        for dataset in "abcd":
            for seed, noise in enumerate(NOISE):
                record = make_record(method, dataset, seed, level + noise, tuned=tuned)
                cost = dataclasses.replace(
                    record.cost, latency_ms_batch1=latency, peak_bytes=int(memory * 1e9)
                )
                out.append(dataclasses.replace(record, cost=cost))
    return out


def only(records, budget, **choice):
    (found,) = advise(frame(records), budget, **choice)
    return found


def names(candidates):
    return [one.label for one in candidates]


@pytest.mark.parametrize(
    "read, text, expected",
    [
        (units.count, "1M", 1e6),
        (units.count, "300k", 3e5),
        (units.count, "85000000", 8.5e7),
        (units.milliseconds, "5ms", 5.0),
        (units.milliseconds, "0.2 s", 200.0),
        (units.milliseconds, "250us", 0.25),
        (units.byte_count, "8GB", 8e9),
        (units.byte_count, "8GiB", 8 * 2**30),
        (units.byte_count, "512mb", 5.12e8),
    ],
)
def test_numbers_are_read_with_their_units(read, text, expected):
    assert read(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "read, text",
    [
        (units.count, "1ms"),
        (units.count, "-1M"),
        (units.count, "many"),
        (units.milliseconds, "5"),
        (units.milliseconds, "5GB"),
        (units.byte_count, "8"),
        (units.byte_count, "0GB"),
        (units.byte_count, ""),
        (units.byte_count, "1e999GB"),
    ],
)
def test_a_number_without_its_unit_is_refused_with_an_example(read, text):
    with pytest.raises(ConfigError, match=r"is not a .*Write it as .* or "):
        read(text)


def test_the_best_within_the_budget_and_its_equals_on_the_frontier_are_advised(records):
    found = only(records, Budget(params=1000))
    # full is outside; adapter is dearer than lora at a lower mean; linear is far behind
    assert names(found.chosen) == ["lora", "bias"]
    assert names(found.dearer) == ["adapter"] and names(found.worse) == ["linear"]
    assert found.refused == ("full: tuned parameters 90k, more than 1k",)
    lora = found.chosen[0]
    assert lora.interval.estimate == pytest.approx(0.71) and lora.runs == 12
    assert lora.costs == {"params": 900, "latency": 2.0, "memory": 3e9}
    # 4 data sets, 3 seeds in simulations of `coverage.csv`
    held = "over seeds (holds in 97 % of normal, 94 % of skewed simulations at this size). "
    assert held in to_text([found], Budget(params=1000))


def test_each_limit_holds_by_itself(records):
    assert names(only(records, Budget()).chosen) == ["full"]
    slow = only(records, Budget(latency_ms=3.0))
    assert "adapter: latency 4 ms, more than 3 ms" in slow.refused
    assert names(only(records, Budget(memory_bytes=2e9)).chosen) == ["linear"]
    nothing = only(records, Budget(params=1000, memory_bytes=1e8))
    assert nothing.chosen == () and len(nothing.refused) == 5
    assert "No method" in to_text([nothing], Budget(params=1000, memory_bytes=1e8))


def test_a_cost_that_was_not_measured_is_no_low_cost(records):
    unmeasured = [
        dataclasses.replace(r, cost=dataclasses.replace(r.cost, latency_ms_batch1=None))
        if r.spec["method"]["name"] == "lora"
        else r
        for r in records
    ]
    found = only(unmeasured, Budget(latency_ms=10.0))
    assert "lora: latency was not measured on cpu" in found.refused


def test_latencies_of_two_devices_are_never_mixed(records):
    other = dataclasses.replace(records[0].cost, device="gpu", latency_ms_batch1=0.1)
    mixed = [
        dataclasses.replace(r, cost=other) if r.spec["dataset"]["name"] == "a" else r
        for r in records
    ]
    found = only(mixed, Budget(params=1000))
    assert found.device == "cpu" and found.chosen[0].costs["latency"] == 2.0


def test_runs_computed_in_different_arithmetic_are_a_doubt(records):
    other = dataclasses.replace(records[0].cost, dtype="bfloat16")
    mixed = [dataclasses.replace(records[0], cost=other), *records[1:]]
    (doubt,) = [x for x in only(mixed, Budget()).doubts if "arithmetic" in x]
    assert "bfloat16 on a CPU: " in doubt and " (1 run)" in doubt


def test_thin_evidence_is_named(records):
    found = only(records, Budget())
    assert found.doubts == ("4 data sets cannot tell how 5 methods compare on others",)
    single = [r for r in records if r.spec["seed"] == 0]
    doubts = only(single, Budget()).doubts
    assert "some method has 1 seed only on a data set" in doubts
    assert any("cannot tell any two methods apart" in doubt for doubt in doubts)
    alone = only(records, Budget(params=0))
    assert alone.doubts == (
        "one method only is within the budget and has runs: nothing to compare it with",
    )


def test_data_sets_are_chosen_by_name(records):
    found = only(records, Budget(), datasets=["a", "b"], backbones=["vit_mini"])
    assert found.datasets == ("a", "b") and found.chosen[0].runs == 6
    with pytest.raises(UnknownName, match="Unknown dataset 'e'"):
        advise(frame(records), Budget(), datasets=["e"])
    assert advise(frame([]), Budget()) == []


def test_the_command_answers_with_evidence_and_refuses_in_one_line(records, tmp_path, capsys):
    store = ResultsStore(tmp_path)
    for record in records:
        store.add(record)
    with pytest.raises(SystemExit) as ended:
        main(["advise", "--results-dir", str(tmp_path), "--max-params", "1k", "--dataset", "a,b"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "vit_mini · mini · tuned parameters at most 1k" in text
    assert "lora" in text and "71.0" in text and "3 GB" in text and "The evidence is thin:" in text
    for arguments, message in (
        (["--max-latency", "5"], "'5' is not a duration"),
        (["--results-dir", str(tmp_path / "none")], "There are no runs in"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["advise", "--results-dir", str(tmp_path), *arguments])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        main(["advise", "--results-dir", str(tmp_path), "--max-memory", "1MB"])
    assert ended.value.code == 1 and "No method" in capsys.readouterr().out
