#!/usr/bin/env python3
"""Compare two runs, or two groups of runs, question by question; see `--help`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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
    signed,
)
from mcan.evaluation.metrics import METRICS, accuracies, percentage
from mcan.evaluation.results import METRICS_FILE, PREDICTIONS_FILE, read_results
from mcan.files import parse_json, refuse_existing, save_text

SHOWN = 10
_OVERRIDE = re.compile(r"[\w.]+=")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="compare.py (RUN RUN | --a RUN ... --b RUN ...) [key=value ...] [options]",
        description="Print the difference B - A between the accuracies of two runs on the same "
        "questions, overall and per type, with paired bootstrap intervals, and the questions whose "
        "answers changed. Groups of runs are paired by seed; their intervals cover questions and "
        "seeds.",
        epilog="At 95 %, 5 in 100 intervals exclude zero without a real difference. Intervals from "
        "fewer than about 30 questions or 10 seeds are too narrow.",
    )
    add = parser.add_argument
    meaning = (
        "a run folder (uses its evaluation at the latest step), or a folder with a "
        f"{PREDICTIONS_FILE} of eval.py, also outside a run; key=value changes a key of the runs' "
        "configs, such as data.prepared=... if the data has moved"
    )
    add("runs", metavar="RUN | key=value", nargs="*", help=meaning)
    for name in ("--a", "--b"):
        meaning = f"the runs of group {name[2:].upper()}, one of each seed"
        add(name, metavar="RUN", nargs="+", default=[], help=meaning)
    add("--split", help="split to compare (default: that of A's result or config)")
    add("--metric", choices=METRICS, help="default: the metric of eval.py for A")
    meaning = "resample questions (default), or images with all their questions"
    add("--by", choices=("question", "image"), default="question", help=meaning)
    meaning = "confidence level of the intervals, in %% (default: 95)"
    add("--confidence", type=int, choices=(90, 95, 99), default=95, help=meaning)
    add("--json", type=Path, help="write everything to a file, including all changed questions")
    args = parser.parse_intermixed_args()
    texts = [*([run] for run in args.runs), args.a, args.b]
    args.overrides = [text for text in chain(*texts) if _OVERRIDE.match(text)]
    groups = ([Path(text) for text in group if not _OVERRIDE.match(text)] for group in texts)
    args.groups = list(filter(None, groups))
    if len(args.groups) != 2:
        raise RunError("name two runs, RUN RUN, or two groups, --a RUN ... --b RUN ...")
    return args


def main() -> None:
    args = parse()
    refuse_existing(args.json, "--json")
    configs = read_configs([*args.groups[0], *args.groups[1]], args.overrides)
    groups = pair_by_seed(args.groups, configs)
    config, *_ = configs.values()
    name = args.split or stated(groups[0][0]).get("split") or config.data.evaluate
    if name is None:
        raise RunError(f"{groups[0][0]}: the config has no data.evaluate; use --split")
    moved = any(text.startswith("data.prepared=") for text in args.overrides)
    folders = [[find_predictions(run, configs[run], name) for run in group] for group in groups]
    pairs = zip(chain(*groups), chain(*folders), strict=True)
    splits = {folder: read_split(folder, configs[run], name, moved) for run, folder in pairs}
    split = same_questions(splits)
    prepared = Prepared.open(split.path.parent)
    metric: str = args.metric or config.evaluation.metric or prepared.metric
    ids, where = array_to_ids(split.question_ids), f"split {name} of {prepared.folder}"
    humans = list(split.human_answers)
    answers = [
        [read_results(folder / PREDICTIONS_FILE, ids, where) for folder in group]
        for group in folders
    ]
    scores = [np.array([accuracies(metric, run, humans) for run in group]) for group in answers]
    by_seed = [percentage(b) - percentage(a) for a, b in zip(*scores, strict=True)]
    resamples = RESAMPLES if len(by_seed) == 1 else RESAMPLES_OF_SEEDS

    images = split.image_index if args.by == "image" else None
    rows = differences(scores, split, images, args.confidence, resamples)
    changed = changed_questions(answers, scores, split)
    better = sum(item["change"] > 0 for item in changed)
    counts = {"better with B": better, "worse with B": len(changed) - better}
    counts["equal"] = len(split) - len(changed)
    if args.json:
        record: dict[str, Any] = {"a": [*map(str, folders[0])], "b": [*map(str, folders[1])]}
        record |= {"prepared": str(prepared.folder), "split": name, "metric": metric}
        record |= {"by": args.by, "resamples": resamples, "confidence": args.confidence}
        record |= {"by_seed": by_seed, "differences": [row._asdict() for row in rows]}
        record |= {"outcomes": counts, "changed": changed}
        save_text(args.json, json.dumps(record, indent=2) + "\n")
    for label, group in zip("AB", folders, strict=True):
        print(f"{label}: {', '.join(map(str, group))}")
    drawn = f"{args.by}s" if len(by_seed) == 1 else f"{args.by}s and {len(by_seed)} seeds"
    part = f"\nA and B answer {coverage(split)}" if split.changed else ""  # cut by data.limit
    print(f"split {name}, metric {metric}; {resamples:,} resamples of {drawn}{part}\n")
    print(difference_table(rows, args.confidence))
    print(f"B - A by seed: {', '.join(map(signed, by_seed))}")
    if len(by_seed) == 1:
        print("one seed: the intervals do not cover the randomness of training; see --a and --b")
    print("\n" + ", ".join(f"{outcome}: {count:,}" for outcome, count in counts.items()))
    if changed:
        print(f"\nchanged, {min(SHOWN, len(changed))} of {len(changed):,}:")
        print(list_changed(changed[:SHOWN]))


def read_configs(targets: Sequence[Path], overrides: Sequence[str]) -> dict[Path, Config]:
    """The config of each target's run. A target is a run folder or a folder in its predictions/.

    With two targets, one without a run gets the config of the other, or else what metrics.json and
    `overrides` say.
    """
    found: dict[Path, Config | None] = {}
    for target in targets:
        candidates = map(RunFolder, (target, target.resolve().parent.parent))
        run = next((each for each in candidates if each.exists), None)
        found[target] = load_config(run.config, overrides) if run else None
        if run is None and not (target / PREDICTIONS_FILE).is_file():
            there = "" if target.exists() else "; there is no such folder"
            of_eval = f"one with a {PREDICTIONS_FILE} of eval.py"
            raise RunError(f"{target}: neither a run folder nor {of_eval}{there}")
        if run is None and len(targets) > 2:
            raise RunError(f"{target}: not in a run folder, so its seed is unknown")
    known = next(filter(None, found.values()), None)
    if known is None:
        # Only the prepared data, the split and the metric are used.
        result = stated(targets[0])
        content: dict[str, Any] = {"name": "comparison", "data": {"images": ["none"]}}
        content["evaluation"] = {"metric": result.get("metric")}
        if "prepared" in result:
            content["data"]["prepared"] = result["prepared"]
        where = f"{targets[0]}: not in a run folder, and no {METRICS_FILE} names its dataset"
        known = config_from_dict(content, where, overrides)
    return {target: config or known for target, config in found.items()}


def stated(folder: Path) -> dict[str, Any]:
    """What eval.py says of a result, with its `limit`; nothing if there is no metrics.json."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
        texts = (content.get(key, "") for key in ("prepared", "split", "metric"))
        if not (isinstance(content["limit"], int | None) and all(type(t) is str for t in texts)):
            raise TypeError
        return content
    except (AttributeError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{path}: not written by eval.py, or damaged") from error


def pair_by_seed(
    groups: Sequence[Sequence[Path]], configs: Mapping[Path, Config]
) -> list[list[Path]]:
    """Sort both groups by seed. One run each is a pair, whatever the seeds."""
    pairs = [sorted(group, key=lambda run: configs[run].seed) for group in groups]
    a, b = ([configs[run].seed for run in group] for group in pairs)
    if len(a) + len(b) > 2 and (a != b or len({*a}) < len(a)):
        raise RunError(
            f"the seeds of A are {shorten(a)}, those of B {shorten(b)}; runs are paired by seed, "
            "so both groups need one run per seed"
        )
    return pairs


def read_split(folder: Path, config: Config, name: str, moved: bool = False) -> Split:
    """The questions of a result: those named in its metrics.json, else those of the config.

    If the prepared data has `moved`, the config says where it is.
    """
    prepared, limit = config.data.prepared, config.data.limit
    if result := stated(folder):
        limit = result["limit"]
        prepared = prepared if moved else result.get("prepared", prepared)
    split = Prepared.open(prepared).split(name)
    if not split.human_answers.complete:
        raise DataError(f"{split.path}: some questions have no human answers")
    return split.first(limit) if limit else split


def same_questions(splits: Mapping[Path, Split]) -> Split:
    """The split of the first result; `DataError` if the results are on different questions."""
    (first, split), *others = splits.items()
    for folder, theirs in others:
        # Their ids are compared with those of the predictions.
        if not np.array_equal(theirs.question_keys, split.question_keys):
            raise DataError(
                f"{folder} answers {coverage(theirs)}, {first} {coverage(split)}; compare results "
                "on the same questions, with the same data.limit"
            )
    return split


def coverage(split: Split) -> str:
    total = Prepared.open(split.path.parent).meta["splits"][split.name]["questions"]
    part = f"only the first {len(split):,} (data.limit)" if len(split) < total else "all"
    return f"{part} of the {total:,} questions of {split.path}"


def find_predictions(target: Path, config: Config, split: str) -> Path:
    """`target` itself, or its evaluation of `split` at the latest step."""
    if (target / PREDICTIONS_FILE).is_file():
        return target
    found = (target / "predictions").glob(f"{split}_step_*/{PREDICTIONS_FILE}")
    folders = sorted((file.parent for file in found), key=lambda path: (len(path.name), path))
    if not folders:
        read_split(target, config, split)  # if it cannot be scored, that is the reason to give
        advice = f"make one with eval.py {target} --split {split}"
        if others := sorted((target / "predictions").glob(f"data_*_{split}_step_*")):
            advice += f", or name a result on other data or with data.limit: {shorten(others)}"
        raise RunError(f"{target}: no evaluation of {split} in predictions/; {advice}")
    return folders[-1]


if __name__ == "__main__":
    command(main)
