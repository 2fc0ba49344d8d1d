"""outcome_<split>.json: written, read back, and every damage told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcan.errors import RunError
from mcan.tables.outcome import Outcome, outcome_path, read_outcome, write_outcome
from mcan.tables.plan import PlannedRun, plan
from mcan.tables.spec import load_table

TABLE = """\
title: T
source: S
verified: true
dataset: d
base: config.yaml
split: val
columns: [overall]
rows: [{name: a}]
"""
OUTCOME = Outcome(
    split="val",
    metrics={
        "n": 4000,
        "overall": 60,
        "per_answer_type": {"yes/no": 80.5, "": 3},
        "per_question_type": {},
        "metric": "vqa",
        "upper_bound": 95.0,
    },
    submission=None,
    dataset="d",
    digest="a",
    trained_on=[
        {"dataset": "d", "split": "train", "questions": 3, "digest": "a", "content": "b"},
    ],
    seconds=1.5,
)


@pytest.fixture
def run(tmp_path, monkeypatch) -> PlannedRun:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("name: run\ndata: {prepared: prepared, images: [r.h5]}\n")
    Path("t.yaml").write_text(TABLE)
    (run,) = plan(load_table("t.yaml"))
    write_outcome(run, OUTCOME)
    return run


def test_what_was_written_is_read(run):
    assert read_outcome(run) == OUTCOME


def change(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def at(content: Any) -> None:
        *above, last = keys
        for key in above:
            content = content[key]
        content[last] = value

    return at


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(key) and None


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (change("split", value=3), "split"),
        (change("metrics", value="good"), "metrics"),
        (change("metrics", value={}), "metrics.n"),
        (change("metrics", "n", value="4000"), "metrics.n"),
        (change("metrics", "overall", value="60"), "metrics.overall"),
        (change("metrics", "overall", value=float("nan")), "metrics.overall"),
        (change("metrics", "per_answer_type", value=[1]), "metrics.per_answer_type"),
        (change("metrics", "per_answer_type", "", value="3"), "metrics.per_answer_type."),
        (change("metrics", "per_question_type", value=None), "metrics.per_question_type"),
        (change("metrics", "metric", value=1), "metrics.metric"),
        (change("trained_on", value={}), "trained_on"),
        (change("trained_on", value=["train"]), "trained_on[0]"),
        (change("trained_on", 0, value={}), "trained_on[0].dataset"),
        (change("submission", value=True), "submission"),
        (change("seconds", value=[]), "seconds"),
        (change("more", value=1), "more"),
        (without("digest"), "digest"),
    ],
)  # fmt: skip
def test_damage_is_told(run, damage, where):
    path = outcome_path(run)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError) as caught:
        read_outcome(run)
    assert str(caught.value) == (
        f"{path}: {where} is not what reproduce.py wrote; remove the file to evaluate again"
    )


@pytest.mark.parametrize("text", ["[]", "null", '"done"', "[" * 100_000])
def test_another_file(run, text):
    outcome_path(run).write_text(text)
    with pytest.raises(RunError, match="remove"):
        read_outcome(run)
