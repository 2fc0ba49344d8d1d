#!/usr/bin/env python3
"""Measure speed and memory of the main jobs; see `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mcan.arguments import positive
from mcan.benchmarking import suites
from mcan.benchmarking.hardware import cores
from mcan.benchmarking.report import new_file, rewrite, save, section
from mcan.benchmarking.suites import Settings, Sweep
from mcan.benchmarking.summary import Record
from mcan.benchmarking.workload import Workload
from mcan.errors import command

MCAN_SMALL = Path(__file__).resolve().parents[1] / "configs/_base_/mcan_small.yaml"

# What --quick measures: whether everything works, not how fast it is.
QUICK = ("model.hidden_size=16", "model.heads=2", "model.depth=1", "train.batch_size=4")
QUICK_WORKLOAD = Workload(0, regions=(2, 5), features=8, answers=20, words=50)
QUICK_SWEEP = Sweep(regions=(2, 4), width=(16, 32), depth=(1, 2), questions=(100, 200))

SWEEP_BATCH = "train.batch_size=16"
"""At 608 regions a batch of 64 does not fit into everyone's memory."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure speed and memory on made-up data with the sizes of VQA v2, side by "
        "side with a plain implementation of the network. Prints a report in Markdown.",
        epilog="Close other programs first: the arms of a benchmark see the same machine, but not "
        "a quiet one.",
    )
    commands = parser.add_subparsers(dest="what", required=True)
    train = _command(commands, "train", "the training step", True)
    train.add_argument("--steps", type=positive, default=10, help="updates per repetition")
    train.add_argument("--compile", action="store_true", help="measure torch.compile too")
    evaluation = _command(commands, "eval", "predicting a split", True)
    evaluation.add_argument("--questions", type=positive, default=1024)
    loader = _command(commands, "loader", "ready batches in one process", True)
    loader.add_argument("--questions", type=positive, default=10_000)
    startup = _command(
        commands, "startup", "time and peak memory from `python train.py` to the first step"
    )
    startup.add_argument("--questions", type=positive, default=440_000)
    startup.add_argument("--images", type=positive, default=120_000)
    startup.add_argument("--folder", type=Path, help="keep the dataset here and use it again")
    scaling = _command(commands, "scaling", "one, two, four, ... processes", True)
    scaling.add_argument("--steps", type=positive, default=3, help="updates per repetition")
    scaling.add_argument("--processes", type=positive, default=2, help="the most that are tried")
    scaling.add_argument(
        "--sweep",
        action="store_true",
        help="instead: against regions, width, depth and the number of questions",
    )
    report = commands.add_parser("report", help="write PATH.md again from the records in PATH")
    report.add_argument("path", type=Path, metavar="PATH")
    return parser.parse_args()


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    takes_overrides: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"Measure {text}.")
    parser.add_argument("--repeats", type=positive, default=5, help="repetitions after a warm-up")
    parser.add_argument(
        "--threads",
        type=positive,
        help="CPU threads of a process: all cores, or with several processes 1",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="PATH",
        help="write PATH/<benchmark>.json and the report PATH.md, e.g. docs/benchmarks/2025-xeon",
    )
    if takes_overrides:
        parser.add_argument("--config", default=str(MCAN_SMALL), help="YAML file of the network")
        parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return parser


def main() -> None:
    args = parse()
    if args.what == "report":
        rewrite(args.path)
        return
    what = "sweep" if args.what == "scaling" and args.sweep else args.what
    if args.save:
        new_file(what, args.save)
    record = BENCHMARKS[what](args)
    sys.stdout.write(section(record, str(args.save or "")))
    if args.save:
        save(record, args.save)


def settings(args: argparse.Namespace, *overrides: str) -> Settings:
    """What the options say; overrides of the command line win."""
    quick = QUICK if args.quick else ()
    several = args.what == "scaling" and not args.sweep
    return Settings(
        config=getattr(args, "config", str(MCAN_SMALL)),
        overrides=(*overrides, *quick, *getattr(args, "overrides", ())),
        threads=args.threads or (1 if several else cores()),
        repeats=args.repeats,
        workload=QUICK_WORKLOAD if args.quick else Workload(0),
        steps=getattr(args, "steps", 1),
    )


def evaluate(args: argparse.Namespace) -> Record:
    return suites.evaluate(settings(args), 20 if args.quick else args.questions)


def load(args: argparse.Namespace) -> Record:
    return suites.load(settings(args), 20 if args.quick else args.questions)


def startup(args: argparse.Namespace) -> Record:
    questions, images = (100, 20) if args.quick else (args.questions, args.images)
    return suites.startup(settings(args), questions, images, args.folder)


def sweep(args: argparse.Namespace) -> Record:
    return suites.sweep(settings(args, SWEEP_BATCH), QUICK_SWEEP if args.quick else Sweep())


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "train": lambda args: suites.train(settings(args), args.compile),
    "eval": evaluate,
    "loader": load,
    "startup": startup,
    "scaling": lambda args: suites.processes(settings(args), args.processes),
    "sweep": sweep,
}


if __name__ == "__main__":
    command(main)
