"""Records of runs that never ran."""

from __future__ import annotations

from support.tiny_runs import tiny_spec

from peftbench.results.record import Cost, EpochRow, Parameters, RunRecord, Status


def record(method: str = "linear", status: Status = Status.OK) -> RunRecord:
    """A run of two epochs that never ran."""
    spec = tiny_spec(method)
    ok = status is Status.OK
    return RunRecord(
        run_id=spec.run_id,
        spec=spec.describe(),
        status=status,
        error=None if ok else "the loss is not finite",
        metrics={"test/top1": 0.75, "test/num_images": 4.0} if ok else {},
        parameters=Parameters(method=10, head=20, unfrozen=5, backbone=1000, stored_bytes=120),
        cost=Cost(device="cpu", dtype="float32", seconds_train=3.5),
        history=[EpochRow(1, 2.5, 0.25, 1e-3, 0.5), EpochRow(2, 1.5, 0.5, 5e-4, 0.5)],
        started="2025-01-01T00:00:00+00:00",
        finished="2025-01-01T00:01:00+00:00",
    )
