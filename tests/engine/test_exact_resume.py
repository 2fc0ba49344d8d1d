"""A run killed anywhere and resumed ends with the same bits as one that was not interrupted."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from runs import (
    Lab,
    Patch,
    assert_same,
    at_call,
    die,
    load,
    make_lab,
    metrics_of,
    outcome,
)

import mcan.engine.checkpoint
import mcan.engine.trainer
import mcan.prediction
from mcan.engine.checkpoint import list_checkpoints
from mcan.engine.run_log import RunLog
from mcan.engine.trainer import Trainer


def in_a_write(number: int) -> Patch:
    """Dies when half of the checkpoint `number` is written."""

    def patch() -> None:
        original, calls = torch.save, [0]

        def half(content: Any, file: BinaryIO) -> None:
            calls[0] += 1
            whole = io.BytesIO()
            original(content, whole)
            if calls[0] == number:
                file.write(whole.getvalue()[: whole.tell() // 2])
                file.flush()
                die()
            file.write(whole.getvalue())

        torch.save = half  # type: ignore[assignment]

    return patch


def in_a_line(number: int) -> Patch:
    """Dies when half of a line of metrics.jsonl is written."""

    def patch() -> None:
        original, calls = RunLog.write, [0]

        def half(self: RunLog, *args: Any) -> None:
            calls[0] += 1
            if calls[0] == number:
                self._file.write(b'{"kind": "tr')
                self._file.flush()
                die()
            original(self, *args)

        RunLog.write = half  # type: ignore[method-assign]

    return patch


KILLS: dict[str, Patch] = {
    "while_the_run_is_made": at_call(os, "fsync", 1, die),
    "before_the_first_step": at_call(Trainer, "_update", 1, die),
    "before_the_first_checkpoint": at_call(Trainer, "_update", 5, die),
    "between_checkpoints": at_call(Trainer, "_update", 9, die),
    "between_gradient_and_update": at_call(Trainer, "_backward", 9, die, after=True),
    "after_a_checkpoint": at_call(mcan.engine.trainer, "store", 3, die, after=True),
    "in_the_first_checkpoint": in_a_write(1),
    "in_a_checkpoint": in_a_write(3),
    "before_a_checkpoint_is_renamed": at_call(Path, "replace", 5, die),
    "after_a_checkpoint_is_renamed": at_call(Path, "replace", 5, die, after=True),
    "between_the_first_best_and_last": at_call(mcan.engine.checkpoint, "_add_name", 1, die),
    "between_best_and_last": at_call(mcan.engine.checkpoint, "_add_name", 2, die),
    "before_old_ones_are_dropped": at_call(mcan.engine.checkpoint, "list_checkpoints", 3, die),
    "in_an_evaluation": at_call(mcan.prediction, "predict", 2, die, after=True),
    "after_an_evaluation_is_logged": at_call(Trainer, "_write_evaluation", 2, die, after=True),
    "in_a_line_of_the_log": in_a_line(4),
    "in_the_last_epoch": at_call(Trainer, "_update", 17, die),
    "in_the_last_evaluation": at_call(mcan.prediction, "predict", 3, die),
    "in_the_last_checkpoint": in_a_write(6),
    "when_all_is_done": at_call(RunLog, "close", 1, die),
}
"""Eighteen steps; checkpoints are written at 5, 6, 10, 12, 15 and 18, those of 6 and 18 as best."""

QUICK = (
    "while_the_run_is_made",
    "before_the_first_checkpoint",
    "between_checkpoints",
    "in_a_checkpoint",
    "between_best_and_last",
    "in_an_evaluation",
    "in_a_line_of_the_log",
    "in_the_last_epoch",
)
"""The others are tried among the slow tests."""

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"changes": {"train": {"accumulation": 3, "clip_norm": 0.5}}},
    "workers": {"changes": {"data": {"workers": 2}, "train": {"accumulation": 2}}},
    "pixels": {
        "kind": "pixels",
        "metric": "exact",
        "changes": {
            "model": {
                "image": {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}
            },
            "train": {"loss": "cross_entropy"},
            "schedule": {"name": "cosine"},
        },
    },
    "bf16": {"changes": {"train": {"precision": "bf16"}, "optimizer": {"name": "adamw"}}},
    "everything": {
        "boxes": True,
        "grid": True,
        "changes": {
            "data": {"workers": 2, "grid": ["grid.h5"], "residency": "memory"},
            "model": {
                "cascade": "stacking",
                "mca_layer": "sa_sga",
                "image": {"boxes": True, "box_embedding_size": 3},
                "question": {"embedding_size": 6, "encoder": "positional"},
            },
            "train": {"accumulation": 2, "precision": "bf16", "keep_last": 3},
        },
    },
}


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Lab, Any]]:
    """A lab of a variant, and what its uninterrupted run came to; each made once."""
    made: dict[str, tuple[Lab, Any]] = {}

    def make(name: str) -> tuple[Lab, Any]:
        if name not in made:
            options = dict(VARIANTS[name])
            lab = make_lab(tmp_path_factory.mktemp(name), options.pop("changes", None), **options)
            result = lab.train("uninterrupted")
            assert result.status == 0, result.err
            made[name] = lab, outcome(lab.run("uninterrupted"))
        return made[name]

    return make


def kill_and_resume(variant: Any, name: str, kill: str) -> None:
    lab, expected = variant(name)
    run = f"{name}_{kill}"
    shutil.rmtree(lab.run(run), ignore_errors=True)
    killed = lab.train(run, patch=KILLS[kill])
    if kill == "between_best_and_last" and killed.status == 0:
        pytest.skip("no evaluation of this variant is better than its first")
    assert killed.status == -9, killed.err
    for path in list_checkpoints(lab.run(run) / "checkpoints"):
        load(path)  # none is torn
    resumed = lab.resume(run)
    assert resumed.status == 0, resumed.err
    assert_same(outcome(lab.run(run)), expected)
    assert not [path for path in lab.run(run).rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("kill", QUICK)
def test_killed_and_resumed(variant, kill):
    kill_and_resume(variant, "plain", kill)


@pytest.mark.parametrize(("name", "kill"), [("workers", "in_the_last_epoch")])
def test_variant_killed_and_resumed(variant, name, kill):
    kill_and_resume(variant, name, kill)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_killed_everywhere(variant, name, kill):
    kill_and_resume(variant, name, kill)


def test_the_comparison_notices(variant):
    """The control: another seed is not the same."""
    lab, expected = variant("plain")
    assert lab.train("control", "seed=4").status == 0
    found = outcome(lab.run("control"))
    for part in ("model", "optimizer", "config"):
        with pytest.raises(AssertionError):
            assert_same(found["last"][part], expected["last"][part])
    with pytest.raises(AssertionError):
        assert_same(found["metrics"], expected["metrics"])


def test_killed_twice(variant):
    lab, expected = variant("plain")
    assert lab.train("twice", patch=at_call(Trainer, "_update", 9, die)).status == -9
    assert lab.resume("twice", patch=at_call(Trainer, "_update", 6, die)).status == -9
    assert lab.resume("twice", patch=in_a_write(2)).status == -9
    assert lab.resume("twice").status == 0
    assert_same(outcome(lab.run("twice")), expected)


@pytest.mark.slow
def test_killed_at_every_step(variant):
    """Each process does one more step than the checkpoint it started from needs, then dies."""
    lab, expected = variant("plain")
    for attempt in range(1, 60):
        steps = 1 + attempt % 7
        result = lab.resume("often", patch=at_call(Trainer, "_update", steps, die, after=True))
        if result.status == 0:
            break
        assert result.status == -9
    assert_same(outcome(lab.run("often")), expected)


def test_what_changes_no_bit_may_change(variant):
    lab, expected = variant("plain")
    kill = at_call(Trainer, "_update", 9, die)
    assert lab.train("free", "data.workers=2", patch=kill).status == -9
    changes = ["train.checkpoint_every=4", "train.keep_last=1", "data.residency=memory"]
    assert lab.resume("free", "data.workers=1", *changes).status == 0
    assert_same(outcome(lab.run("free")), expected, ignore=("name", "config"))


def test_a_finished_run_is_left_alone(variant):
    lab, expected = variant("plain")
    before = (lab.run("uninterrupted") / "environment.json").read_bytes()
    result = lab.resume("uninterrupted")
    assert result.status == 0
    assert "finished after 3 epochs; nothing to resume" in result.err
    assert_same(outcome(lab.run("uninterrupted")), expected)
    assert (lab.run("uninterrupted") / "environment.json").read_bytes() == before


def test_resume_of_nothing_starts(variant):
    lab, expected = variant("plain")
    assert lab.resume("fresh").status == 0
    assert_same(outcome(lab.run("fresh")), expected)


def test_step_checkpoints_lost(variant):
    """Where the newest are gone, the best one is what there is to go on from."""
    lab, expected = variant("plain")
    assert lab.train("lost", patch=at_call(Trainer, "_update", 9, die)).status == -9
    for path in list_checkpoints(lab.run("lost") / "checkpoints"):
        path.unlink()
    assert lab.resume("lost").status == 0
    assert_same(outcome(lab.run("lost")), expected)


def test_without_hard_links(variant):
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError

    lab, expected = variant("plain")
    assert lab.train("copied", patch=lambda: setattr(Path, "hardlink_to", refuse)).status == 0
    assert_same(outcome(lab.run("copied")), expected)


def test_tensorboard_shows_each_step_once(variant):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lab, _ = variant("plain")
    assert lab.train("board", patch=at_call(Trainer, "_update", 10, die)).status == -9
    assert lab.resume("board").status == 0
    events = EventAccumulator(str(lab.run("board") / "tensorboard"))
    events.Reload()
    lines = [line for line in metrics_of(lab.run("board")) if line["kind"] == "train"]
    assert [event.step for event in events.Scalars("train/loss")] == [x["step"] for x in lines]
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx([line["loss"] for line in lines], rel=1e-6)
