"""What a model costs: latency, multiply-adds, memory. Measured, with the device named."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from peftbench.run.timing import Clock, disturbance
from peftbench.spec import Preprocessing
from peftbench.training.device import Compute, autocast, synchronise
from peftbench.training.evaluate import predict

LATENCY_BATCH = 64
WARMUP_RUNS = 3
MAX_RUNS = 30
BUDGET_SECONDS = 0.5  # of timed runs for one latency
BLOCKS = 3  # in which they come, so that what a machine does for a moment is not in all of them
PAUSE_SECONDS = 0.05  # between two blocks, as a part of the budget at most


@dataclass(frozen=True)
class Timed:
    """Repetitions of one forward pass."""

    seconds: list[float]
    disturbed: str | None  # by what, in a few words

    @property
    def median_ms(self) -> float:
        """Milliseconds of the middle one."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def iqr_ms(self) -> float:
        """Milliseconds between their quartiles, of all blocks together."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return 1e3 * (high - low)


@torch.inference_mode()
def time_forward(model: nn.Module, batch_size: int, image_size: int, compute: Compute) -> Timed:
    """Forward passes on random images, after a warm-up, in `BLOCKS` with pauses between them."""
    model.eval()

    def begin() -> Callable[[], object]:
        x = torch.randn(batch_size, 3, image_size, image_size, device=compute.device)
        return lambda: model(x)

    with autocast(compute):
        return repeated(begin, compute)


def repeated(begin: Callable[[], Callable[[], object]], compute: Compute) -> Timed:
    """Repetitions, in blocks, of the work that `begin` gives at the start of each block."""
    work, start = begin(), time.perf_counter()
    for _ in range(WARMUP_RUNS):
        work()
        synchronise(compute.device)
        if time.perf_counter() - start > BUDGET_SECONDS:  # as long as all that is timed
            break
    runs: list[float] = []
    paused = 0.0
    before = clock(compute.device)
    for block in range(BLOCKS):
        if block:
            pause = time.perf_counter()
            time.sleep(min(PAUSE_SECONDS, BUDGET_SECONDS))
            paused += time.perf_counter() - pause
            work = begin()
        runs += _block(work, compute)
    after = clock(compute.device)
    if after is not None:  # in a pause nobody keeps this process waiting
        after = dataclasses.replace(after, wall=after.wall - paused)
    return Timed(runs, disturbance(runs, before, after, torch.get_num_threads()))


def _block(work: Callable[[], object], compute: Compute) -> list[float]:
    """Seconds of repetitions that follow one another: one at least."""
    runs: list[float] = []
    synchronise(compute.device)
    while not runs or (len(runs) < MAX_RUNS // BLOCKS and sum(runs) < BUDGET_SECONDS / BLOCKS):
        tick = time.perf_counter()
        work()
        synchronise(compute.device)
        runs.append(time.perf_counter() - tick)
    return runs


def clock(device: torch.device) -> Clock | None:
    """The clocks that tell what else this machine does; `None` of a GPU."""
    return Clock.now() if device.type == "cpu" else None


def forward_gmacs(model: nn.Module, image_size: int, weightless: Callable[..., nn.Module]) -> float:
    """Multiply-adds of one forward pass of one image, in 1e9, counted without computing.

    Attention is counted unfused: on a CPU every counter misses the product inside the fused
    kernel, which would make methods that add tokens look cheap.
    """
    copy = weightless(model).eval()
    for module in copy.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() / 2 / 1e9


def measured_gmacs(
    model: nn.Module, images: np.ndarray, preprocessing: Preprocessing, compute: Compute
) -> float:
    """Multiply-adds of one image, in 1e9, by what inference computes of `images` (N, S, S, 3).

    Their mean: a model that skips what it need not compute does less for one than for another.
    Attention is counted unfused, as in `forward_gmacs`, which is how it is left in `model`.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010
    with FlopCounterMode(display=False) as counter:
        predict(model, images, preprocessing, compute)
    return counter.get_total_flops() / 2 / 1e9 / len(images)


def reset_peak(device: torch.device) -> None:
    """Start a new peak of device memory, where the device keeps one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak bytes on a GPU since `reset_peak`; on a CPU the process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux


def device_name(device: torch.device) -> str:
    """The model of a GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return "cpu"
    return "cpu"
