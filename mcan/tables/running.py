"""The runs of a table: their state, and running them, each once, whatever else works on them."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar

from pydantic import ConfigDict, FiniteFloat, ValidationError

from mcan.config import Config, load_config
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.checkpoint import Position, open_checkpoint
from mcan.engine.processes import on_signals
from mcan.engine.run_folder import ROOT, code_digest
from mcan.engine.trainer import finished
from mcan.errors import BusyError, DataError, RunError, UserError
from mcan.files import lock_file, parse_json, save_text, sha256_of
from mcan.section import Section
from mcan.tables.planning import PlannedRun, distinct, run_id

Values = TypeVar("Values")


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
        self._split = cache(lambda folder, name: self.prepared(folder).digest(name))
        self._store = cache(lambda path: open_store(path).digest)
        self._file = cache(sha256_of)
        self._start = cache(lambda path: sha256_of(open_checkpoint(Path(path)).source or Path()))

    def inputs(self, run: PlannedRun) -> dict[str, Callable[[], str]]:
        """What the run reads, and for each of these a function that returns its digest."""
        config, vectors = run.config.data, run.config.model.question.word_vectors
        reads: dict[str, Callable[[], str]] = {}
        for split in (*config.train, config.evaluate or run.split, run.split):
            name = f"the split '{split}' of {config.prepared}"
            reads[name] = partial(self._split, config.prepared, split)
        for path in (*config.images, *config.grid):
            reads[f"the image store {path}"] = partial(self._store, path)
        if (start := run.config.train.init_from) is not None:
            reads[f"the checkpoint {start.checkpoint}"] = partial(self._start, start.checkpoint)
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
    return _read_log(
        run.folder / "environment.jsonl", lambda lines: [str(line["code"]) for line in lines]
    )


def learning_curve(run: PlannedRun) -> dict[int, float]:
    """Epoch -> accuracy in percent of the evaluations during the run's training."""
    return _read_log(
        run.folder / "metrics.jsonl",
        lambda lines: {
            int(line["epoch"]): float(line["overall"])
            for line in lines
            if line["kind"] == "evaluation"
        },
    )


def _read_log(path: Path, read: Callable[[list[Any]], Values]) -> Values:
    """What `read` finds in the lines of a run's log; a missing file has no lines."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return read([parse_json(line) for line in text.splitlines()])
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not the JSON that train.py wrote") from error


def made_by_other_code(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs, finished or not, that other code than this has made or started."""
    outcomes = [(run, read_outcome(run)) for run in distinct(runs)]
    codes = [(run, outcome.code if outcome else training_codes(run)) for run, outcome in outcomes]
    return [run for run, made_by in codes if {*made_by} - {code_digest()}]


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
        config, cost = run.config.data, "cost unknown"
        with suppress(DataError, KeyError):  # the data is not prepared
            splits = data.prepared(config.prepared).meta["splits"]
            sizes = [int(splits[name]["questions"]) for name in config.train]
            size = sum(min(each, config.limit or each) for each in sizes)
            cost = f"{run.config.train.epochs} x {size:,} questions"
        state = "shared"
        if first[run.outcome_path] is run:
            started = (run.folder / "config.yaml").exists()
            state = "done" if read_outcome(run) else "partly" if started else "new"
            states.append(state)
        yield f"  seed {run.seed:<5} {state:6}  {cost}  {run.folder}"
    counts = [f"{states.count(state)} {state}" for state in ("done", "partly", "new")]
    yield f"\nruns: {', '.join(counts)}"


# ------------------------------------------------------------------------------- running them


