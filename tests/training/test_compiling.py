"""Training through `torch.compile` is the same training, or refused in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_runs import short_timings, tiny_spec
from torch import nn

from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.training.compiling import compiled
from peftbench.training.device import Compute

PLAIN = Compute(torch.device("cpu"), torch.float32)
COMPILED = dataclasses.replace(PLAIN, compile=True)


def test_nothing_is_compiled_unless_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, object]] = []

    def compile_(target: Callable[..., Any], options: object = None) -> Callable[..., Any]:
        seen.append((target, options))
        return target

    monkeypatch.setattr(torch, "compile", compile_)
    objective = nn.Linear(2, 2)
    assert compiled(objective, PLAIN) is objective and seen == []
    assert compiled(objective, COMPILED) is objective
    # dropout draws what it would draw
    assert seen == [(torch.sin, None), (objective, {"fallback_random": True})]


def test_a_machine_that_cannot_compile_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile_(target: object, options: object = None) -> Callable[..., Any]:
        def call(*args: object) -> None:
            raise RuntimeError("No working C++ compiler found.\nA long trace.")

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(ConfigError) as refused:
        compiled(nn.Linear(2, 2), COMPILED)
    assert str(refused.value) == (
        "compile=true, but torch.compile fails on this machine: No working C++ compiler found. "
        "Install a C++ compiler (on a GPU, Triton too), or use compile=false."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_learns_as_one_that_is_not(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    spec = tiny_spec("lora", precision="float32", recipe={"lr": 0.01})
    with short_timings():
        plain = experiment.run(spec, store, experiment.RunOptions(device="cpu"))
        options = experiment.RunOptions(device="cpu", compile=True)
        again = experiment.run(spec, store, options, force=True)
    assert again.error is None and again.run_id == plain.run_id
    losses = [row.loss for row in plain.history]
    assert losses[0] != losses[1]
    assert [row.loss for row in again.history] == pytest.approx(losses, rel=1e-4)
    assert any(note.startswith("trained compiled") for note in again.notes)
