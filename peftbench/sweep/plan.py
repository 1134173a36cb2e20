"""What a sweep would do: jobs, what is done, what makes no sense, how long the rest may take."""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftbench.errors import PeftbenchError, Unsupported
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import BackboneSpec, DatasetSpec, Precision, RunSpec, called
from peftbench.training.hardware import (
    gpus_are_possible,
    has_amx,
    has_avx512_bf16,
    is_bfloat16_fast,
)
from peftbench.untrusted import printable

RECORD_BYTES = 40_000  # record, card, predictions and head of a small run
NO_DATA, SETTLED = "no data", ("done", "unsupported")
UNKNOWN_ID = "-" * 16

if TYPE_CHECKING:
    from peftbench.backbones.anatomy import Anatomy
    from peftbench.methods.base import Method
    from peftbench.sweep.jobs import Job


@dataclass(frozen=True)
class PlannedJob:
    """One planned job: what would happen and how long it may take."""

    spec: RunSpec
    state: str  # "done", "to run", "no data", "unsupported", "interrupted", or how it failed before
    note: str
    seconds: float | None  # estimate from earlier runs; None without any
    failed_before: bool = False
    interrupted: bool = False


def entries(
    jobs: Sequence[Job], store: ResultsStore, missing: Container[DatasetSpec] = ()
) -> list[PlannedJob]:
    """The plan, in the order of the jobs. Runs nothing and loads no weights.

    Jobs on data sets that are `missing` have no id yet, of which the files are a part.
    """
    scan = store.scan(history=False)
    records = {record.run_id: record for record in scan.records}
    estimate = Estimates(scan.records)
    planned = []
    for job in jobs:
        spec = job.spec
        record = records.get(spec.run_id)
        if record is not None and record.status is Status.OK:
            planned.append(PlannedJob(spec, "done", "", 0.0))
            continue
        reason = refusal(spec)
        if reason:
            planned.append(PlannedJob(spec, "unsupported", reason, 0.0))
            continue
        if spec.dataset in missing:
            planned.append(PlannedJob(spec, NO_DATA, warning(spec), estimate(spec)))
            continue
        if record is not None and record.status is Status.INTERRUPTED:
            planned.append(
                PlannedJob(spec, "interrupted", warning(spec), estimate(spec), interrupted=True)
            )
            continue
        again = record is not None and record.status.failed
        state = f"again ({record.status})" if record is not None and again else "to run"
        note = (record.error or "") if record is not None and again else warning(spec)
        planned.append(PlannedJob(spec, state, note, estimate(spec), again))
    return planned


def show(
    jobs: Sequence[Job],
    store: ResultsStore,
    slots: int = 1,
    *,
    device: str | None = None,
    missing: Mapping[DatasetSpec, str] = MappingProxyType({}),
) -> None:
    """Print the plan and its totals, and what they mean for each of so many slots.

    Args:
        device: where the jobs run on this machine; `None` where others will run them.
        missing: data sets that are not here, and how to get them.
    """
    plan = entries(jobs, store, missing)
    for entry in plan:
        seconds = f", about {entry.seconds:.0f} s" if entry.seconds else ""
        note = f": {entry.note}" if entry.note else ""
        run_id = UNKNOWN_ID if entry.spec.dataset in missing else entry.spec.run_id
        print(printable(f"{run_id}  {entry.state:<11}  {entry.spec}{seconds}{note}"))
    _show_totals(plan, slots)
    if missing:
        several = "s" if len(missing) > 1 else ""
        print(
            f"{len(missing)} data set{several} not here, whose runs get their ids with the files:"
        )
        for reason in missing.values():
            print(printable(f"  {reason}"))
    left = [e for e in plan if e.state not in SETTLED]
    if any(entry.spec.precision is Precision.AUTO for entry in left):
        print(arithmetic(device))


def _show_totals(plan: Sequence[PlannedJob], slots: int) -> None:
    counts = {s: sum(e.state == s for e in plan) for s in SETTLED}
    left = [e for e in plan if e.state not in counts]
    before = {
        "failed before": sum(e.failed_before for e in left),
        "interrupted": sum(e.interrupted for e in left),
    }
    of_them = ", ".join(f"{count} {what}" for what, count in before.items() if count)
    known = [e.seconds for e in left if e.seconds is not None]
    print(
        f"{len(plan)} jobs: {counts['done']} done, {counts['unsupported']} unsupported, "
        f"{len(left)} to run{f' ({of_them})' if of_them else ''}"
    )
    if not left:
        return
    print(f"about {_size(sum(disk_bytes(e.spec) for e in left))} on disk")
    if known:
        mean = statistics.fmean(known)
        hours = (sum(known) + mean * (len(left) - len(known))) / 3600
        each = f"{hours / slots:.2f} on each of {slots} slots, " if slots > 1 else ""
        print(
            f"estimated {hours:.2f} hours of one slot, {each}from earlier runs of {len(known)} of "
            "these jobs' kinds"
        )
    else:
        print("no estimate: none of these kinds of jobs has run here before")


