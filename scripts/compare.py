#!/usr/bin/env python3
"""Compare two runs question by question: `compare.py RUN RUN [key=value ...]`; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mcan.config import Config, config_from_dict, load_config
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared, Split
from mcan.engine.run_folder import RunFolder
from mcan.errors import DataError, RunError, command
from mcan.evaluation.comparison import (
    RESAMPLES,
    changed_questions,
    difference_table,
    differences,
    list_changed,
    outcomes,
)
from mcan.evaluation.metrics import METRICS, accuracies
from mcan.evaluation.results import PREDICTIONS_FILE, read_results
from mcan.files import refuse_existing, save_text

SHOWN = 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Difference B - A of the accuracies of two runs on the same questions, overall "
        "and per type, with paired bootstrap intervals, and the questions that changed.",
        epilog="At 95 %, 5 in 100 intervals exclude zero without a real difference; those of fewer "
        "than about 30 questions are too narrow.",
    )
    described = (
        "A and B: a run folder (its evaluation at the latest step counts), or a folder with a "
        f"{PREDICTIONS_FILE} of eval.py"
    )
    parser.add_argument("runs", metavar="RUN", nargs=2, type=Path, help=described)
    moved = "change a key of the runs' configs: data.prepared=... says where the data is now"
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=moved)
    parser.add_argument("--split", help="split to compare (default: data.evaluate of A)")
    parser.add_argument("--metric", choices=METRICS, help="default: as eval.py for A")
    parser.add_argument(
        "--by",
        choices=("question", "image"),
        default="question",
        help="resample questions (default), or images with all their questions",
    )
    percent = "of the intervals, in %% (default: 95)"
    parser.add_argument("--confidence", type=int, choices=(90, 95, 99), default=95, help=percent)
    parser.add_argument("--json", type=Path, help="write everything, with all changed questions")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    refuse_existing(args.json, "--json")
    targets: list[Path] = args.runs
    config, other = read_configs(targets, args.overrides)
    name = args.split or config.data.evaluate
    if name is None:
        raise RunError(f"{targets[0]}: the config has no data.evaluate; name a split with --split")
    prepared = Prepared.open(config.data.prepared)
    metric: str = args.metric or config.evaluation.metric or prepared.metric
    split = read_split(prepared, Prepared.open(other.data.prepared), name)
    ids, where = array_to_ids(split.question_ids), f"split {name} of {prepared.folder}"
    humans = list(split.human_answers)
    folders = [find_predictions(target, name) for target in targets]
    answers_a, answers_b = (read_results(f / PREDICTIONS_FILE, ids, where) for f in folders)
    scores_a, scores_b = (accuracies(metric, given, humans) for given in (answers_a, answers_b))

    rows = differences(scores_a, scores_b, split, args.by == "image", args.confidence)
    counts = outcomes(scores_a, scores_b)
    changed = changed_questions(answers_a, answers_b, scores_a, scores_b, split)
    if args.json:
        record = {
            "a": str(folders[0]),
            "b": str(folders[1]),
            "prepared": str(prepared.folder),
            "split": name,
            "metric": metric,
            "by": args.by,
            "resamples": RESAMPLES,
            "confidence": args.confidence,
            "differences": [row._asdict() for row in rows],
            "outcomes": counts,
            "changed": changed,
        }
        save_text(args.json, json.dumps(record, indent=2) + "\n")
    print(f"A: {folders[0]}\nB: {folders[1]}")
    print(f"split {name}, metric {metric}; {RESAMPLES:,} resamples of {args.by}s\n")
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
    found = []
    for target in targets:
        candidates = map(RunFolder, (target, target.resolve().parent.parent))
        run = next((each for each in candidates if each.exists), None)
        found.append(load_config(run.config, overrides) if run else None)
    ours, theirs = found
    if ours is None and theirs is None:
        # Only the prepared data, the split and the metric are used.
        stated = {"name": "comparison", "data": {"images": ["none"]}}
        where = f"{targets[0]} and {targets[1]} are not in run folders"
        ours = config_from_dict(stated, where, overrides)
    return [config for config in (ours or theirs, theirs or ours) if config]


def read_split(prepared: Prepared, other: Prepared, name: str) -> Split:
    """The split of `prepared`; `DataError` if that of `other` has other questions."""
    split, theirs = prepared.split(name), other.split(name)
    # Their ids are compared with those of the predictions.
    if list(theirs.questions) != list(split.questions):
        reason = "compare runs on the same questions"
        raise DataError(f"{theirs.path}: other questions than in {split.path}; {reason}")
    if not split.human_answers.complete:
        raise DataError(f"{split.path}: questions without human answers to score against")
    return split


def find_predictions(target: Path, split: str) -> Path:
    """`target` itself, or its evaluation of `split` at the latest step."""
    if (target / PREDICTIONS_FILE).is_file():
        return target
    found = (target / "predictions").glob(f"{split}_step_*/{PREDICTIONS_FILE}")
    folder = max(
        (file.parent for file in found), key=lambda path: (len(path.name), path), default=None
    )
    if folder is None:
        advice = f"make one with eval.py {target} --split {split}"
        raise RunError(f"{target}: no evaluation of {split} in predictions/; {advice}")
    return folder


if __name__ == "__main__":
    command(main)
