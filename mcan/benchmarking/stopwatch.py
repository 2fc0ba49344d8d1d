"""Time by phase and peak memory, on CPU and GPU."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import torch


class Stopwatch:
    """Attributes the time since the last mark to a named phase.

    On a GPU the marks are events in its queue of work: nothing waits for it until `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        self._marks = []
        if self._gpu:
            torch.cuda.synchronize()
        self.mark("")

    def mark(self, phase: str) -> None:
        """What happened since the last mark was `phase`."""
        if not self._gpu:
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((phase, event))

    def read(self) -> dict[str, float]:
        """Seconds of each phase since `start`."""
        if self._gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (_, before), (phase, after) in pairwise(self._marks):
            seconds[phase] += _between(before, after)
        return dict(seconds)


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event):
        assert isinstance(after, torch.cuda.Event)
        return float(before.elapsed_time(after)) / 1000
    assert isinstance(after, float)
    return after - before


def peak_memory(process: int | str = "self") -> int:
    """Most bytes of main memory that a process has held at once."""
    try:
        # Not ru_maxrss where it can be helped: it begins with the peak of the process that forked.
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        return 1024 * next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_device_memory(device: torch.device) -> int | None:
    """Most bytes of GPU memory that tensors have held at once; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
