"""Submissions as tasks of a Ray cluster, or of a Ray of this launch alone."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import ConfigError
from peftbench.sweep.queues.remote import Engine
from peftbench.sweep.queues.slots import Slot
from peftbench.sweep.queues.submission import Gone, Handle, process, runs
from peftbench.sweep.queues.worker import serve


@dataclass(frozen=True)
class Share:
    """What each submission asks of the cluster."""

    gpus: float | None = None  # 0.5 for two on one GPU; None: one, where the cluster has any
    cpus: float | None = None  # None: the part of a machine that goes with the GPUs, else one
    options: Mapping[str, Any] = field(default_factory=dict)  # more of `ray.remote`


class RayEngine(Engine):
    """Submits tasks to the Ray cluster that this process is connected to, or connects.

    Args:
        init: arguments of `ray.init`, unused where Ray runs in this process already.
        share: what each submission asks for.
        jobs: at most so many submissions at a time; `None` leaves it to the cluster.

    Raises:
        ConfigError: no such cluster, or no machine of it can take a submission.
    """

    pause = 0.1
    grace = 0.5

    def __init__(self, init: Mapping[str, Any], share: Share, jobs: int | None = None) -> None:
        import ray

        self.name = f"ray@{socket.gethostname()}"
        self.ours = not ray.is_initialized()
        if self.ours:
            _connect(init)
        try:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            gpus, cpus = _resolve(share, machines)
            task = ray.remote(max_retries=0, num_gpus=gpus, num_cpus=cpus, **share.options)
            self.task = task(serve)
        except (TypeError, ValueError) as e:
            self.close()
            raise ConfigError(f"hydra.launcher: Ray says {_first_line(e)}") from e
        except ConfigError:
            self.close()
            raise
        self.gpus, self.cpus, self.machines = gpus, cpus, len(machines)
        self.anywhere = Slot("ray", (), max(1, int(cpus)))
        self.free = None if jobs is None else deque([self.anywhere] * jobs)
        self.tasks: dict[int, Any] = {}  # references by our own number

    def submit(self, paths: Sequence[Path]) -> list[Handle]:
        handles = []
        for path in paths:
            number = len(self.tasks) + 1
            self.tasks[number] = self.task.remote(str(path))
            handles.append({"id": number, **process(os.getpid())})
        return handles

    def gone(self, handle: Handle) -> Gone | None:
        import ray

        if handle["pid"] != os.getpid() or handle["id"] not in self.tasks:
            # tasks end with the launcher that submitted them
            return None if runs(handle) else Gone("lost its launcher")
        reference = self.tasks[handle["id"]]
        if not ray.wait([reference], timeout=0)[0]:
            return None
        try:
            ray.get(reference)
        except Exception as e:
            cause = f"ended with {type(e).__name__}: {_first_line(e)}"
            return Gone(cause, machine=isinstance(e, lost_machines()))
        return Gone("ended")

    def cancel(self, handles: Sequence[Handle]) -> None:
        import ray

        for handle in handles:
            ray.cancel(self.tasks[handle["id"]])

    def title(self, handle: Handle) -> str:
        return f"ray {handle['id']}"

    def close(self) -> None:
        import ray

        if self.ours:
            ray.shutdown()
            self.ours = False


def lost_machines() -> tuple[type[BaseException], ...]:
    """What Ray raises for a task whose machine, or whose process there, has gone."""
    from ray import exceptions

    # Ray's own `max_retries` would do the same without a word and, where memory ran out, for ever
    return (
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
        exceptions.LocalRayletDiedError,
    )


def _connect(init: Mapping[str, Any]) -> None:
    """Connect this process to a cluster, or start one of its own."""
    # Ray reports its use to its makers otherwise
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    before = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        ray.init(**{**quiet, **init})
    except ConnectionError as e:
        raise ConfigError(
            f"hydra.launcher.address={init.get('address')}: {_first_line(e)} Start the cluster "
            "with `ray start --head`, or use address=local."
        ) from e
    except Exception as e:  # the class itself, where its processes take more than 30 s to start
        ray.shutdown()  # what had been started
        raise ConfigError(f"hydra.launcher: Ray says {_first_line(e)}") from e
    finally:
        signal.signal(signal.SIGTERM, before)  # which Ray would turn into the end of the process


def _resolve(share: Share, machines: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """GPUs and CPUs of one submission, from what the machines of the cluster have."""
    most = max((machine.get("GPU", 0.0) for machine in machines), default=0.0)
    gpus = share.gpus if share.gpus is not None else min(1.0, most)
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus}; use a whole number or a part of one GPU."
        )
    if gpus > most:
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus:g}, but the largest machine of the Ray cluster has "
            f"{most:g} GPUs. Ask for fewer, or 0 for the CPU."
        )
    cpus = share.cpus
    if cpus is None:
        parts = [m.get("CPU", 1.0) / m["GPU"] for m in machines if m.get("GPU", 0.0) >= gpus > 0]
        cpus = float(max(1, math.floor(min(parts) * gpus))) if parts else 1.0
    if cpus > (largest := max((m.get("CPU", 0.0) for m in machines), default=0.0)):
        raise ConfigError(
            f"hydra.launcher.cpus_per_job={cpus:g}, but the largest machine of the Ray cluster has "
            f"{largest:g} cores. Ask for fewer."
        )
    return gpus, cpus


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if "Traceback" in str(error) else 0] if lines else type(error).__name__
