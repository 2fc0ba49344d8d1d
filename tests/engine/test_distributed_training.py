"""Two Gloo processes against one: the same updates, the same scores, the same errors everywhere."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pytest
import runs
import torch
from runs import Lab
from torch.nn.parallel import DistributedDataParallel

from mcan.engine import trainer
from mcan.engine.trainer import STOP_CHECK_STEPS, Trainer

SLOW = pytest.mark.slow
FULL = ["train.accumulation=2", "train.loss=cross_entropy", "train.clip_norm=0.5"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """41 questions: the last batch of an epoch is one question, fewer than there are pieces."""
    changes = {"model": {"dropout": 0.0}, "optimizer": {"eps": 1e-4, "lr": 0.003}}
    return runs.make_lab(tmp_path_factory.mktemp("lab"), changes, questions=41)


def train_on(world: int, lab: Lab, name: str, *args: str, **options: Any) -> None:
    for result in lab.train_over_ranks(world, name, *args, **options):
        assert result.status == 0, result.err


def assert_close(lab: Lab, one: str, other: str, last: str = "step_00000018.pt") -> None:
    lines, others = runs.metrics_of(lab.run(one)), runs.metrics_of(lab.run(other))
    assert len(lines) == len(others)
    for a, b in zip(lines, others, strict=True):
        loss, expected = a.pop("loss", 0.0), b.pop("loss", 0.0)
        assert loss == pytest.approx(expected, rel=1e-4)
        assert a == b  # the metrics too: every question counted once
    states = [runs.load(lab.run(name) / "checkpoints" / last) for name in (one, other)]
    for name, weight in states[0]["model"].items():
        torch.testing.assert_close(weight, states[1]["model"][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("world", "options"),
    [(2, FULL), *(pytest.param(3, [f"train.loss=bce_{x}"], marks=SLOW) for x in ("sum", "mean"))],
)
def test_processes_train_as_one(lab, world, options, request):
    name = request.node.callspec.id
    assert lab.train(f"{name}_one", *options).status == 0
    train_on(world, lab, name, *options)
    assert_close(lab, f"{name}_one", name)


class SmallBuckets(DistributedDataParallel):
    """Sums the gradients in dozens of buckets instead of one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, bucket_cap_mb=0.0001, **options)


def small_buckets() -> None:
    trainer.DistributedDataParallel = SmallBuckets  # type: ignore[misc]


def test_last_piece_of_a_process_without_questions(lab):
    """The three questions of the last batch leave the first process none in its third piece."""
    options = ["train.accumulation=3", "train.batch_size=19"]
    assert lab.train("thirds_one", *options).status == 0
    train_on(2, lab, "thirds_two", *options, patch=small_buckets)
    assert_close(lab, "thirds_one", "thirds_two", "step_00000009.pt")


def test_killed_and_resumed(lab):
    dropout = ["model.dropout=0.3", *FULL]
    train_on(2, lab, "straight", *dropout)
    kill = runs.at_call(Trainer, "update", 9, runs.die)
    assert [r.status for r in lab.train_over_ranks(2, "killed", *dropout, patch=kill)] == [-9, -9]
    train_on(2, lab, "killed", *dropout, "--resume")
    runs.assert_same(runs.outcome(lab.run("killed")), runs.outcome(lab.run("straight")))


@SLOW
def test_resumed_with_fewer_processes(lab):
    """Without dropout, that is the same training but for rounding; nothing is counted twice."""
    kill = runs.at_call(Trainer, "update", 9, runs.die)
    assert [r.status for r in lab.train_over_ranks(2, "fewer", *FULL, patch=kill)] == [-9, -9]
    assert lab.resume("fewer", *FULL).status == 0
    assert lab.train("one_again", *FULL).status == 0
    assert_close(lab, "fewer", "one_again")


def only(rank: int, patch: Any) -> Any:
    """The patch in one of the processes."""

    def chosen() -> None:
        if os.environ["RANK"] == str(rank):
            patch()

    return chosen


