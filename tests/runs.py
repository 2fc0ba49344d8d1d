"""Training and evaluation runs on tiny made-up data, in processes of their own that may be killed.

A process is forked from the test's, which has torch loaded already: it starts in milliseconds, is
killed by real signals, and `patch` can make it fail at an exact point.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorboard.summary.writer.record_writer  # noqa: F401 (loaded once, not in every process)
import torch
import torch._dynamo
import yaml

from mcan.engine.checkpoint import last_checkpoint, list_checkpoints
from mcan.engine.trainer import Trainer
from mcan.errors import command
from mcan.preparation.synthetic import SyntheticPaths, make_synthetic

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")
Patch = Callable[[], None]


@dataclass(frozen=True)
class Result:
    """How a process ended: exit status (-9: SIGKILL) and what it printed."""

    status: int
    out: str
    err: str

    def errors(self) -> list[str]:
        """The lines that report an error; there is no traceback."""
        assert "Traceback" not in self.err
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@cache
def entry_point(name: str) -> ModuleType:
    """An entry point, such as `train` or `scripts/score`, as a module."""
    spec = importlib.util.spec_from_file_location(f"entry_{Path(name).name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Lab:
    """A folder with data and a config; runs go to `runs/`. Commands are run inside `folder`."""

    folder: Path
    data: SyntheticPaths | None = None
    config = "config.yaml"

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def train(self, name: str, *args: str, patch: Patch | None = None) -> Result:
        return self.execute("train", [self.config, f"name={name}", *args], patch)

    def resume(self, name: str, *args: str, patch: Patch | None = None) -> Result:
        return self.train(name, *args, "--resume", patch=patch)

    def eval(self, *args: str, patch: Patch | None = None) -> Result:
        return self.execute("eval", args, patch)

    def execute(self, script: str, args: Sequence[str], patch: Patch | None = None) -> Result:
        """Run an entry point to its end."""
        return self.launch(script, args, patch)()

    def launch(
        self,
        script: str,
        args: Sequence[str],
        patch: Patch | None = None,
        number: int = 0,
        **env: str,
    ) -> Callable[[], Result]:
        """Start an entry point; the function returned waits for its end."""
        module = entry_point(script)
        printed = [self.folder / f"printed_{number}.{stream}" for stream in ("out", "err")]

        def child() -> None:
            os.setpgid(0, 0)
            for descriptor, path in enumerate(printed, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(env)
            os.chdir(self.folder)
            sys.argv = [f"{script}.py", *args]
            if patch is not None:
                patch()
            command(module.main)

        process = FORK.Process(target=child)
        process.start()

        def wait() -> Result:
            # Not join(timeout): it would also wait for workers that outlive a killed process.
            deadline = time.monotonic() + 120
            while process.exitcode is None:
                if time.monotonic() > deadline:
                    process.kill()
                    raise AssertionError(f"{script} hangs: {printed[1].read_text()}")
                time.sleep(0.01)
            return Result(process.exitcode, *(path.read_text() for path in printed))

        return wait

    def train_over_ranks(
        self, world: int, name: str, *args: str, patch: Patch | None = None, script: str = "train"
    ) -> list[Result]:
        """The same, as `torchrun --nproc-per-node world` starts it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [self.config, f"name={name}", *args] if script == "train" else [name, *args]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        waiting = [
            self.launch(script, arguments, patch, n, RANK=str(n), LOCAL_RANK=str(n), **address)
            for n in range(world)
        ]
        return [wait() for wait in waiting]


def program(*command: str, cwd: Path) -> Result:
    """Run a program as a user starts it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500)
    return Result(done.returncode, done.stdout, done.stderr)


SMALL = """
name: small
seed: 3
data: {prepared: prepared, images: [images.h5]}
model:
  hidden_size: 8
  heads: 2
  depth: 1
  dropout: 0.2
  reduction_size: 8
  fusion_size: 12
  question: {embedding_size: 6}
  image: {box_embedding_size: 3, stem: {channels: [4, 6], strides: [2, 2]}}
