"""Signals, full disks and diverging losses: a message, an exit status, and nothing lost."""

from __future__ import annotations

import errno
import resource
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    Lab,
    Patch,
    assert_same,
    at_call,
    contents,
    die,
    load,
    make_lab,
    outcome,
    send,
)

import mcan.prediction
from mcan.engine.checkpoint import list_checkpoints
from mcan.engine.run_log import RunLog
from mcan.engine.trainer import Trainer

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def expected(lab: Lab) -> Any:
    assert lab.train("uninterrupted").status == 0
    return outcome(lab.run("uninterrupted"))


def steps(lab: Lab, name: str) -> list[int]:
    return [int(path.stem[5:]) for path in list_checkpoints(lab.run(name) / "checkpoints")]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
@pytest.mark.parametrize("step", [8, *(pytest.param(n, marks=SLOW) for n in (1, 18))])
def test_signal_in_a_step(lab, expected, number, status, step):
    name = f"signal_{number}_{step}"
    arguments = [f"name={name}", "data.train=[train]", "data.workers=0"]
    stop = at_call(Trainer, "_update", step, send(number))
    result = lab.execute("train", [lab.config, *arguments], stop)
    assert result.status == status, result.err
    assert steps(lab, name) == [step]  # the step in progress was finished, and no other begun
    last = result.err.splitlines()[-1]
    assert last.startswith("stopped; continue with: python train.py config.yaml ")
    assert result.errors() == []
    # What it says can be typed in.
    command = shlex.split(last.removeprefix("stopped; continue with: python train.py "))
    assert lab.execute("train", command).status == 0
    assert_same(outcome(lab.run(name)), expected)


@pytest.mark.parametrize(
    "patch",
    [
        at_call(mcan.prediction, "predict", 2, send(signal.SIGTERM)),
        at_call(Trainer, "_write_checkpoint", 3, send(signal.SIGTERM)),
    ],
    ids=["in_an_evaluation", "in_a_checkpoint"],
)
def test_signal_elsewhere(lab, expected, patch, request):
    name = request.node.callspec.id
    result = lab.train(name, patch=patch)
    assert result.status == 0, result.err
    assert "stopped; continue with" in result.err
    assert lab.resume(name).status == 0
    assert_same(outcome(lab.run(name)), expected)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, 0, "stopped before training began\n"), (signal.SIGINT, 130, "interrupted\n")],
    ids=["SIGTERM", "SIGINT"],
)
def test_signal_before_training_ends_at_once(lab, number, status, said):
    """Reading large files must not hold up who wants to stop."""
    name = f"early_{status}"
    result = lab.train(name, patch=at_call(Trainer, "fit", 1, send(number)))
    assert result.status == status, result.err
    assert result.err.endswith(said)
    assert "Traceback" not in result.err
    assert not list(lab.run(name).glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=SLOW)],
    ids=["SIGTERM", "SIGINT"],
)
@pytest.mark.parametrize(
    # `topk` is called for each of three batches of an evaluation.
    "where",
    [(Trainer, "_update", 8), (torch.Tensor, "topk", 5)],
    ids=["step", "evaluation"],
)
def test_signal_to_workers_too(lab, expected, number, status, where, request):
    """A scheduler and Ctrl-C signal all processes of a group."""
    name = request.node.callspec.id
    result = lab.train(name, "data.workers=2", patch=at_call(*where, send(number, group=True)))
    assert result.status == status, result.err
    assert "Traceback" not in result.err
    assert lab.resume(name).status == 0
    assert_same(outcome(lab.run(name)), expected, ignore=("name", "workers"))


def test_second_interrupt_ends_at_once(lab, expected):
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    result = lab.train("impatient", patch=at_call(Trainer, "_update", 8, twice))
    assert result.status == 130
    assert result.err.endswith("interrupted\n")
    assert "Traceback" not in result.err
    assert steps(lab, "impatient") == [6]
    assert lab.resume("impatient").status == 0
    assert_same(outcome(lab.run("impatient")), expected)


def test_stopped_before_the_log_grows(lab, expected):
    """The log was cut on resume, and nothing was added to it before the next checkpoint."""
    assert lab.train("shorter", patch=at_call(Trainer, "_update", 9, die)).status == -9
    stop = at_call(Trainer, "_update", 1, send(signal.SIGTERM))
    assert lab.resume("shorter", patch=stop).status == 0
    assert steps(lab, "shorter") == [7]
    assert lab.resume("shorter").status == 0
    assert_same(outcome(lab.run("shorter")), expected)


def no_file_above(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("room", [20_000, pytest.param(40_000, marks=SLOW)])
def test_disk_full_while_writing_a_checkpoint(lab, expected, room):
    """At step 10, when checkpoints of the steps before lie there; a checkpoint has 50 kB."""
    name = f"full_{room}"
    full = at_call(Trainer, "_update", 9, lambda: no_file_above(room))
    result = lab.train(name, patch=full)
    folder = lab.run(name) / "checkpoints"
    assert result.status == 1
    assert len(result.errors()) == 1
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: runs/{name}/checkpoints/step_00000010.pt: the checkpoint could")
    assert line.endswith("free some space and continue with --resume")
    assert "Traceback" not in result.err
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "step_00000006.pt"]
    assert min(path.stat().st_size for path in folder.iterdir()) > room
    assert load(folder / "step_00000006.pt")["position"]["step"] == 6
    assert lab.resume(name).status == 0
    assert_same(outcome(lab.run(name)), expected)


