"""The arms of a benchmark: processes that take turns, so that all see the same machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any

from mcan.benchmarking.summary import Record
from mcan.benchmarking.turns import Spec
from mcan.errors import RunError
from mcan.progress import progress


@dataclass(frozen=True)
class Arm:
    """`processes` of `threads` threads that measure `spec` together, in `precision`.

    `variables` are added to their environment.
    """

    spec: Spec
    threads: int
    processes: int = 1
    precision: str = "float32"
    variables: Mapping[str, str] = field(default_factory=dict)


def measure(arms: Mapping[str, Arm], repeats: int) -> dict[str, Record]:
    """Of each arm its `start`, its `warm_up` and its `repetitions`, which are interleaved.

    Each arm is a process of its own, whose peak memory is the arm's. Raises `RunError` where one
    ends early.
    """
    results: dict[str, Record] = {}
    with ExitStack() as stack:
        teams = {}
        for name, arm in arms.items():
            teams[name] = stack.enter_context(_team(name, arm))
            results[name] = {
                "threads": arm.threads,
                "processes": arm.processes,
                "precision": arm.precision,
                "start": teams[name].listen(),
                "repetitions": [],
            }
        for number in progress(range(repeats + 1), "repetitions", leave=False):
            for name, team in teams.items():
                result = team.turn()
                if number:
                    results[name]["repetitions"].append(result)
                else:
                    results[name]["warm_up"] = result
    return results


_MERGED: dict[str, Any] = {
    "seconds": max,
    "questions": sum,
    "macs": sum,
    "peak_memory": max,
    "peak_device_memory": max,
}


class _Team:
    """The processes of an arm."""

    def __init__(self, name: str, processes: list[subprocess.Popen[str]], errors: IO[str]) -> None:
        self._name = name
        self._processes = processes
        self._errors = errors

    def turn(self) -> Record:
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.write("go\n")
                process.stdin.flush()
            except BrokenPipeError:
                break  # `listen` tells why
        return self.listen()

    def listen(self) -> Record:
        """What the first process says, with counts summed, and time and memory of the worst."""
        said = [self._line(process) for process in self._processes]
        merged = dict(said[0])
        for key, merge in _MERGED.items():
            values = [part[key] for part in said if part.get(key) is not None]
            if values:
                merged[key] = merge(values)
        return merged

    def _line(self, process: subprocess.Popen[str]) -> Record:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            self._errors.seek(0)
            *_, last = ["it said nothing", *filter(None, self._errors.read().splitlines())]
            raise RunError(f"the arm '{self._name}' ended early: {last.removeprefix('error: ')}")
        result: Record = json.loads(line)
        return result


@contextmanager
def _team(name: str, arm: Arm) -> Iterator[_Team]:
    """The started processes; they end with the block, and so does the folder of their runs."""
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as errors:
        spec = replace(arm.spec, overrides=(*arm.spec.overrides, "name=benchmark", f"runs={runs}"))
        command = [sys.executable, "-m", "mcan.benchmarking.child", spec.dump()]
        port = _free_port() if arm.processes > 1 else 0
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | _surroundings(arm, rank, port),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for rank in range(arm.processes)
        ]
        try:
            yield _Team(name, processes, errors)
            for process in processes:
                process.communicate()  # closes its input, which ends it
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _surroundings(arm: Arm, rank: int, port: int) -> dict[str, str]:
    threads = {name: str(arm.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables = {**threads, **arm.variables}
    if arm.processes == 1:
        return variables
    return variables | {
        "WORLD_SIZE": str(arm.processes),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
