#!/usr/bin/env python3
"""Compare two runs question by question: `compare.py RUN RUN [key=value ...]`; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mcan.arguments import positive
from mcan.config import Config, config_from_dict, load_config
from mcan.data.prepared import Prepared
from mcan.data.split import Split
from mcan.engine.run_folder import RunFolder
from mcan.errors import DataError, RunError, command
from mcan.evaluation.bootstrap import Bootstrap
from mcan.evaluation.comparison import changed, differences, listing, outcomes, table, to_csv
from mcan.evaluation.metrics import METRICS, Metric, accuracies
from mcan.evaluation.report import METRICS as METRICS_FILE
from mcan.evaluation.report import PREDICTIONS
from mcan.evaluation.results import name_ids, read_results
from mcan.files import save_text
from mcan.wiring import choose_metric

SHOWN = 10
T = TypeVar("T")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Difference B - A of the accuracies of two runs on the same questions, overall "
        "and per type, with paired bootstrap intervals, and the questions that changed.",
        epilog="Of rows without a real difference, 5 in 100 exclude zero at 95 % all the same; "
        "intervals of fewer than about 30 questions are too narrow.",
    )
    for name in "AB":
        parser.add_argument(
            name.lower(),
            metavar=f"RUN_{name}",
            type=Path,
            help="run folder (its evaluation at the latest step counts), or a folder with a "
            f"{PREDICTIONS} of eval.py",
        )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="change a key of the runs' configs: data.prepared=... says where the data is now",
    )
    parser.add_argument(
        "--split", help="split to compare (default: the evaluated one, or data.evaluate)"
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        help="vqa: the organisers' since March 2021; vqa_pre2021: by which earlier papers report; "
        "exact: share of right answers (default: the one that eval.py takes)",
    )
    parser.add_argument(
        "--by",
        choices=("question", "image"),
        default="question",
        help="what is resampled: questions (default), or images with all their questions, since "
        "those of one image are not independent",
    )
    parser.add_argument("--resamples", type=positive, default=10_000, help="default: 10000")
    parser.add_argument("--seed", type=_seed, default=0, help="of the resamples (default: 0)")
    parser.add_argument(
        "--confidence", type=_percent, default=95.0, help="of the intervals, in %% (default: 95)"
    )
    parser.add_argument(
        "--changed", type=Path, metavar="FILE.csv", help="write all questions that changed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write everything")
    return parser.parse_intermixed_args()


def _seed(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _percent(text: str) -> float:
    # 1 and less would be a share: 0.95 for 95 %.
    if not 1 < (number := float(text)) < 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100; 95 % is written 95")
    return number


def main() -> int:
    args = parse()
    check_outputs(args)
    targets = (args.a, args.b)
    configs = read_configs(targets, args.overrides)
    opened = [Prepared.open(config.data.prepared) for config in configs]
    name: str = args.split or agreed(map(evaluated, targets, configs), "--split", targets)
    metric: Metric = args.metric or agreed(map(choose_metric, configs, opened), "--metric", targets)
    split = read_questions(opened, name)
    folder_a, folder_b = (find_predictions(target, name) for target in targets)
    ids, where = split.question_ids.tolist(), f"split {name} of {opened[0].folder}"
    answers_a, answers_b = (
        read_results(folder / PREDICTIONS, ids, where) for folder in (folder_a, folder_b)
    )
    humans = [split.human_answers.of(row) for row in range(len(split))]
    scores_a, scores_b = (accuracies(metric, given, humans) for given in (answers_a, answers_b))

    bootstrap = Bootstrap(args.resamples, args.confidence, args.seed)
    rows = differences(scores_a, scores_b, split, args.by == "image", bootstrap)
    ways = outcomes(scores_a, scores_b)
    questions = changed(answers_a, answers_b, scores_a, scores_b, split)
    if args.changed:
        save_text(args.changed, to_csv(questions))
    if args.json:
        record = {
            "a": str(folder_a),
            "b": str(folder_b),
            "prepared": str(opened[0].folder),
            "split": name,
            "metric": metric,
            "by": args.by,
            **asdict(bootstrap),
            "differences": [asdict(row) for row in rows],
            "outcomes": ways,
            "changed": [asdict(question) for question in questions],
        }
        save_text(args.json, json.dumps(record, indent=2) + "\n")
    print(
        f"A: {folder_a}\nB: {folder_b}\nsplit {name}, metric {metric}; {args.resamples:,} "
        f"resamples of {args.by}s, seed {args.seed}\n\n{table(rows, args.confidence)}\n"
        "* the interval excludes zero\n\n"
        + ", ".join(f"{way}: {count:,}" for way, count in ways.items())
    )
    if questions:
        print(f"\nchanged, {min(SHOWN, len(questions))} of {len(questions):,}:")
        print(listing(questions[:SHOWN]))
    return 0


def check_outputs(args: argparse.Namespace) -> None:
    """Raise `RunError` where a file to be written exists."""
    for option in ("changed", "json"):
        path: Path | None = getattr(args, option)
        if path is not None and path.exists():
            raise RunError(f"{path}: exists; choose another --{option}")
    if args.json is not None and args.json == args.changed:
        raise RunError(f"{args.json}: given for both --changed and --json")


def read_configs(targets: Sequence[Path], overrides: Sequence[str]) -> list[Config]:
    """The config of each target's run; of the other's, or of overrides alone, where it has none."""
    runs = [run_of(target) for target in targets]
    known = [load_config(run.config, overrides) if run else None for run in runs]
    alone = next((config for config in known if config), None)
    if alone is None:
        where = f"{targets[0]} and {targets[1]} are not in run folders"
        # Of a config only the names of data, split and metric are used.
        stated = {"name": "comparison", "data": {"images": ["none"]}}
        alone = config_from_dict(stated, where, overrides)
    return [config or alone for config in known]


def run_of(target: Path) -> RunFolder | None:
    """The run that `target` is, or lies in the predictions/ of."""
    if (run := RunFolder(target)).exists:
        return run
    if not (target / PREDICTIONS).is_file():
        raise RunError(f"{target}: neither a run folder nor a folder with {PREDICTIONS}")
    folder = target.resolve().parent
    run = RunFolder(folder.parent)
    return run if folder.name == "predictions" and run.exists else None


def evaluated(target: Path, config: Config) -> str:
    """The split that a folder of eval.py says it is of, or else the config's."""
    path = target / METRICS_FILE
    if (target / PREDICTIONS).is_file() and path.is_file():
        try:
            record: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not the JSON that eval.py wrote ({error})") from error
        if isinstance(record, dict) and isinstance(record.get("split"), str):
            return str(record["split"])
    if config.data.evaluate is None:
        raise RunError(f"{target}: the config has no data.evaluate; name a split with --split")
    return config.data.evaluate


