"""The processes of a run: who this one is, and the few collectives that the trainer needs.

torchrun starts the processes and says so in the environment; without it a run is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from prismcap.configs.errors import ConfigError

ResultT = TypeVar("ResultT")

# one rank may draw and encode pictures for a long while before the others hear of it
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. Every method is collective: all ranks call it, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in double precision."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Element-wise maximum over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        """Wait for every rank."""
        # a reduction, because dist.barrier() picks its device by itself under nccl
        self.sum([0.0])

    def gather(self, value: ResultT) -> list[ResultT]:
        """Each rank's (small, picklable) value, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, function: Callable[[], ResultT]) -> ResultT:
        """Run on rank 0; its result, or its error, on every rank."""
        if self.world_size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:  # noqa: BLE001 - raised again below, on every rank
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: ResultT = outcome[0]
        return result


def pick_device(local_rank: int = 0) -> torch.device:
    """The GPU of this local rank, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK={local_rank}, but this machine shows {torch.cuda.device_count()} GPU(s): "
            "start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def process_group() -> Iterator[Ranks]:
    """The ranks that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or a single process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
