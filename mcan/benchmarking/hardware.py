"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from mcan.engine.run_folder import describe_environment

# Instructions that decide how fast matrix products are.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def describe_machine() -> dict[str, Any]:
    """Processor, memory in bytes, GPUs and versions."""
    environment = describe_environment()
    processor, flags = _processor()
    return {
        "time": environment["time"],
        "processor": processor,
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "numpy": np.__version__,
        **{key: environment[key] for key in ("gpus", "platform", "python", "torch", "mcan")},
        "revision": environment["revision"],
    }


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _processor() -> tuple[str, set[str]]:
    """Name and instruction sets."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), set(flags.split())
