#!/usr/bin/env python3
"""Compare two runs, or two groups of runs, question by question; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mcan.config import Config, config_from_dict, load_config
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared, Split
from mcan.engine.run_folder import RunFolder
from mcan.errors import DataError, RunError, command, shorten
from mcan.evaluation.comparison import (
    RESAMPLES,
    RESAMPLES_OF_SEEDS,
    changed_questions,
    difference_table,
    differences,
    list_changed,
    outcomes,
    signed,
)
from mcan.evaluation.metrics import METRICS, accuracies, percentage
from mcan.evaluation.results import PREDICTIONS_FILE, read_results
from mcan.files import refuse_existing, save_text

SHOWN = 10
_OVERRIDE = re.compile(r"[\w.]+=")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="compare.py RUN RUN [key=value ...] [options]\n"
        "       compare.py --a RUN [RUN ...] --b RUN [RUN ...] [key=value ...] [options]",
        description="Difference B - A of the accuracies of two runs on the same questions, overall "
        "and per type, with paired bootstrap intervals, and the questions that changed. Groups of "
        "runs are paired by seed, and the intervals cover questions and seeds.",
        epilog="At 95 %, 5 in 100 intervals exclude zero without a real difference; those of fewer "
        "than about 30 questions or 10 seeds are too narrow.",
    )
    described = (
        "A and B: a run folder (its evaluation at the latest step counts), or a folder with a "
        f"{PREDICTIONS_FILE} of eval.py; key=value changes a key of the runs' configs: "
        "data.prepared=... says where the data is now"
    )
    parser.add_argument("arguments", metavar="RUN | key=value", nargs="*", help=described)
    for name in ("--a", "--b"):
        group = f"the runs of group {name[2:].upper()}, one of each seed"
        parser.add_argument(name, metavar="RUN", nargs="+", default=[], help=group)
    parser.add_argument("--split", help="split to compare (default: data.evaluate of A)")
    parser.add_argument("--metric", choices=METRICS, help="default: that of eval.py for the runs")
    parser.add_argument(
        "--by",
        choices=("question", "image"),
        default="question",
        help="resample questions (default), or images with all their questions",
    )
    percent = "of the intervals, in %% (default: 95)"
    parser.add_argument("--confidence", type=int, choices=(90, 95, 99), default=95, help=percent)
    parser.add_argument("--json", type=Path, help="write everything, with all changed questions")
    args = parser.parse_intermixed_args()
    texts = [*args.arguments, *args.a, *args.b]
    args.overrides = [text for text in texts if _OVERRIDE.match(text)]
    alone, args.a, args.b = (
        [Path(text) for text in given if not _OVERRIDE.match(text)]
        for given in (args.arguments, args.a, args.b)
    )
    if len(alone) == 2 and not (args.a or args.b):
        args.a, args.b = alone[:1], alone[1:]
    elif alone or not (args.a and args.b):
        raise RunError("name two runs, RUN RUN, or two groups, --a RUN ... --b RUN ...")
    else:
        folders = [path.resolve() for path in (*args.a, *args.b)]
        if twice := [path for path in folders if folders.count(path) > 1]:
            raise RunError(f"{twice[0]}: named twice; each run belongs to one group, once")
    return args


def main() -> None:
    args = parse()
    refuse_existing(args.json, "--json")
    configs = read_configs([*args.a, *args.b], args.overrides)
    groups = pair_by_seed(args.a, args.b, configs)
    config = configs[groups[0][0]]
    name = args.split or config.data.evaluate
    if name is None:
        raise RunError(f"{args.a[0]}: the config has no data.evaluate; name a split with --split")
    paths = dict.fromkeys([config.data.prepared, *(c.data.prepared for c in configs.values())])
    prepared = {path: Prepared.open(path) for path in paths}
    home, *others = prepared.values()
    found = {c.evaluation.metric or prepared[c.data.prepared].metric for c in configs.values()}
    if len(found) > 1 and not args.metric:
        raise RunError(f"scored with {' and '.join(sorted(found))}; choose one with --metric")
    metric: str = args.metric or found.pop()
    split = read_split(home, others, name)
    limits = {c.data.limit for c in configs.values()}
    if len(limits) > 1:
        raise RunError("the runs have different data.limit; compare runs on the same questions")
    if (limit := config.data.limit) is not None:
        split = split.first(limit)
    ids, where = array_to_ids(split.question_ids), f"split {name} of {home.folder}"
    humans = list(split.human_answers)
    folders = [[find_predictions(target, name) for target in group] for group in groups]
    answers_a, answers_b = (
        [read_results(folder / PREDICTIONS_FILE, ids, where) for folder in group]
        for group in folders
    )
    scores_a, scores_b = (
        np.array([accuracies(metric, given, humans) for given in group])
        for group in (answers_a, answers_b)
    )
    by_seed = [percentage(b) - percentage(a) for a, b in zip(scores_a, scores_b, strict=True)]
    resamples = RESAMPLES if len(by_seed) == 1 else RESAMPLES_OF_SEEDS

    rows = differences(scores_a, scores_b, split, args.by == "image", args.confidence)
    counts = outcomes(scores_a, scores_b)
    changed = changed_questions(answers_a, answers_b, scores_a, scores_b, split)
    if args.json:
        named = [str(group[0]) if len(group) == 1 else [*map(str, group)] for group in folders]
        record = {
            "a": named[0],
            "b": named[1],
            "prepared": str(home.folder),
            "split": name,
            "metric": metric,
            "by": args.by,
            "resamples": resamples,
            "confidence": args.confidence,
            "by_seed": by_seed,
            "differences": [row._asdict() for row in rows],
            "outcomes": counts,
            "changed": changed,
        }
        save_text(args.json, json.dumps(record, indent=2) + "\n")
    for label, group in zip("AB", folders, strict=True):
        print(*(f"{label}: {folder}" for folder in group), sep="\n")
    drawn = f"{args.by}s" + (f" and {len(by_seed)} seeds" if len(by_seed) > 1 else "")
    print(f"split {name}, metric {metric}; {resamples:,} resamples of {drawn}\n")
    print(difference_table(rows, args.confidence))
    print("* the interval excludes zero")
    print(f"{seed_note(by_seed, args.by)}\n")
    print(", ".join(f"{outcome}: {count:,}" for outcome, count in counts.items()))
    if changed:
        print(f"\nchanged, {min(SHOWN, len(changed))} of {len(changed):,}:")
        print(list_changed(changed[:SHOWN]))


def seed_note(by_seed: Sequence[float], by: str) -> str:
    """What one seed alone cannot tell: a sentence on the differences `by_seed`, in points."""
    if len(by_seed) == 1:
        return (
            f"one seed each: the intervals cover the choice of {by}s, not the randomness of "
            "training, which only runs with several seeds show (--a RUN ... --b RUN ...)"
        )
    shown = ", ".join(map(signed, by_seed))
    return f"B - A by seed: {shown}; one seed alone cannot tell how much another differs"


def read_configs(targets: Sequence[Path], overrides: Sequence[str]) -> dict[Path, Config]:
    """The config of the run that each target is, or in whose predictions/ it is.

    Of two targets, one without a run has that of the other, or of `overrides` alone.
    """
    found: dict[Path, Config] = {}
    for target in targets:
        if not target.is_dir():
            raise RunError(f"{target}: no such run folder")
        candidates = map(RunFolder, (target, target.resolve().parent.parent))
        if run := next((each for each in candidates if each.exists), None):
            found[target] = load_config(run.config, overrides)
        elif len(targets) > 2:
            raise RunError(f"{target}: not in a run folder, so its seed is unknown")
    if not found:
        # Only the prepared data, the split and the metric are used.
        stated = {"name": "comparison", "data": {"images": ["none"]}}
        where = f"{targets[0]} and {targets[1]} are not in run folders"
        found[targets[0]] = config_from_dict(stated, where, overrides)
    known = next(iter(found.values()))
    return {target: found.get(target, known) for target in targets}


def pair_by_seed(
    a: Sequence[Path], b: Sequence[Path], configs: Mapping[Path, Config]
) -> tuple[Sequence[Path], Sequence[Path]]:
    """Both groups in the order of their seeds; one run each is a pair, whatever its seed."""
    a, b = (sorted(group, key=lambda target: configs[target].seed) for group in (a, b))
    seeds = [[configs[target].seed for target in group] for group in (a, b)]
    repeated = len({*seeds[0]}) < len(a)
    if len(a) + len(b) > 2 and (repeated or seeds[0] != seeds[1]):
        raise RunError(
            f"the runs of --a have the seeds {shorten(seeds[0])}, those of --b "
            f"{shorten(seeds[1])}; runs are paired by seed, so both groups need one run of each"
        )
    return a, b


def read_split(home: Prepared, others: Sequence[Prepared], name: str) -> Split:
    """The split of `home`; `DataError` if that of another has other questions."""
    split = home.split(name)
    for theirs in (other.split(name) for other in others):
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