@SLOW
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_to_one_process_stops_all(lab, number, status):
    name = f"signal_{status}"
    stop = only(1, runs.at_call(Trainer, "update", 3, runs.send(number)))
    results = lab.train_over_ranks(2, name, patch=stop)
    assert [r.status for r in results] == [0, status]
    assert runs.steps(lab, name) == [STOP_CHECK_STEPS]
    assert "stopped; continue with" in results[0].err
    assert results[1].err == ""
    train_on(2, lab, name, "--resume")
    train_on(2, lab, f"straight_{status}")
    runs.assert_same(runs.outcome(lab.run(name)), runs.outcome(lab.run(f"straight_{status}")))


def test_mistakes_end_all_processes_alike(lab):
    """Even those that only the first process sees."""
    assert lab.train("there", "train.epochs=1").status == 0
    before = runs.contents(lab.run("there"))
    for result in lab.train_over_ranks(2, "there"):
        assert result.status == 2
        assert result.err.startswith("error: runs/there: this run exists; continue it with --res")
        assert result.err.count("\n") == 1
    assert runs.contents(lab.run("there")) == before
    for result in lab.train_over_ranks(2, "small", "train.batch_size=3", "train.accumulation=2"):
        assert "train.batch_size 3 is less than 2 processes x train.accumulation 2" in result.err


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        (only(1, runs.poison(9)), "a weight is no longer a finite number by step 10"),
        (
            only(0, runs.at_call(Trainer, "update", 9, lambda: runs.no_file_above(20_000))),
            "step_00000010.pt: the checkpoint could not",
        ),
    ],
    ids=["diverged", "disk_full"],
)
def test_failure_in_one_process(lab, patch, sentence, request):
    name = request.node.callspec.id
    for result in lab.train_over_ranks(2, name, patch=patch):
        assert result.status == 1
        assert sentence in result.err.splitlines()[-1]
        assert "Traceback" not in result.err
    assert runs.steps(lab, name) == [6]


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=SLOW)])
def test_evaluation_over_processes(lab, world):
    """Ten questions in three parts; each is predicted once, in the dataset's order."""
    if not lab.run("scored").exists():
        assert lab.train("scored").status == 0
        assert lab.eval("runs/scored", "--top").status == 0
    files = lab.run("scored") / "predictions" / "val_step_00000018"
    one = {path.name: json.loads(path.read_text()) for path in files.iterdir()}
    output = f"over_{world}"
    for result in lab.train_over_ranks(
        world, "runs/scored", "--top", "--output", output, script="eval"
    ):
        assert result.status == 0, result.err
    entries = json.loads((lab.folder / output / "predictions.json").read_text())
    assert json.loads((lab.folder / output / "metrics.json").read_text()) == one["metrics.json"]
    for entry, expected in zip(entries, one["predictions.json"], strict=True):
        assert entry["question_id"] == expected["question_id"]
        assert entry["answer"] == expected["answer"]
        found, there = (
            {x["answer"]: x["probability"] for x in e["top"]} for e in (entry, expected)
        )
        assert found == pytest.approx(there, rel=1e-5)


@SLOW
def test_torchrun(lab):
    """As a user starts it, with as many questions as processes in the last batch."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    train = [*launcher, str(runs.ROOT / "train.py"), lab.config, "name=torchrun", *FULL]
    result = runs.program(*train, cwd=lab.folder)
    assert result.status == 0, result.err
    assert lab.train("single", *FULL).status == 0
    assert_close(lab, "single", "torchrun")
    again = runs.program(*train, cwd=lab.folder)
    assert again.status != 0
    assert "runs/torchrun: this run exists" in again.err
    evaluate = [*launcher, str(runs.ROOT / "eval.py"), "runs/torchrun"]
    result = runs.program(*evaluate, cwd=lab.folder)
    assert result.status == 0, result.err
