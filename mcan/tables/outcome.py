"""What a finished run leaves in its folder: `outcome_<split>.json`, written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError

from mcan.config.messages import dotted
from mcan.config.section import Section
from mcan.errors import RunError
from mcan.files import save_text
from mcan.tables.plan import PlannedRun


@dataclass(frozen=True)
class Outcome:
    """The result of a run on one split.

    - `metrics`: what eval.py wrote to metrics.json, None for a split without answers;
    - `submission`: the file for the evaluation server, relative to the run's folder, or None;
    - `dataset`: as the prepared data names it; `digest`: of the content of the evaluated split;
    - `trained_on`: of each training split its dataset, split, questions, digest and content;
    - `seconds`: wall time of training and evaluation since the run was last started.
    """

    split: str
    metrics: dict[str, Any] | None
    submission: str | None
    dataset: str
    digest: str
    trained_on: list[dict[str, Any]]
    seconds: float


class _Metrics(Section):
    """What tables read of the metrics."""

    model_config = ConfigDict(extra="ignore")

    n: int
    overall: FiniteFloat | None
    per_answer_type: dict[str, FiniteFloat]
    per_question_type: dict[str, FiniteFloat]
    metric: str


class _TrainedOn(Section):
    dataset: str
    split: str
    questions: int
    digest: str
    content: str
    stores: dict[str, str] = Field(default_factory=dict)


class _File(Section):
    """The fields of `Outcome`, to check a file."""

    split: str
    metrics: _Metrics | None
    submission: str | None
    dataset: str
    digest: str
    trained_on: tuple[_TrainedOn, ...]
    seconds: FiniteFloat


def outcome_path(run: PlannedRun) -> Path:
    """Where the outcome of `run` is, or will be."""
    return run.folder / f"outcome_{run.split}.json"


def read_outcome(run: PlannedRun) -> Outcome | None:
    """The outcome of `run`; None where it is not finished, or not yet predicted for a submission.

    Raises `RunError` where the file is not what `write_outcome` writes.
    """
    path = outcome_path(run)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON ({error}); remove it to evaluate again") from error
    try:
        _File.model_validate(content)
    except ValidationError as error:
        keys = error.errors(include_url=False)[0]["loc"]
        where = dotted(keys) if keys else "its content"
        raise RunError(
            f"{path}: {where} is not what reproduce.py wrote; remove the file to evaluate again"
        ) from None
    outcome = Outcome(**content)
    wanted = outcome.submission if run.submission else outcome.metrics
    return outcome if wanted is not None else None


def write_outcome(run: PlannedRun, outcome: Outcome) -> None:
    """Atomically write the outcome of `run`; `DataError` where it cannot be written."""
    save_text(outcome_path(run), json.dumps(asdict(outcome), indent=2) + "\n")
