#!/usr/bin/env python3
"""List runs, or show the keys that differ between two; see `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from mcan.config import Config, config_from_dict, flatten, load_config
from mcan.console import align
from mcan.engine.checkpoint import Position, open_checkpoint
from mcan.engine.run_folder import ROOT, RunFolder
from mcan.engine.trainer import finished
from mcan.errors import RunError, UserError, command
from mcan.files import is_locked, parse_json
from mcan.section import show

HEADER = ("run", "state", "epoch", "best %", "last %", "training")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [-h] [FOLDER ...]  |  %(prog)s diff A B",
        description="List the runs below folders: state, epochs, accuracy of the best and of the "
        "last evaluation (evaluation.best_by), time in training steps, and the keys that differ "
        "from the config file. `diff` shows the keys, versions and code that differ between two "
        "runs, checkpoints or config files.",
    )
    parser.add_argument("paths", nargs="*", default=["runs"], help=argparse.SUPPRESS)
    first, *others = parser.parse_args(arguments).paths
    if first == "diff":
        if len(others) != 2:
            parser.error("diff takes two runs, checkpoints or config files")
        print(difference(Path(others[0]), Path(others[1])))
        return
    rows = []
    for folder in map(Path, (first, *others)):
        found = [*list_runs(folder)]
        if not found:
            missing = "not a folder" if folder.exists() else "not found"
            raise RunError(f"{folder}: {'contains no runs' if folder.is_dir() else missing}")
        rows += [(str(run.path), *describe(run)) for run in found]
    lines = align([HEADER, *(row[:-1] for row in rows)]).splitlines()
    ends = ["changed", *(row[-1] for row in rows)]
    print("\n".join(f"{line}  {end}".rstrip() for line, end in zip(lines, ends, strict=True)))


def list_runs(folder: Path) -> Iterator[RunFolder]:
    """The runs in a folder, at any depth, or the run that it is itself."""
    for config in sorted(folder.rglob("config.yaml")):
        run = RunFolder(config.parent)
        if run.environment.exists() or run.checkpoints.is_dir():
            yield run


def describe(run: RunFolder) -> tuple[str, ...]:
    """The cells of a run after its name; the last one may be a reason why there are no others."""
    try:
        config = load_config(run.config)
        lines = read_lines(run.metrics)
        best_by = config.evaluation.best_by
        scores = [float(flatten(x)[best_by]) for x in lines if x["kind"] == "evaluation"]
        epoch, seconds = (lines[-1]["epoch"] if lines else 0), training_seconds(lines, config)
        state, time = find_state(run, config, lines), str(timedelta(seconds=round(seconds)))
        changed = changes(run, config)
    except (UserError, OSError) as error:
        return "unreadable", *["–"] * (len(HEADER) - 2), str(error)
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return "unreadable", *["–"] * (len(HEADER) - 2), f"{run.metrics}: damaged"
    best, last = (f"{max(scores):.2f}", f"{scores[-1]:.2f}") if scores else ("–", "–")
    return state, f"{epoch}/{config.train.epochs}", best, last, time, changed


def find_state(run: RunFolder, config: Config, lines: Sequence[dict[str, Any]]) -> str:
    """`finished`, `training` (a process has the run's lock), `stopped`, or `unknown` if the lock is
    somebody else's."""
    last = lines[-1] if lines else None
    if last is not None and last["kind"] == "evaluation":
        done = finished(Position(last["epoch"], 0, last["step"]), config.train)
    elif config.data.evaluate is None and run.saved:
        done = finished(Position(**open_checkpoint(run.path).position), config.train)
    else:
        done = False
    locked = is_locked(run.path / ".lock")
    if locked or done:
        return "training" if locked else "finished"
    return "unknown" if locked is None else "stopped"


def training_seconds(lines: Sequence[dict[str, Any]], config: Config) -> float:
    """Time spent on the steps logged, without evaluations; the same after a resume."""
    steps = [line for line in lines if line["kind"] == "train"]
    before = [0, *(line["step"] for line in steps)]
    counts = [line["step"] - start for start, line in zip(before, steps, strict=False)]
    size, speeds = config.train.batch_size, [line["samples_per_s"] for line in steps]
    return sum((n * size / v for n, v in zip(counts, speeds, strict=True) if v), start=0.0)


def changes(run: RunFolder, config: Config) -> str:
    """The keys that differ from the config file that the run was started with.

    If that file is gone or no longer valid, the arguments of `train.py`.
    """
    started = read_lines(run.environment)[:1]
    arguments = [arg for arg in (started[0]["command"] if started else [])[1:] if arg[:1] != "-"]
    if not arguments:
        return ""
    path, *overrides = arguments
    try:
        base = load_config(path if Path(path).is_file() else ROOT / path)
    except UserError:
        return " ".join([f"({path})", *overrides])
    ours, theirs = flatten(config.model_dump()), flatten(base.model_dump())
    chosen = {"name", "runs", "train.rows"} if base.train.rows == "auto" else {"name", "runs"}
    differ = [key for key in ours if key not in chosen and ours[key] != theirs.get(key, ...)]
    return " ".join(f"{key}={show(ours[key])}" for key in differ)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a log; a missing file has none."""
    with suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8")
        return [parse_json(line) for line in text.splitlines(keepends=True) if line[-1:] == "\n"]
    return []


def difference(a: Path, b: Path) -> str:
    """A table of what differs between two runs, checkpoints or config files."""
    (ours, made), (theirs, other) = facts(a), facts(b)
    for key in made.keys() & other.keys():
        ours[key], theirs[key] = made[key], other[key]
    keys = [key for key in ours | theirs if ours.get(key, ...) != theirs.get(key, ...)]
    if not keys:
        return f"{a} and {b} do not differ"
    rows = [(key, *(show(x[key]) if key in x else "–" for x in (ours, theirs))) for key in keys]
    return align([("", str(a), str(b)), *rows])


def facts(target: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of its config, and the versions, code and hardware that it was last made with."""
    run, made = RunFolder(target), {}
    if target.suffix == ".pt":
        checkpoint = open_checkpoint(target)
        config, made = config_from_dict(checkpoint.config, str(target)), checkpoint.versions
    elif target.is_dir():
        if not run.exists:
            raise RunError(f"{target}: not a run folder; config.yaml is missing")
        config = load_config(run.config)
        for launch in read_lines(run.environment)[-1:]:
            made = {key: launch[key] for key in launch if key not in ("time", "command")}
    else:
        config = load_config(target)
    keys = flatten(config.model_dump(mode="json"))
    return {key: keys[key] for key in keys if key not in ("name", "runs")}, made


if __name__ == "__main__":
    command(main)
