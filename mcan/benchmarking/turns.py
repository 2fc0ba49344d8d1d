"""How measuring processes take turns: one line in, one repetition, one line of JSON out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mcan.benchmarking.stopwatch import peak_device_memory, peak_memory
from mcan.engine.run_folder import describe_environment


@dataclass(frozen=True)
class Spec:
    """What a process measures: a name of `child.JOBS`, and a config with overrides.

    Training does `steps` updates per repetition; the baseline's loader reads the folder `files`.
    """

    job: str
    config: str
    overrides: tuple[str, ...]
    steps: int = 1
    files: str = ""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Spec:
        values = json.loads(text)
        return cls(**values | {"overrides": tuple(values["overrides"])})


class Turns:
    """A measuring process's side of the conversation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = False

    def wait(self) -> None:
        """Until it is this process's turn; raises `SystemExit` where there are no more."""
        if not self._begun:
            self._begun = True
            environment = describe_environment()
            del environment["command"]  # names temporary folders
            self._say(environment=environment)
        if not sys.stdin.readline():
            raise SystemExit(0)

    def report(self, **result: Any) -> None:
        self._say(**result)

    def _say(self, **values: Any) -> None:
        values["peak_memory"] = peak_memory()
        values["peak_device_memory"] = peak_device_memory(self._device)
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()
