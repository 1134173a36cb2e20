"""How many images are in memory at a time: as many as the memory that is free has room for."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from peftbench.canonical import declared
from peftbench.results.latencies import Latencies, StepCost
from peftbench.run.bench import Bench
from peftbench.run.ending import PendingRecord
from peftbench.run.latency import network_of
from peftbench.run.simulation import step_cost
from peftbench.run.step import StepPlan
from peftbench.training.batchnorm import uses_batch_statistics
from peftbench.training.hardware import memory_share

# of what a step needs, in memory that an allocator leaves unused: glibc's malloc was measured to
# take 1.11 to 1.45 of it (results/benchmarks/memory_cpu.json); of PyTorch's own on GPUs we have no
# measurement, and its documentation speaks of rounding and splitting alone
HOLES = {"cpu": 1.5, "cuda": 1.15}
AMPLE = 4  # times what steps need
CGROUP = Path("/sys/fs/cgroup")
# of the recipe, what changes a step of a given network
RECIPE_FIELDS = (
    *("optimizer", "batch_size", "momentum", "clip_grad", "mixup", "cutmix", "ema_decay"),
    *("frozen_mode", "decay", "label_smoothing", "consistency", "consistency_interval"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of the memory that a device computes in."""

    free: int
    total: int

    def share(self, part: float) -> int:
        """What is free, as far as it is within this part of all."""
        return min(self.free, int(part * self.total))


def memory_of(device: torch.device) -> Memory:
    """Of a GPU, or of the machine or the container that limits this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(free, total)
    machine = psutil.virtual_memory()
    limit = _number(CGROUP / "memory.max")
    if limit is None:
        return Memory(machine.available, machine.total)
    left = limit - (_number(CGROUP / "memory.current") or 0)
    return Memory(min(machine.available, max(0, left)), min(machine.total, limit))


def _number(file: Path) -> int | None:
    """The number in a file of the kernel; `None` where there is none, such as "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


def fitted(pending: PendingRecord, bench: Bench, known: Latencies) -> tuple[Bench, StepCost | None]:
    """`bench` with as many images in memory at a time as fit, and what a whole batch would take.

    A micro-batch that was asked for stays. Where batch normalisation trains, parts of a batch
    would give other numbers than the whole, so that there is only a note. The cost is `None`, with
    a note, where the model has an operation that is not defined without storage; and of a method
    that takes no steps.
    """
    if bench.tuned.method.card.solved:
        return bench, None
    try:
        step = _known_cost(bench, known)
    except (RuntimeError, NotImplementedError) as e:
        pending.notes.append(f"training_gflops and kept_bytes: not counted, {_line(e)}")
        return bench, None
    if bench.compute.micro_batch is None:
        images = _images_that_fit(pending, bench, step)
        images = min(bench.compute.world.all_gather(images))
        if images < bench.spec.recipe.batch_size:
            compute = dataclasses.replace(bench.compute, micro_batch=images)
            bench = dataclasses.replace(bench, compute=compute)
            pending.notes.append(f"trained with {images} images in memory at a time")
    pending.micro_batch = bench.compute.micro_batch
    return bench, step


def is_ample(device: torch.device, step: StepCost | None, trials: int) -> bool:
    """Whether a CPU's memory is so much more than these trials take that none need be given back.

    Between the blocks of a training that is over, those of an evaluation have found 28 % more.
    """
    if step is None or device.type != "cpu":
        return False
    return AMPLE * trials * step.peak_bytes <= memory_of(device).share(memory_share())


def trials_that_fit(bench: Bench, step: StepCost) -> int:
    """How many trials may train at once, each of which takes a `step` of its own."""
    device = bench.compute.device
    free = memory_of(device).share(memory_share())
    own = step.peak_bytes - _bytes(bench.tuned.model)  # what is frozen is there once
    return int(free // max(1.0, HOLES.get(device.type, 1.0) * own))


def _images_that_fit(pending: PendingRecord, bench: Bench, whole: StepCost) -> int:
    """The whole batch, or the half of it, the quarter and so on that fits the memory."""
    compute, batch = bench.compute, bench.spec.recipe.batch_size
    free = memory_of(compute.device).share(memory_share())
    there = _bytes(bench.tuned.model)  # already in memory
    holes = HOLES.get(compute.device.type, 1.0)
    images, step = batch, whole
    if compute.world.size > 1:
        step = _cost(bench, batch)
    while (needed := int(holes * (step.peak_bytes - there))) > free and images > 1:
        if images == batch and _normalises_batches(bench):
            pending.notes.append(
                f"a step may need {_size(needed)} where {_size(free)} are free; it is not divided, "
                "because batch normalisation trains"
            )
            return batch
        images = max(1, images // 2)
        step = _cost(bench, images)
    return images


def _known_cost(bench: Bench, known: Latencies) -> StepCost:
    """What a step of a whole batch in one process takes: known of the same network, or new."""
    recipe = declared(bench.spec.recipe)
    of = network_of(bench.tuned.model, bench, merged=False)
    of["step"] = {name: recipe[name] for name in RECIPE_FIELDS if name in recipe}
    found = known.find_step(of)
    if found is None:
        found = step_cost(_plan(bench), bench.spec.recipe.batch_size, bench.compute.alone())
        known.keep(of, found)
    return found


def _cost(bench: Bench, images: int) -> StepCost:
    """Of so many images, of which each process has its share."""
    own = -(-images // bench.compute.world.size)
    return step_cost(_plan(bench), own, bench.compute.alone())


def _plan(bench: Bench) -> StepPlan:
    return StepPlan(
        bench.tuned,
        bench.spec.recipe,
        bench.backbone.preprocessing,
        bench.splits.num_classes,
        bench.spec.task,
    )


def _normalises_batches(bench: Bench) -> bool:
    bench.tuned.train(bench.spec.recipe.frozen_mode)
    answer = uses_batch_statistics(bench.tuned.model)
    bench.tuned.model.eval()  # as it was
    return answer


def _bytes(model: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