def arithmetic(device: str | None) -> str:
    """What precision=auto comes to on a device of this machine, in one line."""
    if device is None:
        return "precision=auto is decided on the node that a job runs on"
    if device == "cpu" or (device == "auto" and not gpus_are_possible()):
        fast, reason = is_bfloat16_fast(has_amx, has_avx512_bf16)
        kind, dtype = "CPU", "bfloat16" if fast else "float32"
    else:
        from peftbench.training.device import choose_device, explain_dtype

        place = choose_device(device)
        explained = explain_dtype(Precision.AUTO, place)
        dtype, reason = str(explained[0]).removeprefix("torch."), explained[1]
        kind = {"cpu": "CPU", "cuda": "GPU"}.get(place.type, place.type)
    return f"precision=auto is {dtype} on this machine's {kind} ({reason})"


def disk_bytes(spec: RunSpec) -> int:
    """About what a run leaves on disk: its tuned tensors in float32, and its record."""
    from peftbench.methods.base import as_method

    return 4 * _parameters(as_method(spec.method), spec.backbone) + RECORD_BYTES


def _size(count: float) -> str:
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


class Estimates:
    """Seconds that a run may take, from earlier runs of its kind.

    Kinds are methods on backbones, image sizes and data sets. Medians over the earlier runs: those
    of an epoch of training, times the epochs, and those of all else, which no epoch adds to.
    """

    def __init__(self, records: Iterable[RunRecord]) -> None:
        rates: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
        for record in records:
            if record.status is not Status.OK or record.cost is None or record.provenance is None:
                continue
            if record.cost.seconds_total is not None:
                spec = record.spec
                kind = (
                    spec["method"]["name"],
                    spec["backbone"]["name"],
                    spec["backbone"]["image_size"],
                    called(spec["dataset"]),
                )
                total, training = record.cost.seconds_total, record.cost.seconds_train
                if training is None:  # of a record that does not tell them apart
                    training = total
                # a run that was taken up again trained before this process as well
                beside = max(0.0, total - training)
                rates.setdefault(kind, []).append((beside, training / spec["recipe"]["epochs"]))
        self._rates = {
            kind: tuple(map(statistics.median, zip(*values, strict=True)))
            for kind, values in rates.items()
        }

    def __call__(self, spec: RunSpec) -> float | None:
        """Seconds of one run; `None` where none of its kind has run."""
        backbone = spec.backbone
        kind = (spec.method.name, backbone.name, backbone.image_size, spec.dataset.called)
        if kind not in self._rates:
            return None
        beside, of_an_epoch = self._rates[kind]
        return beside + of_an_epoch * spec.recipe.epochs


def refusal(spec: RunSpec) -> str:
    """Why the method is not defined on the backbone, or an empty text."""
    from peftbench.methods.base import as_method

    return _refusal(as_method(spec.method), spec.backbone)


def warning(spec: RunSpec) -> str:
    """That a run will not merge although its method can, or an empty text."""
    from peftbench.methods.base import as_method

    return _warning(as_method(spec.method), spec.backbone)


@cache
def _warning(method: Method, backbone: BackboneSpec) -> str:
    if not method.card.mergeable:
        return ""
    try:
        reason = method.unmergeable(_anatomy(backbone))
    except PeftbenchError:
        return ""  # the run itself will say it better
    return f"trains, but does not merge on this backbone: {reason}" if reason else ""


@cache
def _refusal(method: Method, backbone: BackboneSpec) -> str:
    try:
        method.check(_anatomy(backbone))
    except Unsupported as e:
        return str(e)
    except PeftbenchError:
        return ""  # the run itself will say it better
    return ""


@cache
def _parameters(method: Method, backbone: BackboneSpec) -> int:
    try:
        return method.expected_params(_anatomy(backbone))
    except PeftbenchError:
        return 0


@cache
def _anatomy(backbone: BackboneSpec) -> Anatomy:
    from peftbench.backbones.anatomies import anatomy_of

    return anatomy_of(backbone)
