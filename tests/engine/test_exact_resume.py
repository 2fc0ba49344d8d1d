"""A run killed anywhere and resumed is bit-identical to one that was not interrupted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
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
    metrics_of,
    outcome,
)

import mcan.build
import mcan.engine.checkpoint
import mcan.engine.trainer
from mcan.config import load_config
from mcan.engine.checkpoint import Checkpoint, list_checkpoints
from mcan.engine.run_folder import RunLog
from mcan.engine.trainer import Trainer


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


QUICK: dict[str, Patch] = {
    "while_the_run_is_made": at_call(os, "fsync", 1, die),
    "before_the_first_checkpoint": at_call(Trainer, "update", 5, die),
    "between_checkpoints": at_call(Trainer, "update", 9, die),
    "in_a_checkpoint": at_call(torch, "save", 3, die, after=True),
    "between_best_and_last": at_call(Checkpoint, "save", 8, die),
    "in_an_evaluation": at_call(mcan.build, "predict", 2, die, after=True),
    "in_a_line_of_the_log": in_a_line(4),
    "in_the_last_epoch": at_call(Trainer, "update", 17, die),
}
"""Eighteen steps; checkpoints are written at 5, 6, 10, 12, 15 and 18, those of 6 and 18 as best."""

KILLS: dict[str, Patch] = {
    **QUICK,
    "before_the_first_step": at_call(Trainer, "update", 1, die),
    "between_gradient_and_update": at_call(Trainer, "_backward", 9, die, after=True),
    "after_a_checkpoint": at_call(mcan.engine.trainer, "save_newest", 3, die, after=True),
    "in_the_first_checkpoint": at_call(torch, "save", 1, die, after=True),
    "before_a_checkpoint_is_renamed": at_call(Path, "replace", 5, die),
    "after_a_checkpoint_is_renamed": at_call(Path, "replace", 5, die, after=True),
    "between_the_first_best_and_last": at_call(Checkpoint, "save", 3, die),
    "before_old_ones_are_dropped": at_call(mcan.engine.checkpoint, "list_checkpoints", 3, die),
    "after_an_evaluation_is_logged": at_call(RunLog, "write", 6, die, after=True),
    "in_the_last_evaluation": at_call(mcan.build, "predict", 3, die),
    "in_the_last_checkpoint": at_call(torch, "save", 7, die, after=True),
    "when_all_is_done": at_call(RunLog, "close", 1, die),
}

VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    # name: (data, overrides)
    "plain": ({}, []),
    "workers": ({}, ["data.workers=2", "train.accumulation=3", "train.clip_norm=0.5"]),
    "pixels": (
        {"kind": "pixels", "metric": "exact"},
        ["model.image.input=pixels", "train.loss=cross_entropy", "schedule.name=cosine"],
    ),
    "everything": (
        {"boxes": True, "grid": True},
        [
            *("data.workers=2", "data.grid=[grid.h5]", "data.residency=memory"),
            *("model.cascade=stacking", "model.image.boxes=true"),
            *("model.question.encoder=positional", "optimizer.name=adamw"),
            *("train.accumulation=2", "train.precision=bf16", "train.keep_last=3"),
        ],
    ),
}


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Lab, Any]]:
    """A lab of a variant, and what its uninterrupted run came to; each made once."""
    made: dict[str, tuple[Lab, Any]] = {}

    def make(name: str) -> tuple[Lab, Any]:
        if name not in made:
            data, overrides = VARIANTS[name]
            lab = make_lab(tmp_path_factory.mktemp(name), **data)
            result = lab.train("uninterrupted", *overrides)
            assert result.status == 0, result.err
            made[name] = lab, outcome(lab.run("uninterrupted"))
        return made[name]

    return make


def kill_and_resume(variant: Any, name: str, kill: str) -> None:
    (lab, expected), overrides = variant(name), VARIANTS[name][1]
    run = f"{name}_{kill}"
    shutil.rmtree(lab.run(run), ignore_errors=True)
    killed = lab.train(run, *overrides, patch=KILLS[kill])
    if kill == "between_best_and_last" and killed.status == 0:
        pytest.skip("no evaluation of this variant is better than its first")
    assert killed.status == -9, killed.err
    for path in list_checkpoints(lab.run(run) / "checkpoints"):
        load(path)  # none is torn
    resumed = lab.resume(run, *overrides)
    assert resumed.status == 0, resumed.err
    assert_same(outcome(lab.run(run)), expected)
    assert not [path for path in lab.run(run).rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize(
    ("name", "kill"), [*(("plain", kill) for kill in QUICK), ("workers", "in_the_last_epoch")]
)
def test_killed_and_resumed(variant, name, kill):
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


@pytest.mark.slow
def test_killed_at_every_step(variant):
    """Each process does one more step than the checkpoint it started from needs, then dies."""
    lab, expected = variant("plain")
    for attempt in range(1, 60):
        steps = 1 + attempt % 7
        result = lab.resume("often", patch=at_call(Trainer, "update", steps, die, after=True))
        if result.status == 0:
            break
        assert result.status == -9
    assert_same(outcome(lab.run("often")), expected)


def test_what_changes_no_bit_may_change(variant):
    lab, expected = variant("plain")
    assert lab.train("free", "data.workers=2", patch=QUICK["between_checkpoints"]).status == -9
    changes = ["train.checkpoint_every=4", "train.keep_last=1", "data.residency=memory"]
    assert lab.resume("free", "data.workers=1", *changes).status == 0
    assert_same(outcome(lab.run("free")), expected, ignore=("name", "config"))


@pytest.mark.parametrize("stop", [None, "between_checkpoints"])
def test_more_epochs(variant, stop):
    """A run that was finished or killed goes on for longer, as if it had been planned so."""
    lab, expected = variant("plain")
    name = f"longer_{stop}"
    first = lab.train(name, "train.epochs=2", patch=QUICK[stop] if stop else None)
    assert first.status == (-9 if stop else 0)
    assert lab.resume(name).status == 0
    assert_same(outcome(lab.run(name)), expected)
    assert load_config(lab.run(name) / "config.yaml").train.epochs == 3
    assert "nothing to resume" in lab.resume(name).err


def test_other_epochs_that_change_what_was_done(variant):
    lab, _ = variant("plain")
    cosine = ("schedule={name: cosine, warmup_epochs: 1}",)
    assert lab.train("planned", "train.epochs=2", "train.keep_last=3", *cosine).status == 0
    before = contents(lab.run("planned"))
    (error,) = lab.resume("planned", *cosine).errors()
    assert "with train.epochs=3 instead of 2, schedule.name=cosine gives other" in error
    assert "train.init_from.checkpoint=runs/planned" in error
    (error,) = lab.resume("planned", "train.epochs=1", *cosine).errors()
    assert "begun with train.epochs=2; it can be resumed with more, but not with 1" in error
    assert contents(lab.run("planned")) == before
    # Within the warm-up, both schedules are the same.
    warm = ("schedule={name: cosine, warmup_epochs: 2}",)
    assert lab.train("warm", "train.epochs=2", *warm).status == 0
    assert lab.resume("warm", *warm).status == 0
    assert lab.train("warm_from_the_start", *warm).status == 0
    longer, expected = (outcome(lab.run(name)) for name in ("warm", "warm_from_the_start"))
    assert_same(longer, expected, ignore=("name", "epochs"))  # the best one is of the first part


def test_a_finished_run_is_left_alone_and_a_missing_one_started(variant):
    lab, expected = variant("plain")
    assert lab.resume("fresh").status == 0
    before = (lab.run("fresh") / "environment.jsonl").read_bytes()
    result = lab.resume("fresh")
    assert result.status == 0
    assert "finished after 18 steps; nothing to resume" in result.err
    assert_same(outcome(lab.run("fresh")), expected)
    assert (lab.run("fresh") / "environment.jsonl").read_bytes() == before


def test_step_checkpoints_lost(variant):
    """If the newest are gone, the run goes on from the best one."""
    lab, expected = variant("plain")
    assert lab.train("lost", patch=QUICK["between_checkpoints"]).status == -9
    for path in list_checkpoints(lab.run("lost") / "checkpoints"):
        path.unlink()
    assert lab.resume("lost").status == 0
    assert_same(outcome(lab.run("lost")), expected)


@pytest.mark.parametrize("clock", [0, -3, -(10**6)])
def test_tensorboard_shows_each_step_once(variant, clock):
    """Also if the clock is set back by some seconds before each of two resumes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lab, _ = variant("plain")
    name, now = f"board{clock}", time.time

    def at(launch: int, stop: Patch = lambda: None) -> Patch:
        def patch() -> None:
            time.time = lambda: now() + launch * clock  # type: ignore[method-assign]
            stop()

        return patch

    for launch, updates in enumerate((8, 4)):
        kill = at(launch, at_call(Trainer, "update", updates, die))
        assert lab.resume(name, patch=kill).status == -9
    assert lab.resume(name, patch=at(2)).status == 0
    events = EventAccumulator(str(lab.run(name) / "tensorboard"))
    events.Reload()
    lines = {kind: [] for kind in ("train", "evaluation")}
    for line in metrics_of(lab.run(name)):
        lines[line["kind"]].append(line)
    types = lines["evaluation"][0]["per_answer_type"]
    shown = ["train/loss", "train/lr", "train/samples_per_s", "evaluation/overall"]
    shown += [f"evaluation/per_answer_type/{each}" for each in types]
    assert sorted(events.Tags()["scalars"]) == sorted(shown)
    for kind, tag in (("train", "loss"), ("evaluation", "overall")):
        points = events.Scalars(f"{kind}/{tag}")
        assert [point.step for point in points] == [line["step"] for line in lines[kind]]
        values = [line[tag] for line in lines[kind]]
        assert [point.value for point in points] == pytest.approx(values, rel=1e-6)
