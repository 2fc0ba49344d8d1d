#!/usr/bin/env python3
"""Measure speed and memory of the main jobs on made-up data of VQA v2's size; see `--help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mcan.benchmarking import (
    BASELINE,
    ROOT,
    WORD_COUNTS,
    Arm,
    Measurements,
    describe_machine,
    measure,
    measure_startup,
    record_file,
    report,
    save,
)
from mcan.config import load_config
from mcan.console import positive
from mcan.errors import command
from mcan.preparation.synthetic import make_synthetic

SIZES = {"feature_dim": 2048, "regions": (10, 100), "answers": 3129, "vocabulary": 18_000}
# Of --quick, which only shows that everything runs.
QUICK_SIZES = {"feature_dim": 8, "regions": (2, 5), "answers": 20, "vocabulary": 50}
QUICK = ("model.hidden_size=16", "model.heads=2", "model.depth=1", "train.batch_size=4")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure speed and memory on made-up data of VQA v2's size, side by side with "
        "the network as the authors' code computes it. Prints a report in Markdown.",
        epilog="Close other programs first. The arms of a benchmark take turns, so they see the "
        "same machine, but not a quiet one.",
    )
    commands = parser.add_subparsers(dest="what", required=True)
    train = add_command(commands, "train", "Training step", "the training step", steps=10)
    train.add_argument("--compile", action="store_true", help="measure torch.compile too")
    train.add_argument(
        "--vary",
        metavar="KEY=A,B,...",
        help="instead of the baseline: one arm per value of a config key, or of `regions`",
    )
    evaluation = add_command(commands, "eval", "Evaluation", "predicting a split", questions=1024)
    for each in (train, evaluation):
        each.add_argument("--no-bf16", action="store_true", help="for processors without it")
    add_command(commands, "loader", "Loading", "ready batches in one process", questions=10_000)
    text = "from `python train.py` to the first step"
    add_command(commands, "startup", "Start-up", text, questions=440_000)
    return parser.parse_args()


def add_command(
    commands: Any, name: str, title: str, text: str, steps: int = 0, questions: int = 0
) -> argparse.ArgumentParser:
    """A benchmark: the heading of its report, and the text that --help shows."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(title=title)
    add = parser.add_argument
    if steps:
        add("--steps", type=positive, default=steps, help="updates per repetition")
    else:
        add("--questions", type=positive, default=questions, help="default: %(default)s")
    add("--repeats", type=positive, default=5, help="repetitions after a warm-up")
    add("--threads", type=positive, help="CPU threads per process (all cores)")
    add("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    add("--save", type=Path, metavar="FOLDER", help="write FOLDER/<benchmark>.json and FOLDER.md")
    add("--config", default=str(ROOT / "configs/_base_/mcan_small.yaml"))
    add("overrides", nargs="*", default=[], metavar="key=value")
    return parser


def main() -> None:
    args = parse()
    if args.save:
        record_file(args.what, args.save)
    with tempfile.TemporaryDirectory() as folder:
        record = run(args, Path(folder))
    sys.stdout.write(report(record))
    if args.save:
        save(record, args.save)


def run(args: argparse.Namespace, folder: Path) -> Measurements:
    """The record of a benchmark."""
    overrides = (*(QUICK if args.quick else ()), *args.overrides)
    unused = ("name=benchmark", "data.prepared=p", "data.images=[i]", "data.evaluate=null")
    batch = load_config(args.config, (*unused, *overrides)).train.batch_size
    steps = getattr(args, "steps", 0)
    questions = batch * steps * (args.repeats + 1) if steps else args.questions
    sizes: dict[str, Any] = {**(QUICK_SIZES if args.quick else SIZES), "questions": questions}
    if args.what == "startup":
        sizes["feature_dim"] = 16
        overrides = ("model.hidden_size=64", "model.depth=1", *overrides)
    least, most = sizes["regions"]
    record: Measurements = {
        "what": args.what,
        "title": args.title,
        "machine": describe_machine(),
        "work": f"{questions:,} made-up questions as long as those of VQA v2, {least} to {most} "
        f"regions x {sizes['feature_dim']}, {sizes['answers']:,} answers, {sizes['vocabulary']:,} "
        f"words. Batches of {batch}. Config: {Path(args.config).stem}, with "
        f"{' '.join(overrides) or 'no overrides'}.",
        "unit": "start" if args.what == "startup" else "step" if steps else "pass",
    }
    threads = args.threads or torch.get_num_threads()
    if args.what == "startup":
        data = make_data(folder / "data", sizes, ("train", "val"))
        starts = measure_startup(args.config, (*overrides, *data), args.repeats, threads)
        arm = {"threads": threads, "repetitions": starts}
        return record | {"arms": {f"{questions:,} questions": arm}}
    # Neither evaluation nor the log is part of a step.
    overrides = (*overrides, "data.evaluate=null", "train.log_every=1000000")
    plain = Arm(args.what, args.config, overrides, threads, steps=steps)
    arms = choose_arms(args, plain, sizes, folder)
    products = {
        f"product {name}": arms[BASELINE].having(f"train.precision={name}", job="multiply")
        for name in (precisions(args) if BASELINE in arms else ())
    }
    results = measure(arms | products, args.repeats)
    record["products"] = {name.split()[1]: results.pop(name) for name in products}
    for name, result in results.items():
        result["precision"] = "bf16" if name.startswith("bf16") else "float32"
    return record | {"arms": results}


def choose_arms(
    args: argparse.Namespace, plain: Arm, sizes: dict[str, Any], folder: Path
) -> dict[str, Arm]:
    """The arms of a benchmark by name; the others are compared with the first."""
    key, _, values = (getattr(args, "vary", None) or "").partition("=")
    if key == "regions":
        counts = {n: sizes | {"regions": (int(n), int(n))} for n in values.split(",")}
        return {f"regions {n}": plain.having(*make_data(folder / n, counts[n])) for n in counts}
    plain = plain.having(*make_data(folder / "data", sizes))
    if key:
        return {f"{key} {value}": plain.having(f"{key}={value}") for value in values.split(",")}
    if args.what == "loader":
        return {"ready batches": plain}
    key = "train.precision" if args.what == "train" else "evaluation.precision"
    arms = {BASELINE: plain.having(f"{key}=float32", "train.rows=padded", baseline=True)}
    arms |= {name: plain.having(f"{key}={name}") for name in precisions(args)}
    if getattr(args, "compile", False):
        name = precisions(args)[-1]
        arms[f"{name} compiled"] = plain.having(f"{key}={name}", "train.compile=true")
    return arms


def precisions(args: argparse.Namespace) -> list[str]:
    return ["float32"] if args.no_bf16 else ["float32", "bf16"]


def make_data(
    folder: Path, sizes: dict[str, Any], splits: tuple[str, ...] = ("train",)
) -> tuple[str, ...]:
    """Write made-up data, five questions per image; returns the config's overrides for it."""
    images = -(-sizes["questions"] // 5)
    paths = make_synthetic(folder, images=images, words=WORD_COUNTS, splits=splits, **sizes)
    return f"data.prepared={paths.prepared}", f"data.images=[{paths.images}]", "data.max_tokens=14"


if __name__ == "__main__":
    command(main)