optimizer: {lr: 0.003}
schedule: {name: plateau, warmup_epochs: 1, decay_after: [2]}
train:
  epochs: 3
  batch_size: 8
  drop_last: false
  device: cpu
  log_every: 4
  checkpoint_every: 5
evaluation: {batch_size: 5}
"""
"""44 questions: six steps an epoch, the last of four questions, 18 in all. Neither log lines nor
checkpoints coincide with epochs or with each other.
"""


def make_lab(folder: Path, changes: dict[str, Any] | None = None, **synthetic: Any) -> Lab:
    """A lab whose config is `SMALL` with `changes` of keys of its sections."""
    sizes: dict[str, Any] = {
        "questions": 44,
        "images": 10,
        "answers": 5,
        "vocabulary": 12,
        "words": dict.fromkeys(range(1, 7), 1),
        "regions": (1, 6),
        "feature_dim": 6,
    }
    data = make_synthetic(folder, **{**sizes, **synthetic})
    config = yaml.safe_load(SMALL)
    for key, value in (changes or {}).items():
        config[key] = value if "name" in value else {**config[key], **value}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return Lab(folder, data)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines]


def load(path: Path | None) -> dict[str, Any]:
    assert path is not None
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def save_sealed(content: Any, path: Path, **options: Any) -> None:
    """Write what `torch.save` can with a right checksum, as `Checkpoint.save` does its fields."""
    torch.save(content, path, **options)
    data = path.read_bytes()
    path.write_bytes(data + f"\nsha256 {hashlib.sha256(data).hexdigest()}\n".encode())


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must be the same after an interruption: compare with `assert_same`."""
    kept = ("model", "optimizer", "position", "loss_since_last_log", "best", "config", "trained_on")
    last, best = load(last_checkpoint(run / "checkpoints")), load(run / "checkpoints" / "best.pt")
    return {
        "last": {key: last[key] for key in kept},
        "best": {key: best[key] for key in kept},
        "metrics": metrics_of(run),
        "files": sorted(str(path.relative_to(run)) for path in (run / "checkpoints").iterdir()),
    }


def assert_same(a: Any, b: Any, where: str = "", ignore: Sequence[str] = ("name",)) -> None:
    """Equal to the bit, in nested dicts and lists; the run's name may differ."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - set(ignore):
            assert_same(a[key], b[key], f"{where}.{key}", ignore)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{number}]", ignore)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte by byte, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def at_call(
    owner: Any, name: str, number: int, act: Callable[[], object], after: bool = False
) -> Patch:
    """A patch: `act` before (or after) the call `number`, counted from 1, of `owner.name`."""

    def patch() -> None:
        original, calls = getattr(owner, name), [0]

        def counted(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and not after:
                act()
            result = original(*args, **options)
            if calls[0] == number and after:
                act()
            return result

        setattr(owner, name, counted)

    return patch


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def send(number: int, group: bool = False) -> Callable[[], None]:
    """Sends a signal to the process, or to it and its workers."""
    return lambda: os.killpg(0, number) if group else os.kill(os.getpid(), number)


def steps(lab: Lab, name: str) -> list[int]:
    """Of the checkpoints of a run."""
    return [int(path.stem[5:]) for path in list_checkpoints(lab.run(name) / "checkpoints")]


def no_file_above(size: int) -> None:
    """From now on, writing more than `size` bytes to a file fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def poison(step: int) -> Patch:
    """Make the gradients of a step infinite."""

    def patch() -> None:
        original, calls = Trainer._backward, [0]

        def backward(self: Trainer, batch: Any, scale: float, **options: Any) -> Any:
            calls[0] += 1
            return original(self, batch, scale if calls[0] != step else float("inf"), **options)

        Trainer._backward = backward  # type: ignore[method-assign]

    return patch
