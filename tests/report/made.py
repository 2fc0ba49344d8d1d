"""Tables whose runs are made up: outcomes and logs as the runner leaves them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcan.report.aggregate import Summary, summarise_rows
from mcan.tables.outcome import Outcome, outcome_path
from mcan.tables.plan import PlannedRun, plan
from mcan.tables.spec import Table, load_table

HOME = "vqa_v2"
"""Dataset of the published figures."""

ENVIRONMENT = {
    "time": "2026-01-01T00:00:00+0000",
    "mcan": "0.1.0",
    "revision": None,
    "python": "3.11.7",
    "torch": "2.14.1",
    "platform": "Linux",
    "cpus": 2,
    "threads": 1,
    "gpus": ["Some GPU", "Some GPU"],
    "processes": 1,
}


def row(name: str, depth: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "overrides": [f"model.depth={depth}"], **more}


@dataclass
class Made:
    """A table in a folder with the outcomes that `finish` adds."""

    table: Table
    runs: list[PlannedRun]
    outcomes: dict[Path, Outcome] = field(default_factory=dict)
    filled: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def summary(self) -> Summary:
        return summarise_rows(self.table, self.runs, self.outcomes, self.filled)

    def run(self, name: str, seed: int) -> PlannedRun:
        return next(run for run in self.runs if (run.row.name, run.seed) == (name, seed))

    def finish(
        self,
        name: str,
        seed: int,
        overall: float | None,
        types: dict[str, float] | None = None,
        questions: dict[str, float] | None = None,
        dataset: str = HOME,
    ) -> None:
        """Give a run its outcome; `overall` None: a submission."""
        run = self.run(name, seed)
        metrics = {
            "n": 4000,
            "overall": overall,
            "per_answer_type": types or {},
            "per_question_type": questions or {},
            "metric": "vqa",
            "upper_bound": 95.0,
            "split": run.split,
        }
        scored = overall is not None
        self.outcomes[outcome_path(run)] = Outcome(
            split=run.split,
            metrics=metrics if scored else None,
            submission=None if scored else f"submission_{run.split}.json",
            dataset=dataset,
            digest="d",
            trained_on=[],
            seconds=1.0,
        )

    def log(self, name: str, seed: int, steps: int, evaluations: int = 5) -> None:
        """Write metrics.jsonl and environment.json of a run."""
        folder = self.run(name, seed).folder
        folder.mkdir(parents=True, exist_ok=True)
        lines: list[dict[str, Any]] = []
        for step in range(1, steps + 1):
            loss = 3 * math.exp(-3 * step / steps) + 0.1 * (1 + math.sin(step * (seed + 1)))
            lines.append({"kind": "train", "step": step * 50, "epoch": 1, "loss": loss})
            if step * evaluations % steps < evaluations:
                accuracy = 97 - 40 * math.exp(-4 * step / steps) - seed
                lines.append({"kind": "evaluation", "step": step * 50, "overall": accuracy})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "environment.json").write_text(json.dumps({"starts": [{}, ENVIRONMENT]}))


def make(
    folder: Path, rows: Sequence[dict[str, Any]], seeds: Sequence[int] = (0, 1, 2), **table: Any
) -> Made:
    """A table file below `folder`, read and planned."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {"name": "base", "data": {"prepared": "prepared", "images": ["images.h5"]}}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    content = {
        "title": "Table 1: depth",
        "source": "a paper, Table 1",
        "verified": True,
        "dataset": HOME,
        "base": "base.yaml",
        "split": "val",
        "columns": ["overall", "yes/no", "number"],
        "seeds": list(seeds),
        "rows": list(rows),
        **table,
    }
    path = folder / "table_1.yaml"
    path.write_text(yaml.safe_dump(content))
    read = load_table(path)
    return Made(read, plan(read, runs_folder=folder / "runs"))
