"""Tables with invented runs: outcomes as the runner leaves them, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcan.engine.run_folder import code_digest
from mcan.files import save_text
from mcan.tables.planning import CommandOptions, PlannedRun, Table, load_table, plan
from mcan.tables.running import Outcome, RunMetrics
from mcan.tables.writing import TableSummary, summarise

HOME = "vqa_v2"
"""Dataset of the published values."""


def row(name: str, depth: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "overrides": [f"model.depth={depth}"], **more}


def outcome(
    overall: float | None,
    types: dict[str, float] | None = None,
    questions: dict[str, float] | None = None,
    dataset: str = HOME,
    metric: str = "vqa_pre2021",
    split: str = "val",
) -> Outcome:
    """`overall` None: a submission."""
    metrics = RunMetrics(
        n=4000,
        overall=overall,
        per_answer_type=types or {},
        per_question_type=questions or {},
        metric=metric,
        **{"upper_bound": 95.0},  # a number that tables have no field for
    )
    return Outcome(
        split=split,
        metrics=None if overall is None else metrics,
        dataset=dataset,
        data=("d",),
        code=(code_digest(),),
    )


@dataclass
class Made:
    """A table in a folder with the outcomes that `finish` adds."""

    table: Table
    runs: list[PlannedRun]
    outcomes: dict[Path, Outcome] = field(default_factory=dict)

    @property
    def summary(self) -> TableSummary:
        return summarise(self.table, self.runs, self.outcomes, CommandOptions())

    def run(self, name: str, seed: int = 0) -> PlannedRun:
        return next(run for run in self.runs if (run.row.name, run.seed) == (name, seed))

    def finish(self, name: str, seed: int, *results: Any, **more: Any) -> None:
        """Give a run an outcome."""
        run = self.run(name, seed)
        made = outcome(*results, **more, split=run.split)
        save_text(run.outcome_path, made.model_dump_json())
        self.outcomes[run.outcome_path] = made

    def train(self, name: str, seed: int, curve: dict[int, float]) -> None:
        """Leave the log of a run whose accuracy after each epoch is that of `curve`."""
        kinds: list[dict[str, Any]] = [{"kind": "train", "step": 1, "loss": 0.5}]
        kinds += [{"kind": "evaluation", "epoch": e, "overall": a} for e, a in curve.items()]
        lines = "".join(json.dumps(line) + "\n" for line in kinds)
        save_text(self.run(name, seed).folder / "metrics.jsonl", lines)

    def score(self, name: str, **scores: float) -> None:
        """Keep scores of the evaluation server for the row's first run."""
        run = self.run(name)
        save_text(run.folder / f"server_{run.split}.json", json.dumps(scores))


def make(
    folder: Path, rows: Sequence[dict[str, Any]], seeds: Sequence[int] = (0, 1, 2), **table: Any
) -> Made:
    """A table file below `folder`, read and planned."""
    base = {"name": "base", "data": {"prepared": "prepared", "images": ["images.h5"]}}
    save_text(folder / "base.yaml", yaml.safe_dump(base))
    content = {
        "title": "Table 1: depth",
        "source": "a paper, Table 1",
        "verified": True,
        "dataset": HOME,
        "metric": "vqa_pre2021",
        "base": "base.yaml",
        "split": "val",
        "columns": ["overall", "yes/no", "number"],
        "seeds": list(seeds),
        "rows": list(rows),
        **table,
    }
    save_text(folder / "table_1.yaml", yaml.safe_dump(content))
    read = load_table(folder / "table_1.yaml")
    return Made(read, plan(read, CommandOptions(runs=folder / "runs")))
