#!/usr/bin/env python3
"""Run a table of experiments and write it: `python scripts/reproduce.py configs/tables/...`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from mcan.config import load_config
from mcan.config.layers import parse_overrides
from mcan.errors import ConfigError, command
from mcan.report.write import write_results
from mcan.tables.children import Children, Interrupted
from mcan.tables.claims import turn
from mcan.tables.contents import Contents
from mcan.tables.filled import fill, read_filled
from mcan.tables.outcome import read_outcome
from mcan.tables.plan import RUNS, PlannedRun, plan
from mcan.tables.preview import preview
from mcan.tables.runner import collect, distinct, run_all
from mcan.tables.slurm import submit
from mcan.tables.spec import load_table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Do every run of a table that is not done yet, and write the table beside the "
        "published figures: table.md, table.csv, table.json, table.png and index.html.",
        epilog="Interrupted or killed, the same command goes on where it stopped. Several may work "
        "on one --runs folder at once; each run is done once.",
    )
    parser.add_argument("table", metavar="TABLE.yaml", type=Path)
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CONFIG",
        help="run the same rows on this config; they are evaluated on its data.evaluate",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="change a key of every run, also over what rows state",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the table's")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run only these")
    parser.add_argument(
        "--dry-run", action="store_true", help="only print the runs, their state and their cost"
    )
    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help="every N-th run from the I-th, 1/N to N/N"
    )
    parser.add_argument(
        "--nproc", type=positive, default=1, help="processes of each run, under torchrun"
    )
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="parameters of the jobs: partition=gpu gpus_per_node=1 timeout_min=600",
    )
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for the table (default: tables/<table> in --runs, with --base "
        "tables/<table>_<its name>)",
    )
    parser.add_argument(
        "--fill",
        nargs="+",
        default=[],
        action="extend",
        metavar="ROW[:COLUMN]=FIGURE",
        help="enter what the evaluation server gave for a run's submission, in %%, and write the "
        "table; runs nothing",
    )
    args = parser.parse_args(arguments)
    if args.fill and args.dry_run:
        parser.error("--fill writes figures; leave --dry-run out")
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm needs --launcher slurm")
    return args


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    table = load_table(args.table)
    runs = plan(table, args.base, args.set, args.seeds, None, args.runs)
    chosen = plan(table, args.base, args.set, args.seeds, args.rows, args.runs)
    if args.shard:
        number, count = args.shard
        chosen = distinct(chosen)[number - 1 :: count]
    if args.dry_run:
        print(preview(table, chosen, args.runs, table.assume if args.base is None else None))
        return 0
    base = f"_{load_config(args.base, args.set).name}" if args.base else ""
    output = args.output or args.runs / "tables" / f"{table.name}{base}"
    contents = Contents()
    collect(runs, contents)  # Before the work, so that changed data is found at once.
    make_folder(output)
    failures: list[str] = []
    if args.fill:
        fill(table, runs, args.fill)
    elif args.launcher == "slurm":
        submit_jobs(chosen, args)
    else:
        with Children() as children:
            try:
                failures = run_all(chosen, children, args.nproc)
            except Interrupted as stop:
                again = shlex.join(sys.argv[1:] if arguments is None else arguments)
                sys.stderr.write(f"{stop}; continue: python scripts/reproduce.py {again}\n")
                return stop.exit_status
    with turn(output):  # Else one that collected earlier could write later.
        write_results(output, table, runs, collect(runs, contents), read_filled(runs))
    print(f"\n{(output / 'table.md').read_text(encoding='utf-8')}\nwritten: {output}")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0


def make_folder(output: Path) -> None:
    """Before the work too: raises `ConfigError` where the table could not be written after it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(
            f"{output}: the table's folder cannot be made or written ({error.strerror}); choose "
            "another with --output"
        ) from error


def submit_jobs(runs: Sequence[PlannedRun], args: argparse.Namespace) -> None:
    left = [run for run in distinct(runs) if read_outcome(run) is None]
    if not left:
        return
    parameters = parse_overrides(args.slurm).plain()
    jobs = submit(left, args.runs / ".slurm", parameters, args.nproc)
    print(f"submitted: {', '.join(jobs)}; what they print is in {args.runs / '.slurm'}")
    print("when they have ended, the same command without --launcher and --slurm writes the table")


if __name__ == "__main__":
    command(main)
