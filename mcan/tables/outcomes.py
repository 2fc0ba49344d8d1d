"""The state of runs: their outcomes, the data and code that made them, and what is left to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, FiniteFloat, ValidationError

from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.run_folder import code_digest
from mcan.errors import DataError, RunError
from mcan.files import sha256_of
from mcan.section import Section
from mcan.tables.planning import PlannedRun, distinct


class RunMetrics(Section):
    """What eval.py wrote to `metrics.json`; numbers that are not listed here are kept too."""

    model_config = ConfigDict(extra="allow")

    n: int
    overall: FiniteFloat | None
    per_answer_type: dict[str, FiniteFloat]
    per_question_type: dict[str, FiniteFloat]
    metric: str


class Outcome(Section):
    """The result of a run on one split: `outcome_<split>.json`, which is written last."""

    split: str
    metrics: RunMetrics | None
    """None for a split without answers, whose submission is in the run's folder."""
    dataset: str
    """As the prepared data names it."""
    data: tuple[str, ...]
    """Digests of all splits, image stores and word vectors that the run has read."""
    code: tuple[str, ...]
    """Digests of the code that trained and evaluated the run; several if it changed meanwhile."""


class DataCache:
    """Prepared datasets and digests of data, each read once."""

    def __init__(self) -> None:
        self.prepared = cache(Prepared.open)
        self._store = cache(lambda path: open_store(path).digest)
        self._file = cache(sha256_of)

    def inputs(self, run: PlannedRun) -> dict[str, Callable[[], str]]:
        """What the run reads, and for each of these a function that returns its digest."""
        config, vectors = run.config.data, run.config.model.question.word_vectors
        reads: dict[str, Callable[[], str]] = {}
        for split in (*config.train, config.evaluate or run.split, run.split):
            reads[f"the split '{split}' of {config.prepared}"] = partial(
                lambda name: self.prepared(config.prepared).digest(name), split
            )
        for path in (*config.images, *config.grid):
            reads[f"the image store {path}"] = partial(self._store, path)
        if vectors is not None:
            reads[f"the word vectors {vectors.path}"] = partial(self._file, Path(vectors.path))
        return reads


def read_outcome(run: PlannedRun) -> Outcome | None:
    """The outcome of `run`; None if it is not finished, or its submission is not written yet."""
    path = run.outcome_path
    try:
        outcome = Outcome.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        reason = "not as reproduce.py wrote it; remove the file to evaluate again"
        raise RunError(f"{path}: {reason}") from error
    scored = outcome.metrics is not None
    return outcome if scored != run.submission else None


def collect(runs: Sequence[PlannedRun], data: DataCache) -> dict[Path, Outcome]:
    """The outcomes of the finished runs, by `outcome_path`.

    Raises `RunError` if one was made with other data than is there now.
    """
    outcomes: dict[Path, Outcome] = {}
    for run in distinct(runs):
        outcome = read_outcome(run)
        if outcome is None:
            continue
        outcomes[run.outcome_path] = outcome
        for name, read in data.inputs(run).items():
            try:
                same = read() in outcome.data
            except (DataError, OSError):  # data that is missing has not changed
                continue
            if not same:
                raise RunError(
                    f"{run.folder} ({run.title}): {name} is not what it was when this run was "
                    "made; restore that data, choose another --runs folder, or move the run's "
                    "folder away to run it again"
                )
    return outcomes


def training_codes(run: PlannedRun) -> list[str]:
    """Digests of the code at each start or resume of the run's training."""
    return [line["code"] for line in _read_lines(run.folder / "environment.jsonl")]


def learning_curve(run: PlannedRun) -> dict[int, float]:
    """Epoch -> accuracy in percent of the evaluations during the run's training."""
    lines = _read_lines(run.folder / "metrics.jsonl")
    return {line["epoch"]: line["overall"] for line in lines if line["kind"] == "evaluation"}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none if it is not there."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise RunError(f"{path}: not the JSON that train.py wrote") from error


def made_by_other_code(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs, finished or not, that other code than this has made or started."""
    found = []
    for run in distinct(runs):
        outcome = read_outcome(run)
        codes = outcome.code if outcome else training_codes(run)
        if {*codes} - {code_digest()}:
            found.append(run)
    return found


def refuse_problems(runs: Sequence[PlannedRun], data: DataCache) -> None:
    """Raise `DataError`, one line, for missing data and unknown splits of unfinished runs."""
    problems: dict[str, None] = {}
    for run in runs:
        for read in () if read_outcome(run) else data.inputs(run).values():
            try:
                read()
            except (DataError, OSError) as error:
                problems[str(error)] = None
    if problems:
        raise DataError("; ".join(problems))


def preview(runs: Sequence[PlannedRun], data: DataCache) -> Iterator[str]:
    """The runs with their states and costs, as lines for a terminal."""
    first = {run.outcome_path: run for run in reversed(runs)}
    states: list[str] = []
    shown = None
    for run in runs:
        if run.row is not shown:
            shown = run.row
            yield f"\n{shown.name}\n  {' '.join([str(run.base), *shown.overrides])} -> {run.split}"
        size, epochs = _training_questions(run, data), run.config.train.epochs
        cost = "cost unknown" if size is None else f"{epochs} x {size:,} questions"
        state = "shared"
        if first[run.outcome_path] is run:
            started = (run.folder / "config.yaml").exists()
            state = "done" if read_outcome(run) else "partly" if started else "new"
            states.append(state)
        yield f"  seed {run.seed:<5} {state:6}  {cost}  {run.folder}"
    counts = [f"{states.count(state)} {state}" for state in ("done", "partly", "new")]
    yield f"\nruns: {', '.join(counts)}"


def _training_questions(run: PlannedRun, data: DataCache) -> int | None:
    """None if the data is not prepared."""
    config = run.config.data
    try:
        splits = data.prepared(config.prepared).meta["splits"]
        sizes = (int(splits[name]["questions"]) for name in config.train)
        return sum(min(size, config.limit or size) for size in sizes)
    except (DataError, KeyError):
        return None
