"""What a training step takes, found without computing it: the step of a copy without storage.

The same operations run on tensors that have shapes and no content (PyTorch's meta device), so that
ViT-H needs no memory and no weights. What kernels take for themselves is not seen, but for a
constant: buffers of oneDNN and cuDNN. Nor are holes that an allocator leaves.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from peftbench.backbones.copies import without_graph
from peftbench.backbones.kernels import is_fused_faster
from peftbench.methods import surgery
from peftbench.methods.applied import Tuned
from peftbench.results.latencies import StepCost
from peftbench.run.activations import counting_kept
from peftbench.run.step import Step, StepPlan
from peftbench.training.device import Compute

META = torch.device("meta")
# bytes of small blocks, of pages that are not full and of buffers of matrix products, on any model:
# 1.5 to 3 MB were measured on the smallest (results/benchmarks/memory_cpu.json); of a GPU what
# PyTorch gives cuBLAS at most, not measured here
# (https://docs.pytorch.org/docs/stable/notes/cuda.html#cublas-workspaces)
WORKSPACE = {"cpu": 2 * 10**6, "cuda": 32 * 2**20}


class LiveBytes(TorchDispatchMode):
    """Inside, bytes of all storages that operations make and that are not freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` (...) until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, Tensor):
                self.add(item)
        self.peak = max(self.peak, self.now)
        return out


def step_cost(plan: StepPlan, images: int, compute: Compute) -> StepCost:
    """What a step of `images` images takes where `compute` says, in its arithmetic.

    The peak is that of weights, gradients, state of the optimiser, averages, kept activations and
    the tensors between, of any step but the first, and `WORKSPACE`. Operations are those of the
    plan on a CPU: attention in products that a counter sees. A method's regulariser is not among
    them.

    Raises:
        NotImplementedError, RuntimeError: an operation that has no form without storage.
    """
    fused = _has_attention(plan) and is_fused_faster(compute.device, compute.dtype)
    plain = not fused and compute.dtype is torch.float32
    if not plain:
        _start_autograd()
    with contextlib.nullcontext() if plain else FakeTensorMode():
        device = META if plain else compute.device
        simulated = _simulate(plan, images, compute, device, fused=fused)
    if not fused:
        return simulated
    counted = _simulate(plan, images, Compute(torch.device("cpu"), torch.float32), META)
    return dataclasses.replace(simulated, training_gflops=counted.training_gflops)


def _start_autograd() -> None:
    """Let autograd start its threads, one a device, before there are fake tensors.

    These make PyTorch believe in a GPU. Autograd would start a thread for it, and then refuses to
    work in any process that is forked from this one.
    """
    torch.ones((), requires_grad=True).backward()


def _has_attention(plan: StepPlan) -> bool:
    """Whether a kernel of attention is chosen.

    The meta device knows neither autocast nor kernels of attention; fake tensors, which do, take
    four times as long.
    """
    return any(hasattr(module, "fused_attn") for module in plan.tuned.model.modules())


def _simulate(
    plan: StepPlan, images: int, compute: Compute, device: torch.device, *, fused: bool = False
) -> StepCost:
    tuned = without_storage(plan.tuned, device, fused=fused)
    live, counter = LiveBytes(), FlopCounterMode(display=False)
    weights = [*tuned.model.parameters(), *tuned.model.buffers()]
    for tensor in weights:
        live.add(tensor)
    with live, counter:
        step = Step(dataclasses.replace(plan, tuned=tuned), compute, device)
        x, target = step.batch(images)
        with counting_kept(weights) as kept:
            total = step.forward(x, target)
        kept_bytes = kept.bytes
        kept.storages.clear()  # or they would outlive the graph
        total.backward()
        del total
        passes, before = live.peak, live.now
        step.update()
    state = live.now - before  # of the optimiser, which the first step begins without
    gflops = counter.get_total_flops() / images / 1e9
    peak = max(passes + state, live.peak) + WORKSPACE.get(compute.device.type, 0)
    return StepCost(kept_bytes, gflops, peak)


def without_storage(tuned: Tuned, device: torch.device, *, fused: bool = False) -> Tuned:
    """A copy of `tuned` on `device`, meta or that of fake tensors, whose tensors hold nothing.

    The same parameters train. With `fused`, attention runs in one kernel.
    """
    memo = without_graph(tuned.model)
    for parameter in tuned.model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    for buffer in tuned.model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    model, objective = copy.deepcopy((tuned.model, tuned.objective), memo)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010
    paths = {id(module): path for path, module in tuned.model.named_modules()}
    parameters = dict(model.named_parameters())

    def twins(of: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return {name: parameters[name] for name in of}

    twin = dataclasses.replace(
        tuned,
        model=model,
        method_params=twins(tuned.method_params),
        unfrozen_params=twins(tuned.unfrozen_params),
        head_params=twins(tuned.head_params),
        changing_buffers={name: model.get_buffer(name) for name in tuned.changing_buffers},
        train_modules=tuple(
            model.get_submodule(paths[id(module)]) for module in tuned.train_modules
        ),
        frozen_modules=tuple(
            model.get_submodule(paths[id(module)]) for module in tuned.frozen_modules
        ),
        regulariser=None,  # it would read the original's tensors
        after_step=None,
        objective=objective,
    )
    surgery.freeze_except(model, twin.trainable.values())
    return twin