class RunnerStopped(Exception):  # noqa: N818 (not an error: someone asked)
    """SIGINT or SIGTERM arrived, and the program that was running has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


def raise_if_stopped(received: Sequence[int]) -> None:
    if received:
        raise RunnerStopped(received[-1])


def run_program(command: Sequence[str], received: Sequence[int]) -> int:
    """Run a program to its end, passing on the signals `received`; its exit status.

    Raises `RunnerStopped` after its end if there was a signal.
    """
    raise_if_stopped(received)
    # A session of its own: otherwise Ctrl-C would reach the program twice, which training takes as
    # an order to stop at once.
    with Popen(command, start_new_session=True) as child:
        passed_on = 0
        while (status := child.poll()) is None:
            for number in received[passed_on:]:
                child.send_signal(number)
                passed_on += 1
            time.sleep(0.1)
    raise_if_stopped(received)
    return status


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on the file `path`; False if another process has it, unless `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_file(path, wait=wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def claim(run: PlannedRun) -> Iterator[bool]:
    """Whether this process has the run to itself, without waiting.

    A claim is a lock of the runner. If the runner is killed, its training may live on, so the lock
    that train.py holds on the run's folder counts too.
    """
    with locked(run.folder.parent / ".claims" / run.folder.name) as mine:
        lock = run.folder / ".lock"
        if mine and lock.exists():
            with locked(lock) as mine:
                pass  # released again, for the training that this process starts
        yield mine


def run_all(runs: Sequence[PlannedRun], processes: int = 1) -> list[str]:
    """Do the runs that are not done, and wait for those that other processes do.

    A run whose owner died is taken over. Returns one line for each run that failed.
    """
    waiting, announced = list(runs), False
    failures: list[str] = []
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    with on_signals(signals, lambda number, _: received.append(number)):
        while waiting:
            elsewhere = [run for run in waiting if not _attempt(run, received, processes, failures)]
            if elsewhere and not announced:
                titles = "; ".join(run.title for run in elsewhere)
                print(f"\nwaiting for other processes: {titles}", flush=True)
                announced = True
            if len(elsewhere) == len(waiting):
                raise_if_stopped(received)
                time.sleep(1)
            waiting = elsewhere
    return failures


def _attempt(run: PlannedRun, received: Sequence[int], processes: int, failures: list[str]) -> bool:
    """False if another process has the run; otherwise it is done now, or added to `failures`."""
    try:
        with claim(run) as free:
            if not free:
                return False
            if read_outcome(run) is None:
                print(f"\n{run.title}", flush=True)
                _execute(run, received, processes)
    except BusyError:  # by the training of a killed runner, which had no lock yet
        return False
    except (UserError, OSError) as error:
        failures.append(f"{run.title}: {error}")
    return True


def _execute(run: PlannedRun, received: Sequence[int], processes: int) -> None:
    """Train `run`, or resume it, evaluate it and write its outcome."""

    def call(script: str, *arguments: str) -> None:
        shown, module, options = "python", [], []
        if processes > 1:
            shown, module = "torchrun", ["-m", "torch.distributed.run"]
            options = ["--standalone", f"--nproc-per-node={processes}"]
        print(shlex.join([shown, *options, script, *arguments]), flush=True)
        program = [sys.executable, *module, *options, str(ROOT / script)]
        status = run_program([*program, *arguments], received)
        if status == BusyError.exit_code:
            raise BusyError(f"{run.folder}: another process is training this run")
        if status:
            ending = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise RunError(f"{run.folder}: {script} ended with {ending}; see its error above")

    code = code_digest()
    _refuse_edited(run, load_config(run.base, run.overrides))
    call(*run.training, "--resume")
    _refuse_edited(run, load_config(run.folder / "config.yaml"))
    checkpoint = open_checkpoint(run.folder)
    done, epochs = checkpoint.position["epoch"], run.config.train.epochs
    if not finished(Position(**checkpoint.position), run.config.train):
        raise RunError(f"{run.folder}: training was stopped after {done} of {epochs} epochs")
    if run.submission:  # eval.py refuses a file that exists, and one of a killed runner may
        run.submission_path.unlink(missing_ok=True)
    call(*run.evaluation)
    metrics = None
    if not run.submission:
        name = f"{run.split}_step_{checkpoint.position['step']:08d}"
        path = run.folder / "predictions" / name / "metrics.json"
        if not path.exists():
            raise RunError(
                f"{run.folder}: the split '{run.split}' has no answers; with `submission: true` in "
                "the table, a file for the evaluation server is written"
            )
        metrics = RunMetrics.model_validate_json(path.read_bytes())
    data = DataCache()
    digests = dict.fromkeys(read() for read in data.inputs(run).values())
    # `before` are the data of a run that this one was started from, which it does not read.
    for each in (split for split in checkpoint.trained_on if not split.get("before")):
        if not digests.keys() >= {each["content"], *each["stores"].values()}:
            raise RunError(f"{run.folder}: the training data has changed since the run was trained")
    outcome = Outcome(
        split=run.split,
        metrics=metrics,
        dataset=data.prepared(run.config.data.prepared).dataset,
        data=tuple(digests),
        code=tuple(dict.fromkeys([*training_codes(run), code])),
    )
    save_text(run.outcome_path, outcome.model_dump_json(indent=2) + "\n")


def _refuse_edited(run: PlannedRun, config: Config) -> None:
    """Raise `RunError` unless `config` is that of the run when the table was planned."""
    if run_id(config, run.row) != run_id(run.config, run.row):
        trained = f"; move {run.folder} away" if run.folder.exists() else ""
        raise RunError(
            f"{run.base}: was edited after the start of this command and now describes another "
            f"run{trained}; start the command again"
        )


def set_aside(runs: Sequence[PlannedRun]) -> list[Path]:
    """Move the folders of runs that other code made to `superseded/`; returns where they are.

    Raises `RunError` if a run is being worked on.
    """
    moved, now = [], time.strftime("%Y%m%d-%H%M%S")
    for run in runs:
        with claim(run) as free:
            # Asked for each run: another command or a row with another split may have moved it.
            if not made_by_other_code([run]):
                continue
            if not free:
                raise RunError(f"{run.folder}: another process works on this run; stop it first")
            moved.append(run.folder.parent / "superseded" / f"{run.folder.name}-{now}")
            moved[-1].parent.mkdir(exist_ok=True)
            run.folder.rename(moved[-1])
    return moved


def submit(
    runs: Sequence[PlannedRun], logs: Path, parameters: Mapping[str, Any], processes: int = 1
) -> list[str]:
    """Submit an array of Slurm jobs with submitit, one for each run; their ids.

    `parameters` are sbatch's (partition, gpus_per_node, ...) or submitit's (timeout_min, ...);
    `logs` receives what jobs print. A job does what `run_all` does, claims included.
    """
    try:
        submitit = import_module("submitit")
    except ImportError:
        raise RunError("--launcher slurm needs submitit: pip install submitit") from None
    try:
        # Its AutoExecutor would want a prefix on sbatch's own parameters.
        executor = submitit.SlurmExecutor(folder=logs)
        sbatch = executor._convert_parameters({"name": "reproduce", **parameters})
        executor.update_parameters(**sbatch)
        jobs = executor.map_array(job, runs, [processes] * len(runs))
    except Exception as error:  # submitit has no exception of its own for what it refuses
        reason = " ".join(str(error).split())
        raise RunError(f"submitit does not take the jobs ({reason})") from error
    return [str(each.job_id) for each in jobs]


def job(run: PlannedRun, processes: int) -> None:
    """What a job does."""
    for failure in run_all([run], processes):
        raise RunError(failure)
