"""A run that is asked to stop saves its state first, and goes on as if nobody had asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stepped import random_run, told_of_steps
from support.tiny_runs import digits, repeatable, short_timings, tiny_spec
from support.together import together

from peftbench import stopping
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, measure
from peftbench.spec import BEST_ON_TEST, Phase, RunSpec, Selection
from peftbench.training import loop

pytestmark = pytest.mark.arithmetic
# 11 images of train and 11 of val in batches of 4: six steps an epoch
SPEC = random_run(11)
LOOKS = {"phase": Phase.TUNE, "recipe": {"epochs": 4}}


@contextmanager
def signalled_in_step(number: int, *signals: int) -> Iterator[list[int]]:
    """Signals come in the `number`-th step of the optimiser; gives the steps that were ended."""
    ended = list[int]()

    def begins(step: int) -> None:
        for signum in signals if step == number else ():
            os.kill(os.getpid(), signum)

    with told_of_steps(begins, ended.append):
        yield ended


@contextmanager
def signalled_in(owner: Any, name: str, call: int = 1) -> Iterator[None]:
    """Ctrl-C comes at the `call`-th call of a function."""
    function, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """As in a program of its own: in the background, tests inherit a Ctrl-C that is deaf."""
    before = {signum: signal.getsignal(signum) for signum in stopping.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    stopping.listen()  # forgets what came
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def listening() -> Iterator[None]:
    """Signals are heard as the command hears them."""
    before = {signum: signal.getsignal(signum) for signum in stopping.SIGNALS}
    stopping.listen()
    yield
    stopping.listen()  # forgets what came
    for signum, handler in before.items():
        signal.signal(signum, handler)


def outcome(record: RunRecord, store: ResultsStore) -> dict[str, Any]:
    """All that a record says, and the predictions, without clocks and the count of resumptions."""
    raw = repeatable(record)
    del raw["cost"]["resumed"]
    found = store.load_predictions(record.spec["method"]["name"], record.run_id)
    assert found is not None
    return raw | {"classes": found.classes.tolist(), "confidence": found.confidence.tolist()}


def states(store: ResultsStore) -> list[Path]:
    return list(store.root.glob("checkpoints/*"))


def left_alone(spec: RunSpec, folder: Path) -> dict[str, Any]:
    store = ResultsStore(folder)
    record = experiment.run(spec, store)
    assert record.status is Status.OK, record.error
    return outcome(record, store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with short_timings():
        return left_alone(SPEC, tmp_path_factory.mktemp("whole"))


def interrupted(spec: RunSpec, store: ResultsStore) -> RunRecord:
    """The record of a run that is stopped, and has left its state."""
    record = experiment.run(spec, store)
    assert record.status is Status.INTERRUPTED
    assert len(states(store)) == 1
    torch.manual_seed(99)  # another process has drawn other numbers
    return record


def resumed(spec: RunSpec, store: ResultsStore) -> dict[str, Any]:
    """The outcome of a run that goes on."""
    record = experiment.run(spec, store)
    assert record.status is Status.OK, record.error
    assert record.cost is not None and record.cost.resumed == 1
    assert states(store) == []
    return outcome(record, store)


# in an epoch, at the end of one (6), in the last step of all (18)
@pytest.mark.parametrize("step", [1, 6, 8, 18])
def test_ctrl_c_ends_the_step_under_way_and_the_run_goes_on_bit_for_bit(
    store: ResultsStore, whole: dict[str, Any], step: int
) -> None:
    with signalled_in_step(step, signal.SIGINT) as ended:
        record = interrupted(SPEC, store)
    assert ended == list(range(1, step + 1))
    assert len(record.history) == (step - 1) // 6  # of an epoch that is not evaluated, no row
    assert record.error == "stopped before its end; the same command goes on from there"
    assert resumed(SPEC, store) == whole


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(
            "bias",
            selection=Selection(rule=BEST_ON_TEST),
            recipe={"epochs": 4, "ema_decay": 0.9},
        ),
        tiny_spec("bias", looks=((1, None), (3, None)), **LOOKS),
    ],
    ids=["best_on_test", "looks"],
)
def test_what_is_stopped_while_an_epoch_is_evaluated_evaluates_it_again(
    store: ResultsStore, tmp_path: Path, spec: RunSpec
) -> None:
    with signalled_in(loop.stopping, "check", call=2):  # in the second evaluation
        record = interrupted(spec, store)
    assert len(record.history) == (1 if spec.selects_on_test else 2)
    assert resumed(spec, store) == left_alone(spec, tmp_path / "whole")


def test_what_is_stopped_after_its_training_trains_no_step_again(
    store: ResultsStore, whole: dict[str, Any]
) -> None:
    with signalled_in(measure, "predict_report"):
        record = interrupted(SPEC, store)
    assert len(record.history) == 3
    with signalled_in_step(1) as ended:
        assert resumed(SPEC, store) == whole
    assert ended == []


def test_a_trial_that_was_ended_early_stays_so(store: ResultsStore, tmp_path: Path) -> None:
    spec = tiny_spec("bias", looks=((1, None), (3, 2.0)), **LOOKS)  # no accuracy reaches 2
    with signalled_in(measure, "predict_report"):
        interrupted(spec, store)
    found = resumed(spec, store)
    assert found["stopped_epoch"] == 3
    assert found == left_alone(spec, tmp_path / "whole")


def test_a_second_ctrl_c_stops_within_the_step(store: ResultsStore) -> None:
    with signalled_in_step(2, signal.SIGINT, signal.SIGINT) as ended:
        record = experiment.run(SPEC, store)
    assert record.status is Status.INTERRUPTED
    assert ended == [1]
    assert states(store) == []  # none is whole


def test_a_second_sigterm_does_not(store: ResultsStore, listening: None) -> None:
    with signalled_in_step(2, signal.SIGTERM, signal.SIGTERM) as ended:
        interrupted(SPEC, store)
    assert ended == [1, 2]
    assert stopping.exit_status() == 143


def test_a_program_that_does_not_listen_keeps_its_handlers(store: ResultsStore) -> None:
    before = [signal.getsignal(signum) for signum in stopping.SIGNALS]
    with signalled_in_step(1, signal.SIGINT):
        interrupted(SPEC, store)
    assert [signal.getsignal(signum) for signum in stopping.SIGNALS] == before
    assert stopping.asked() is None


def test_processes_stop_after_the_same_step_though_one_was_asked(store: ResultsStore) -> None:
    spec = tiny_spec("lora", dataset=digits(11), recipe={"epochs": 3, "batch_size": 4})

    def task(rank: int) -> None:
        call: Callable[..., object] = experiment.run if rank == 0 else experiment.run_worker
        stopping.listen()
        with signalled_in_step(4, *([signal.SIGTERM] if rank == 1 else [])) as ended:
            try:
                call(spec, store, experiment.RunOptions(device="cpu"))
            finally:
                assert stopping.exit_status() == 143
                (store.root / f"{rank}.txt").write_text(str(len(ended)))

    assert together(2, task) == [0, 1]  # the second raises what the first records
    first, second = ((store.root / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second and 4 <= int(first) < 18
    record = store.get(spec.run_id, "lora")
    assert record is not None and record.status is Status.INTERRUPTED
    assert len(states(store)) == 1
    record = experiment.run(spec, store, experiment.RunOptions(device="cpu"))
    assert record.status is Status.OK, record.error
    assert record.cost is not None and record.cost.resumed == 1
