"""What the benchmarks of training measure, on models so small that the answer is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftbench.spec import Preprocessing
from peftbench.training.device import Compute
from peftbench.training.fittable import Fittable

ROOT = Path(__file__).parents[1]
CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _path_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_ratio_is_the_median_over_turns_in_which_each_way_comes_first_by_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pairs

    calls: list[str] = []
    clock = {"first": iter([3.0, 8.0, 5.0]), "second": iter([1.0, 2.0, 1.0])}

    def seconds(call: Any, device: torch.device) -> float:
        return next(clock[call()])

    def way(name: str) -> Any:
        return lambda: calls.append(name) or name

    monkeypatch.setattr(pairs, "seconds", seconds)
    found = pairs.paired("p", way("first"), way("second"), CPU.device, repeats=3)
    # 3/1, 8/2, 5/1
    assert (found.ratio, found.low, found.high) == (4.0, 3.0, 5.0)
    assert (found.seconds, found.repeats) == (1.0, 3)
    warm, *turns = zip(calls[::2], calls[1::2], strict=True)
    assert warm == ("first", "second")
    assert turns == [("first", "second"), ("second", "first"), ("first", "second")]


def test_kept_bytes_are_those_that_wait_for_the_backward_pass() -> None:
    import pairs

    def kept(trained: bool) -> int:
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 1000), nn.Tanh(), nn.Linear(1000, 2), nn.Tanh()
        )
        for parameter in model[1].parameters():
            parameter.requires_grad_(trained)
        model.append(nn.Linear(2, pairs.CLASSES))
        preprocessing = Preprocessing(4, (0.5,) * 3, (0.5,) * 3)
        trainable = [p for p in model.parameters() if p.requires_grad]
        fittable = Fittable(model, trainable, lambda: None, preprocessing)
        return pairs.kept_bytes(fittable, 8, 4, CPU)

    # numbers of 4 bytes: outputs of both tanh, 8 x 1000 and 8 x 2, of the log-softmax, 8 x 100, the
    # loss, and the number of images that it is a mean of; neither the images nor inputs of tanh
    expected = 4 * (8 * 1000 + 8 * 2 + 8 * 100 + 1 + 1)
    assert kept(False) == kept(True) == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"rows": [{"method": "lora", "waits_in_an_epoch": 0}]}, []),
        ({"rows": [{"method": "lora", "waits_in_an_epoch": None}]}, []),
        (
            {"rows": [{"method": "ssf", "waits_in_an_epoch": 2}]},
            ["ssf waits for the device within an epoch"],
        ),
        ({"rows": [], "tests": {"passed": False}}, ["tests"]),
        ({"rows": [], "tests": {"passed": None}}, []),  # they need a GPU
        ({"rows": [], "agreement": {"passed": False}}, ["agreement"]),
    ],
)
def test_what_fails_on_a_gpu_is_named(result: dict[str, Any], expected: list[str]) -> None:
    import gpu

    passed = {"agreement": {"passed": True}, "tests": {"passed": True}}
    assert gpu.failures(passed | result) == expected


def test_make_bench_measures_the_methods() -> None:
    done = subprocess.run(
        ["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python benchmarks/methods.py" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("methods.py", "--device", "cpu"), ("gpu.py", "--device", "cpu")]
)
def test_every_part_can_be_tried_out_without_a_gpu(tmp_path: Path, words: tuple[str, ...]) -> None:
    name, *rest = words
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}", *rest, "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*_*.json"))) == 1
