"""The processes that train one model together, one on each GPU or on cores of a CPU."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftbench.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them

REMARKS = (  # of torch's, which ask for nothing
    "find_unused_parameters=True was specified",  # though every tensor of this model is read
    "Grad strides do not match bucket view strides",  # of a tensor with a side of length one
    "`broadcast_buffers` is deprecated",  # what takes its place is not in older versions
)


@dataclass(frozen=True)
class Part:
    """What one process computes of the images that go through the model at the same time."""

    rows: range  # their positions in the batch
    count: int  # how many of them count; 0 where a process has none and repeats another's
    total: int  # images of all processes

    def scale(self, batch: int, processes: int) -> float:
        """The weight of this part's mean loss: its share of `batch` images.

        torch averages gradients over processes, so that shares of one size would need none of it.
        """
        return self.count * processes / batch


@dataclass(frozen=True)
class World:
    """One of `size` processes that hold the same model and see shares of each batch."""

    rank: int = 0
    size: int = 1

    @property
    def is_single(self) -> bool:
        return self.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes records, checkpoints and logs."""
        return self.rank == 0

    def part(self, piece: slice) -> Part:
        """This process's share of the rows of a batch that go through the model at the same time.

        Shares follow one another and are of nearly equal size. Where there are fewer images than
        processes, some repeat one that does not count, so that all take part in every exchange.
        """
        total = piece.stop - piece.start
        start = piece.start + total * self.rank // self.size
        stop = piece.start + total * (self.rank + 1) // self.size
        if start == stop:
            return Part(range(piece.start, piece.start + 1), 0, total)
        return Part(range(start, stop), stop - start, total)

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module` whose gradients are the means over all processes; alone, itself."""
        if self.is_single:
            return module
        from torch.nn.parallel import DistributedDataParallel

        for remark in REMARKS:
            warnings.filterwarnings("ignore", remark)
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # statistics are those of the whole batch everywhere
            find_unused_parameters=True,  # some released methods have tensors that nothing reads
        )

    @contextlib.contextmanager
    def passing(self, wrapped: nn.Module, part: Part, last: bool) -> Iterator[None]:
        """Around forward and backward of a part; gradients are exchanged in the `last` of a step.

        Batch normalisation sees the images of all processes.
        """
        from torch.nn.parallel import DistributedDataParallel

        from peftbench.training.batchnorm import GlobalStatistics, uses_batch_statistics

        if not isinstance(wrapped, DistributedDataParallel):
            yield
            return
        exchange: AbstractContextManager[Any] = contextlib.nullcontext()
        if not last:
            exchange = wrapped.no_sync()
        statistics: AbstractContextManager[Any] = contextlib.nullcontext()
        if uses_batch_statistics(wrapped):
            statistics = GlobalStatistics(part.count, part.total)
        with exchange, statistics:
            yield

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """`values` (...) summed over the processes, in place."""
        if not self.is_single:
            from torch import distributed

            distributed.all_reduce(values)
        return values

    def all_gather(self, own: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.is_single:
            return [own]
        from torch import distributed

        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, own)
        return parts

    def broadcast(self, value: Any = None) -> Any:
        """The `value` of the process that leads."""
        if self.is_single:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box)
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
    if world.is_single:
        return device
    import torch
    from torch import distributed

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        # words are exchanged on the CPU, where they do not wait for the GPU
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave(world: World) -> None:
    """Say good-bye, so that no process waits for another."""
    if world.is_single:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