def agreed(values: Iterable[T], option: str, targets: Sequence[Path]) -> T:
    """The value that both have. Raises `RunError`, which names the option that settles it."""
    ours, theirs = values
    if ours != theirs:
        raise RunError(
            f"{targets[0]} has the {option[2:]} {ours} and {targets[1]} {theirs}; give {option}"
        )
    return ours


def read_questions(opened: Sequence[Prepared], name: str) -> Split:
    """The split of the first; raises `DataError` where that of the second asks something else."""
    split = opened[0].split(name)
    if opened[1].folder != opened[0].folder:
        other = opened[1].split(name)
        theirs = dict(zip(other.question_ids.tolist(), other.questions, strict=True))
        ours = zip(split.question_ids.tolist(), split.questions, strict=True)
        if differing := [i for i, question in ours if theirs.get(i) != question]:
            raise DataError(
                f"{other.path}: {name_ids(differing)} of {split.path} missing or worded otherwise; "
                "compare runs on the same questions"
            )
    if silent := np.flatnonzero(np.diff(split.human_answers.codes.offsets) == 0).tolist():
        ids = split.question_ids[silent].tolist()
        raise DataError(f"{split.path}: {name_ids(ids)} without human answers to score against")
    return split


def find_predictions(target: Path, split: str) -> Path:
    """`target` itself, or its evaluation of `split` at the latest step."""
    if (target / PREDICTIONS).is_file():
        return target
    steps = {
        int(match[1]): folder
        for folder in (target / "predictions").glob("*")
        if (match := re.fullmatch(rf"{re.escape(split)}_step_(\d+)", folder.name))
        and (folder / PREDICTIONS).is_file()
    }
    if not steps:
        raise RunError(
            f"{target}: holds no evaluation of {split} in predictions/; make one with eval.py "
            f"{target} --split {split}"
        )
    return steps[max(steps)]


if __name__ == "__main__":
    command(main)
