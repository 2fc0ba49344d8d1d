#!/usr/bin/env python3
"""Compare two runs question by question: `compare.py RUN RUN [key=value ...]`; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from mcan.build import choose_metric
from mcan.config import Config, config_from_dict, load_config
from mcan.console import positive
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared, Split
from mcan.engine.run_folder import RunFolder
from mcan.errors import DataError, RunError, command
from mcan.evaluation.comparison import (
    Bootstrap,
    changed_questions,
    difference_table,
    differences,
    list_changed,
    outcomes,
)
from mcan.evaluation.metrics import METRICS, accuracies, explain_metrics
from mcan.evaluation.results import PREDICTIONS_FILE, name_ids, read_results
from mcan.files import refuse_existing, save_text

SHOWN = 10
T = TypeVar("T")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Difference B - A of the accuracies of two runs on the same questions, overall "
        "and per type, with paired bootstrap intervals, and the questions that changed.",
        epilog="At 95 %, 5 in 100 intervals exclude zero without a real difference; those of fewer "
        "than about 30 questions are too narrow.",
    )
    described = (
        "A and B: a run folder (its evaluation at the latest step counts), or a folder with "
    )
    described += f"a {PREDICTIONS_FILE} of eval.py"
    parser.add_argument("runs", metavar="RUN", nargs=2, type=Path, help=described)
    moved = "change a key of the runs' configs: data.prepared=... says where the data is now"
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=moved)
    parser.add_argument("--split", help="split to compare (default: data.evaluate)")
    meanings = f"{explain_metrics()} (default: as eval.py)"
    parser.add_argument("--metric", choices=METRICS, help=meanings)
    parser.add_argument(
        "--by",
        choices=("question", "image"),
        default="question",
        help="resample questions (default), or images with all their questions",
    )
    parser.add_argument("--resamples", type=positive, default=10_000, help="default: 10000")
    parser.add_argument(
        "--confidence", type=_percent, default=95.0, help="of the intervals, in %% (default: 95)"
    )
    parser.add_argument("--json", type=Path, help="write everything, with all changed questions")
    return parser.parse_intermixed_args()


def _percent(text: str) -> float:
    # 1 and less would be a share: 0.95 for 95 %.
    if not 1 < (number := float(text)) < 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100; 95 % is written 95")
    return number


def main() -> None:
    args = parse()
    refuse_existing(args.json, "--json")
    targets: list[Path] = args.runs
    configs = read_configs(targets, args.overrides)
    opened = [Prepared.open(config.data.prepared) for config in configs]
    evaluated = [config.data.evaluate for config in configs]
    name = args.split or agreed(evaluated, "--split", targets)
    if name is None:
        raise RunError(f"{targets[0]}: the config has no data.evaluate; name a split with --split")
    metric: str = args.metric or agreed(map(choose_metric, configs, opened), "--metric", targets)
    split = read_split(opened, name)
    ids, where = array_to_ids(split.question_ids), f"split {name} of {opened[0].folder}"
    humans = list(split.human_answers)
    folders = [find_predictions(target, name) for target in targets]
    answers_a, answers_b = (read_results(f / PREDICTIONS_FILE, ids, where) for f in folders)
    scores_a, scores_b = (accuracies(metric, given, humans) for given in (answers_a, answers_b))

    bootstrap = Bootstrap(args.resamples, args.confidence)
    rows = differences(scores_a, scores_b, split, args.by == "image", bootstrap)
    counts = outcomes(scores_a, scores_b)
    changed = changed_questions(answers_a, answers_b, scores_a, scores_b, split)
    if args.json:
        record = {
            "a": str(folders[0]),
            "b": str(folders[1]),
            "prepared": str(opened[0].folder),
            "split": name,
            "metric": metric,
            "by": args.by,
            **bootstrap._asdict(),
            "differences": [row._asdict() for row in rows],
            "outcomes": counts,
            "changed": changed,
        }
        save_text(args.json, json.dumps(record, indent=2) + "\n")
    print(f"A: {folders[0]}\nB: {folders[1]}")
    print(f"split {name}, metric {metric}; {args.resamples:,} resamples of {args.by}s\n")
    print(difference_table(rows, args.confidence))
    print("* the interval excludes zero\n")
    print(", ".join(f"{outcome}: {count:,}" for outcome, count in counts.items()))
    if changed:
        print(f"\nchanged, {min(SHOWN, len(changed))} of {len(changed):,}:")
        print(list_changed(changed[:SHOWN]))


def read_configs(targets: Sequence[Path], overrides: Sequence[str]) -> list[Config]:
    """The config of the run that each target is, or in whose predictions/ it is.

    Without a run, it is that of the other target, or of `overrides` alone.
    """
    runs = []
    for target in targets:
        candidates = map(RunFolder, (target, target.resolve().parent.parent))
        run = next((each for each in candidates if each.exists), None)
        if not (target / PREDICTIONS_FILE).is_file() and (run is None or run.path != target):
            raise RunError(f"{target}: neither a run folder nor a folder with {PREDICTIONS_FILE}")
        runs.append(run)
    paths = [run.config for run in runs if run]
    if paths:
        return [load_config(run.config if run else paths[0], overrides) for run in runs]
    where = f"{targets[0]} and {targets[1]} are not in run folders"
    # Only the prepared data, the split and the metric are used.
    stated = {"name": "comparison", "data": {"images": ["none"]}}
    return [config_from_dict(stated, where, overrides)] * 2


def agreed(values: Iterable[T], option: str, targets: Sequence[Path]) -> T:
    """The value that both have; `RunError` names the option that settles a disagreement."""
    ours, theirs = values
    if ours != theirs:
        differ = f"{targets[0]} has the {option[2:]} {ours} and {targets[1]} {theirs}"
        raise RunError(f"{differ}; give {option}")
    return ours


def read_split(opened: Sequence[Prepared], name: str) -> Split:
    """The split of the first; `DataError` if that of the second has other questions."""
    split, other = (prepared.split(name) for prepared in opened)
    if other.path != split.path:
        theirs = dict(zip(array_to_ids(other.question_ids), other.questions, strict=True))
        ours = zip(array_to_ids(split.question_ids), split.questions, strict=True)
        if differing := [i for i, question in ours if theirs.get(i) != question]:
            reason = "missing or worded differently; compare runs on the same questions"
            raise DataError(f"{other.path}: {name_ids(differing)} of {split.path} {reason}")
    if not split.human_answers.complete:
        raise DataError(f"{split.path}: questions without human answers to score against")
    return split


def find_predictions(target: Path, split: str) -> Path:
    """`target` itself, or its evaluation of `split` at the latest step."""
    if (target / PREDICTIONS_FILE).is_file():
        return target
    pattern = re.compile(rf"{re.escape(split)}_step_(\d+)")
    steps = {
        int(match[1]): file.parent
        for file in (target / "predictions").glob(f"*/{PREDICTIONS_FILE}")
        if (match := pattern.fullmatch(file.parent.name))
    }
    if not steps:
        advice = f"make one with eval.py {target} --split {split}"
        raise RunError(f"{target}: no evaluation of {split} in predictions/; {advice}")
    return steps[max(steps)]


if __name__ == "__main__":
    command(main)
