"""How much memory is free."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path("/")


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take; None where nobody says.

    On a GPU what torch reports, on Linux the available memory within the limits of control groups
    (version 2: containers, Slurm).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = None
    with suppress(OSError, TypeError):
        found = re.search(r"MemAvailable:\s*([0-9]+) kB", (ROOT / "proc/meminfo").read_text())
        free = 1024 * int(found[1])  # type: ignore[index]
        groups, group = ROOT / "sys/fs/cgroup", (ROOT / "proc/self/cgroup").read_text()
        folder = groups / group.strip().rpartition("::/")[2]
        while folder.is_relative_to(groups):
            with suppress(OSError, ValueError, KeyError):
                limit = int((folder / "memory.max").read_text())  # or "max"
                used = int((folder / "memory.current").read_text())
                # Pages of files count as used, but are given up when memory is needed.
                text = (folder / "memory.stat").read_text()
                counts = {name: int(n) for name, n in map(str.split, text.splitlines())}
                free = min(free, limit - used + counts["file"] - counts["shmem"])
            folder = folder.parent
    return free


def processes_here(device: torch.device) -> int:
    """How many processes of this job share the memory of `device`."""
    return 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
