#!/usr/bin/env python3
"""Run a table of experiments and write it: `python scripts/reproduce.py configs/tables/...`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mcan.config.yaml_files import parse_overrides
from mcan.console import message, positive, shard
from mcan.errors import command, shorten
from mcan.tables import planning, running, writing


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Do every run of a table that is not done yet, and write the table beside the "
        "published values: table.md, .tex, .csv, .json and .png.",
        epilog="Interrupted or killed, the same command goes on where it stopped. Several may work "
        "on one --runs folder at once; each run is done once. More in docs/tables.md.",
    )
    add = parser.add_argument
    add_several = partial(add, nargs="+", default=[], action="extend")
    add("table", metavar="TABLE.yaml", type=Path)
    add("--base", type=Path, metavar="CONFIG", help="run the rows on this config instead")
    add_several("--set", metavar="KEY=VALUE", help="change a key of every run, also over the rows'")
    add("--seeds", nargs="+", type=int, help="default: the table's")
    add("--rows", nargs="+", metavar="NAME", help="run only these")
    add("--dry-run", action="store_true", help="only print the runs, their state and their cost")
    add("--shard", type=shard, metavar="I/N", help="every N-th run from the I-th, 1/N to N/N")
    add("--nproc", type=positive, default=1, help="processes of each run, under torchrun")
    add("--launcher", choices=("local", "slurm"), default="local")
    add_several("--slurm", metavar="KEY=VALUE", help="parameters of the jobs: partition=gpu ...")
    add("--runs", type=Path, default=planning.RUNS, metavar="FOLDER", help="default: %(default)s")
    add("--output", type=Path, metavar="FOLDER", help="for the table (default: below --runs)")
    add_several(
        "--fill",
        metavar="ROW[:COLUMN]=SCORE",
        help="enter an evaluation server's scores, in %%, and write the table; runs nothing",
    )
    again = "run again what other code made; the old folders are kept in superseded/"
    add("--rerun-changed", action="store_true", help=again)
    args = parser.parse_args(arguments)
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm needs --launcher slurm")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    table = planning.load_table(args.table)
    seeds = None if args.seeds is None else tuple(args.seeds)
    options = planning.CommandOptions(args.base, tuple(args.set), seeds, args.runs)
    runs = planning.plan(table, options)
    chosen = runs if args.rows is None else planning.plan(table, options, args.rows)
    if args.shard:
        part, parts = args.shard
        chosen = planning.distinct(chosen)[part - 1 :: parts]
    output = args.output or planning.table_folder(table, options, runs)
    announced = [f"table: {output}"]
    if other := running.made_by_other_code(chosen):
        folders = shorten(f"{run.folder} ({run.title})" for run in other)
        announced.append(f"made by other code, run again with --rerun-changed: {folders}")
    data, failures = running.DataCache(), list[str]()
    if args.dry_run:
        print(f"{table.title}: {args.table} {options.description}")
        print(*running.preview(chosen, data), *announced, sep="\n")
        return 0
    running.collect(runs, data)  # before the work, so that changed data is found at once
    if args.fill:
        writing.enter_scores(table, runs, args.fill)
    else:
        running.refuse_problems(chosen, data)
        output.mkdir(parents=True, exist_ok=True)  # now, so that it does not fail after the runs
        print(*announced, sep="\n", flush=True)
        try:
            failures = do(chosen, args)
        except running.RunnerStopped as stop:
            again = shlex.join(sys.argv[1:] if arguments is None else arguments)
            message(f"{stop}; continue: python scripts/reproduce.py {again}")
            return stop.exit_status
    # Under a lock, or what was collected earlier could be written last.
    with running.locked(output / ".lock", wait=True):
        summary = writing.summarise(table, runs, running.collect(runs, data), options)
        writing.write_results(output, summary)
        print(f"\n{(output / 'table.md').read_text(encoding='utf-8')}\nwritten: {output}")
    for failure in failures:
        message(f"failed: {failure}")
    return 1 if failures else 0


def do(runs: Sequence[planning.PlannedRun], args: argparse.Namespace) -> list[str]:
    """Do the runs that are not done, or submit them; a line for each that failed."""
    if args.rerun_changed:
        for folder in running.set_aside(planning.distinct(runs)):
            print(f"moved to {folder}")
    left = [run for run in planning.distinct(runs) if running.read_outcome(run) is None]
    if not left:
        print("nothing to run: all are done")
        return []
    if args.launcher == "local":
        return running.run_all(left, args.nproc)
    logs = args.runs / ".slurm"
    jobs = running.submit(left, logs, parse_overrides(args.slurm), args.nproc)
    print(f"submitted: {', '.join(jobs)}; their output is in {logs}")
    print("when they have ended, the same command without --launcher and --slurm writes the table")
    return []


if __name__ == "__main__":
    command(main)
