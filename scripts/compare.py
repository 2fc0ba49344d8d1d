#!/usr/bin/env python3
"""Compare two runs, or two groups of runs, question by question; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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
        usage="compare.py (RUN RUN | --a RUN ... --b RUN ...) [key=value ...] [options]",
        description="Difference B - A of the accuracies of two runs on the same questions, overall "
        "and per type, with paired bootstrap intervals, and the questions that changed. Groups of "
        "runs are paired by seed, and the intervals cover questions and seeds.",
        epilog="At 95 %, 5 in 100 intervals exclude zero without a real difference; those of fewer "
        "than about 30 questions or 10 seeds are too narrow.",
    )
    described = (
        "a run folder (its evaluation at the latest step counts), or a folder with a "
        f"{PREDICTIONS_FILE} of eval.py; key=value changes a key of the runs' configs: "
        "data.prepared=... says where the data is now"
    )
    parser.add_argument("runs", metavar="RUN | key=value", nargs="*", help=described)
    for name in ("--a", "--b"):
        group = f"the runs of group {name[2:].upper()}, one of each seed"
        parser.add_argument(name, metavar="RUN", nargs="+", default=[], help=group)
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
    args = parser.parse_intermixed_args()
    args.overrides = list(filter(_OVERRIDE.match, [*args.runs, *args.a, *args.b]))
    runs, *groups = (
        [Path(text) for text in texts if text not in args.overrides]
        for texts in (args.runs, args.a, args.b)
    )
    args.groups = [*([run] for run in runs), *filter(None, groups)]
    if len(args.groups) != 2:
        raise RunError("name two runs, RUN RUN, or two groups, --a RUN ... --b RUN ...")
    return args


def main() -> None:
    args = parse()
    refuse_existing(args.json, "--json")
    configs = read_configs([*args.groups[0], *args.groups[1]], args.overrides)
    groups = pair_by_seed(args.groups, configs)
    config, *_ = configs.values()
    name = args.split or config.data.evaluate
    if name is None:
        raise RunError(f"{groups[0][0]}: the config has no data.evaluate; use --split")
    prepared = Prepared.open(config.data.prepared)
    metric: str = args.metric or config.evaluation.metric or prepared.metric
    split = read_split(configs.values(), name)
    ids, where = array_to_ids(split.question_ids), f"split {name} of {prepared.folder}"
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
    resamples = RESAMPLES if len(scores_a) == 1 else RESAMPLES_OF_SEEDS
    by_seed = [percentage(b) - percentage(a) for a, b in zip(scores_a, scores_b, strict=True)]

    images = split.image_index if args.by == "image" else None
    rows = differences(scores_a, scores_b, split, images, args.confidence, resamples)
    changed = changed_questions(answers_a, answers_b, scores_a, scores_b, split)
    counts = outcomes(changed, len(split))
    if args.json:
        record = {
            "a": list(map(str, folders[0])),
            "b": list(map(str, folders[1])),
            "prepared": str(prepared.folder),
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
        print(f"{label}: {', '.join(map(str, group))}")
    drawn = f"{args.by}s" if len(by_seed) == 1 else f"{args.by}s and {len(by_seed)} seeds"
    print(f"split {name}, metric {metric}; {resamples:,} resamples of {drawn}\n")
    print(difference_table(rows, args.confidence))
    print("* the interval excludes zero")
    print(f"B - A by seed: {', '.join(map(signed, by_seed))}")
    if len(by_seed) == 1:
        print("one seed: the intervals do not cover the randomness of training; see --a and --b")
    print("\n" + ", ".join(f"{outcome}: {count:,}" for outcome, count in counts.items()))
    if changed:
        print(f"\nchanged, {min(SHOWN, len(changed))} of {len(changed):,}:")
        print(list_changed(changed[:SHOWN]))


def read_configs(targets: Sequence[Path], overrides: Sequence[str]) -> dict[Path, Config]:
    """The config of the run that each target is, or in whose predictions/ it is.

    Of two targets, one without a run has that of the other, or of `overrides` alone.
    """
    found: dict[Path, Config | None] = {}
    for target in targets:
        candidates = map(RunFolder, (target, target.resolve().parent.parent))
        run = next((each for each in candidates if each.exists), None)
        found[target] = load_config(run.config, overrides) if run else None
        if run is None and len(targets) > 2:
            raise RunError(f"{target}: not in a run folder, so its seed is unknown")
    known = next(filter(None, found.values()), None)
    if known is None:
        # Only the prepared data, the split and the metric are used.
        stated = {"name": "comparison", "data": {"images": ["none"]}}
        where = f"{' and '.join(map(str, targets))} are not in run folders"
        known = config_from_dict(stated, where, overrides)
    return {target: config or known for target, config in found.items()}


def pair_by_seed(
    groups: Sequence[Sequence[Path]], configs: Mapping[Path, Config]
) -> list[list[Path]]:
    """Both groups in the order of their seeds; one run each is a pair, whatever its seed."""
    pairs = [sorted(group, key=lambda run: configs[run].seed) for group in groups]
    a, b = ([configs[run].seed for run in group] for group in pairs)
    if len(a) + len(b) > 2 and (a != b or len({*a}) < len(a)):
        raise RunError(
            f"the seeds of A are {shorten(a)}, those of B {shorten(b)}; runs are paired by seed, "
            "so both groups need one run of each"
        )
    return pairs


def read_split(configs: Iterable[Config], name: str) -> Split:
    """The split of the first config; `DataError` if that of another has other questions."""
    sources = dict.fromkeys((config.data.prepared, config.data.limit) for config in configs)
    opened = ((Prepared.open(path).split(name), limit) for path, limit in sources)
    split, *others = (each.first(limit) if limit else each for each, limit in opened)
    for theirs in others:
        # Their ids are compared with those of the predictions.
        if list(theirs.questions) != list(split.questions):
            reason = "compare runs on the same questions, with the same data.limit"
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
