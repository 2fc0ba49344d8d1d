"""One process or many under `torchrun`, on one or many nodes; devices; signals that stop a run."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mcan.console import message
from mcan.errors import RunError, TrainingError, UserError

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|bad_alloc|ALLOC_FAILED", re.I)
_LESS_MEMORY = (
    "out of memory; raise train.accumulation or lower train.batch_size (evaluation.batch_size); "
    "train.precision=bf16 and data.residency=disk also save memory"
)
Deterministic = Literal[False, "warn", True]


@dataclass(frozen=True)
class Processes:
    """This process among `world` processes, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The process that writes files and messages."""
        return self.rank == 0

    def print_once(self, text: str) -> None:
        """A message on standard error, from one process."""
        if self.first:
            message(text)

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True if `flag` is true in any process."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` on the first process, an empty list elsewhere."""
        if self.world == 1:
            return [value]
        values = [None] * self.world if self.first else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """The first process's `value`, on all processes."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def run_on_first(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the first process alone; all return its result or raise its error."""
        outcome = None
        if self.first:
            try:
                outcome = work()
            except (UserError, OSError) as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def choose_device(name: str, world: int = 1, option: str = "train.device") -> torch.device:
    """The device that `name` means for this one of `world` processes; see `processes`.

    Error messages name the `option` that chose it.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        raise RunError(f"there is no device {name!r}; use auto, cpu, cuda, cuda:0, cuda:1, ...")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, index = name.partition(":")
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise RunError(f"{option} is {name}, but torch sees no CUDA device; use cpu or auto")
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= count or (index and world > 1):
        raise RunError(
            f"{option} is {name}, but each process needs a GPU of its own: torch sees {count}, "
            f"from cuda:0, for {world} processes"
        )
    return torch.device("cuda", number)


@contextmanager
def processes(name: str, deterministic: Deterministic = "warn") -> Iterator[Processes]:
    """The processes of this job: those that `torchrun` started, or this one alone.

    `name` is `auto`, `cpu`, `cuda` or `cuda:1`; `RunError` if there is no such device. Under
    torchrun, each process takes the GPU of its local rank. On a GPU, `deterministic` decides on
    kernels that give equal bits each time: take them where torch has them ("warn"), require them
    (True), or take the fastest (False). What a key can cure inside is a `TrainingError`: too little
    memory, a kernel without a deterministic form.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(name, world)
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
            # Filling every new tensor costs time, and no result depends on it.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.cuda.set_device(device)
    try:
        if world == 1:
            yield Processes(device)
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield Processes(device, dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
            raise TrainingError(_LESS_MEMORY) from error
        if "use_deterministic_algorithms" in text:
            remedy = "use train.deterministic=warn"
            raise TrainingError(f"{text.split('. ')[0]}; {remedy}") from error
        raise


class Interrupted(BaseException):
    """A stop signal arrived while a process waited for something that may never come."""


@dataclass
class StopRequest:
    """Which signal asked to stop, if any.

    `training` says that there is a step to finish; `waiting`, that `Interrupted` may be raised.
    """

    signal: int | None = None
    training: bool = False
    waiting: bool = False

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C; 0 for a scheduler, which takes the machine back."""
        return 130 if self.signal == signal.SIGINT else 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Before training, and for a second Ctrl-C, stop at once; else after the step."""
        if number == signal.SIGINT and (self.signal == number or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            message("stopped before training began")
            raise SystemExit(0)
        self.signal = number
        if self.waiting:
            self.waiting = False
            raise Interrupted


@contextmanager
def on_signals(
    numbers: Iterable[int], handle: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Call `handle` instead of dying; signals that are ignored (`nohup`) stay ignored."""
    caught = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