def out_of_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_log(number: int) -> Patch:
    """Half of the line `number` still goes to the disk."""

    def patch() -> None:
        original, calls = RunLog.write, [0]

        class Full:
            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, data: bytes) -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                out_of_space()

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def write(self: RunLog, *args: Any) -> None:
            calls[0] += 1
            if calls[0] == number:
                self._file = Full(self._file)  # type: ignore[assignment]
            original(self, *args)

        RunLog.write = write  # type: ignore[method-assign]

    return patch


@pytest.mark.parametrize(
    "patch",
    [
        full_log(4),
        at_call(torch.utils.tensorboard.SummaryWriter, "add_scalar", 9, out_of_space),
        pytest.param(
            at_call(torch.utils.tensorboard.SummaryWriter, "flush", 3, out_of_space), marks=SLOW
        ),
    ],
    ids=["line", "tensorboard", "tensorboard_flush"],
)
def test_disk_full_while_writing_the_log(lab, expected, patch, request):
    name = request.node.callspec.id
    result = lab.train(name, patch=patch)
    assert result.status == 1
    assert len(result.errors()) == 1
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: runs/{name}/metrics.jsonl: the log could not be written (No sp")
    assert "Traceback" not in result.err
    assert steps(lab, name) == [6]
    assert lab.resume(name).status == 0
    assert_same(outcome(lab.run(name)), expected)


def test_disk_full_while_the_log_is_closed(lab, expected):
    """TensorBoard's own thread may meet the full disk last; all that counts is on the disk."""
    close = at_call(torch.utils.tensorboard.SummaryWriter, "close", 1, out_of_space)
    assert lab.train("closing", patch=close).status == 0
    assert_same(outcome(lab.run("closing")), expected)


def test_disk_full_while_naming_the_best(lab, expected):
    """The first evaluation is the best so far; without hard links its file is copied."""

    def refuse(self: Path, target: Path) -> None:
        no_file_above(20_000)
        out_of_space()

    def patch() -> None:
        Path.hardlink_to = refuse  # type: ignore[method-assign]

    result = lab.train("naming", patch=patch)
    assert result.status == 1
    assert "step_00000006.pt: the checkpoint could not be written" in result.errors()[0]
    assert steps(lab, "naming") == [5]
    assert lab.resume("naming").status == 0
    assert_same(outcome(lab.run("naming")), expected)


def poison(step: int, what: str) -> Patch:
    """Make the loss, or the gradients alone, infinite at a step."""

    def patch() -> None:
        original, calls = Trainer._backward, [0]

        def backward(self: Trainer, *args: Any, **options: Any) -> Any:
            calls[0] += 1
            total = original(self, *args, **options)
            if calls[0] == step and what == "gradient":
                self.model.classifier.weight.grad.fill_(float("inf"))
            return total * float("nan") if calls[0] == step and what == "loss" else total

        Trainer._backward = backward  # type: ignore[method-assign]

    return patch


@pytest.mark.parametrize(
    ("what", "step", "kept", "sentence"),
    [
        ("loss", 9, [6], "the loss stopped being a finite number at step 9 (epoch 2); the last "),
        ("loss", 1, [], "the loss stopped being a finite number at step 1 (epoch 1); no check"),
        # The gradient spoils the weights, which show in the loss of the next step ...
        ("gradient", 8, [6], "the loss stopped being a finite number at step 9 (epoch 2); the l"),
        # ... or when they are about to be written.
        ("gradient", 10, [6], "a weight stopped being a finite number at step 10 (epoch 2); the"),
    ],
)
def test_loss_not_finite(lab, what, step, kept, sentence):
    name = f"{what}_{step}"
    result = lab.train(name, patch=poison(step, what))
    assert result.status == 1
    assert len(result.errors()) == 1
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: {sentence}")
    assert "try a lower optimizer.lr" in line
    assert steps(lab, name) == kept
    for path in (lab.run(name) / "checkpoints").iterdir():
        state = load(path)["model"]
        assert all(bool(value.isfinite().all()) for value in state.values())
    if kept:
        assert f"the last good checkpoint is runs/{name}/checkpoints/step_00000006.pt" in line
    before = contents(lab.run(name) / "checkpoints")
    assert lab.resume(name, patch=poison(step - sum(kept), what)).status == 1
    assert contents(lab.run(name) / "checkpoints") == before


def test_learning_rate_that_diverges(lab):
    result = lab.train("diverging", "optimizer.lr=1e30")
    assert result.status == 1
    assert "stopped being a finite number" in result.errors()[0]
    for path in (lab.run("diverging") / "checkpoints").iterdir():
        assert all(bool(value.isfinite().all()) for value in load(path)["model"].values())
