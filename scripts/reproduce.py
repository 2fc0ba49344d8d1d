#!/usr/bin/env python3
"""Run a table of experiments and write it: `python scripts/reproduce.py configs/tables/...`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from mcan.arguments import positive, shard
from mcan.config.layers import parse_overrides
from mcan.errors import ConfigError, command
from mcan.report.write import write_results
from mcan.tables.call import Call, table_folder
from mcan.tables.children import Children, Interrupted
from mcan.tables.claims import turn
from mcan.tables.contents import Contents
from mcan.tables.filled import fill, read_filled
from mcan.tables.outcome import read_outcome
from mcan.tables.plan import RUNS, PlannedRun, counted_runs, plan
from mcan.tables.preview import equal_rows, preview
from mcan.tables.readiness import check_known, check_ready, unchecked
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
        "tables/<table>_<its name>, with --set or --seeds -<hash of the runs> after it)",
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


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    table = load_table(args.table)
    call = Call.of(args.base, args.set, args.seeds)
    changes = (call.base, call.overrides, call.seeds)
    runs = plan(table, *changes, None, args.runs)
    chosen = plan(table, *changes, args.rows, args.runs)
    shared = equal_rows(chosen)
    if args.shard:
        number, count = args.shard
        chosen = distinct(chosen)[number - 1 :: count]
    output = args.output or table_folder(table, call, runs, args.runs)
    contents = Contents()
    if args.dry_run:
        check_known(table, runs, chosen, contents)
        print(preview(table, call, chosen, args.runs, None if call.base else table.assume))
        print("\n".join([*shared, *unchecked(table, chosen, contents), f"table: {output}"]))
        return 0
    collect(runs, contents)  # Before the work, so that changed data is found at once.
    if not args.fill:
        check_ready(table, runs, chosen, contents)
    make_folder(output)
    failures: list[str] = []
    if args.fill:
        fill(table, runs, args.fill)
    else:
        print("\n".join([f"table: {output}", *shared]), flush=True)
        try:
            failures = do(chosen, args)
        except Interrupted as stop:
            again = shlex.join(sys.argv[1:] if arguments is None else arguments)
            sys.stderr.write(f"{stop}; continue: python scripts/reproduce.py {again}\n")
            return stop.exit_status
    with turn(output):  # Else one that collected earlier could write later.
        outcomes = collect(runs, contents)
        if outcomes or not runs:
            write_results(output, table, runs, outcomes, read_filled(runs), call)
    if outcomes or not runs:
        print(f"\n{(output / 'table.md').read_text(encoding='utf-8')}\nwritten: {output}")
    else:
        print(f"nothing written to {output}: no run of the table is finished")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0


def do(runs: Sequence[PlannedRun], args: argparse.Namespace) -> list[str]:
    """Do those that are not done, or submit them; a sentence for each that failed."""
    runs = distinct(runs)
    left = [run for run in runs if read_outcome(run) is None]
    if not left:
        print(f"nothing to run: {counted_runs(len(runs))}, all done")
        return []
    if args.launcher == "slurm":
        submit_jobs(left, args)
        return []
    with Children() as children:
        return run_all(left, children, args.nproc)


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
    parameters = parse_overrides(args.slurm).plain()
    jobs = submit(runs, args.runs / ".slurm", parameters, args.nproc)
    print(f"submitted: {', '.join(jobs)}; what they print is in {args.runs / '.slurm'}")
    print("when they have ended, the same command without --launcher and --slurm writes the table")


if __name__ == "__main__":
    command(main)
