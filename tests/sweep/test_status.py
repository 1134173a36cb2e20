"""What a sweep says while it runs and no terminal shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.sweep import status
from peftbench.sweep.status import StatusView


def test_a_line_tells_how_far_the_jobs_are_that_ran_longest(tmp_path: Path) -> None:
    view = StatusView(9, ["cpu 0", "cpu 1", "cpu 2"])
    for slot, name in (("cpu 0", "lora"), ("cpu 1", "bias"), ("cpu 2", "full")):
        view.begin(name, slot, None, tmp_path / f"{name}.txt")
    assert view.line() == "0 of 9 done, 0 failed, 0 s so far"
    (tmp_path / "lora.txt").write_text("lora: epoch 1 of 3\nlora: epoch 2 of 3, loss 0.5\nlora: ep")
    (tmp_path / "full.txt").write_text("full: epoch 1 of 3, loss 0.7\n")
    (tmp_path / "bias.txt").write_text("a library warns: of something\n")
    assert view.line() == (
        "0 of 9 done, 0 failed, 0 s so far; lora: epoch 2 of 3, loss 0.5; "
        "full: epoch 1 of 3, loss 0.7; and 1 more"
    )


def test_what_a_job_prints_moves_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "QUIET_SECONDS", 0.0)
    view = StatusView(1, ["cpu 0"])
    (tmp_path / "out.txt").write_bytes(b"x" * 9999 + b"\nlora: \x1b[2J\n")
    view.begin("lora", "cpu 0", None, tmp_path / "out.txt")
    ends = [False, True]
    monkeypatch.setattr(view._over, "wait", lambda seconds: ends.pop(0))
    view._tick()
    said = capsys.readouterr().err
    assert "; lora: " in said and "[2J" in said and "\x1b" not in said


def test_a_sweep_that_says_nothing_for_a_while_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    view = StatusView(2, ["cpu 0"])
    ends = [False] * 70 + [True]

    def second(seconds: float) -> bool:
        now[0] += seconds
        if now[0] == 50.0:
            view.say("[1/2] a job has ended")
        return ends.pop(0)

    monkeypatch.setattr(view._over, "wait", second)
    view._tick()
    said = capsys.readouterr()
    # after 30 s without a word; then not before 50 + 30
    assert said.err == "0 of 2 done, 0 failed, 30 s so far\n"
    assert said.out == "[1/2] a job has ended\n"
