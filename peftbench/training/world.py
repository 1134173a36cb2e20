"""The processes that train one model together, one on each GPU or on cores of a CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peftbench.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them


@dataclass(frozen=True)
class World:
    """One of `size` processes that hold the same model and see shares of each batch.

    Gradients are added up, not averaged: each process divides its loss by the images of the whole
    batch, so that shares may be uneven, or empty, and the step is that of one process with the
    whole batch. torch's DistributedDataParallel averages over processes, which is the mean over
    images only if their shares are equal.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process writes records, checkpoints and logs."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """This process's part of `length` things, which are dealt out in order."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)

    def add_up(self, values: Tensor) -> Tensor:
        """`values` summed over the processes, in place."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradient of the whole batch in every process; none where no process has one."""
        if self.alone:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters])
        device = parameters[0].device
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float()
            for p in parameters
        ]
        flat = self.add_up(torch.cat([*parts, has.to(device)]))
        executed = flat[-len(parameters) :].tolist()
        start = 0
        for p, ran in zip(parameters, executed, strict=True):
            p.grad = flat[start : start + p.numel()].view_as(p).to(p.dtype) if ran else None
            start += p.numel()

    def collect(self, own: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.alone:
            return [own]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, own)
        return parts

    def told(self, value: Any = None) -> Any:
        """The `value` of the process that leads."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


ALONE = World()


def from_environment() -> World:
    """This process's place as torchrun, or `processes=N`, put it into the environment.

    Raises:
        ConfigError: the variables are incomplete.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1 or "RANK" not in os.environ:
        return ALONE
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not in the environment beside RANK and WORLD_SIZE. Start the "
            "processes with torchrun, or one run with processes=N."
        )
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def join(world: World, device: torch.device) -> torch.device:
    """Meet the other processes; returns the device of this one."""
    if world.alone:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave(world: World) -> None:
    """Say good-bye, so that no process waits for another."""
    if not world.alone and dist.is_initialized():
        dist.destroy_process_group()
