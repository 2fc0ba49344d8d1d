"""One process or many: ranks under `torchrun`, on one or many nodes (Gloo on CPU, NCCL on GPU)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcan.errors import RunError, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The process that writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True where any process says so."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any] | None:
        """Every process's `value` on the first process, None elsewhere."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.first else None
        dist.gather_object(value, values)
        return values

    def share(self, value: Any) -> Any:
        """The first process's `value` everywhere."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first process, on all; so is a `UserError` that it raises."""
        if self.world == 1:
            return work()
        outcome: Any = None
        if self.first:
            try:
                outcome = work()
            except UserError as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        result: T = outcome
        return result


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device of this process; `RunError` where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RunError("train.device is cuda, but torch sees no CUDA device; use cpu or auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    # Resuming to the bit needs the same sums in the same order, as far as kernels offer it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise RunError(f"process {number} of this machine has no GPU of its own; it has {count}")
    return torch.device("cuda", number)


@contextmanager
def ranks(device_name: str) -> Iterator[Ranks]:
    """The processes of this job: those `torchrun` started, or this one alone."""
    device = choose_device(device_name)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
