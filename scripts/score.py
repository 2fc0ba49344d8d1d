#!/usr/bin/env python3
"""Score a result file, also one made elsewhere, with the VQA accuracy; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcan.data.prepared import Prepared
from mcan.data.split import Types
from mcan.data.vqa_layout import read_annotations, read_questions
from mcan.errors import DataError, RunError, command
from mcan.evaluation.metrics import METRICS, accuracies, summarise, upper_bound
from mcan.evaluation.report import table
from mcan.evaluation.results import name_ids, read_results
from mcan.files import save_text
from mcan.text.vocabulary import Vocabulary


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Accuracy of a result file, a JSON list of {question_id, answer}, overall, per "
        "answer type and per question type.",
        epilog="Files may be plain, .gz, or a member of a zip archive (archive.zip/name.json).",
    )
    parser.add_argument("results", metavar="RESULTS.json", type=Path)
    parser.add_argument("--annotations", type=Path, required=True, help="in the VQA layout")
    parser.add_argument(
        "--questions", type=Path, help="score these questions only; all must be annotated"
    )
    parser.add_argument(
        "--split",
        nargs=2,
        metavar=("PREPARED", "SPLIT"),
        help="score the questions of this split of a prepared folder only, a carved one say",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="vqa",
        help="vqa: the organisers' since March 2021 (default); vqa_pre2021: by which earlier "
        "papers report",
    )
    parser.add_argument(
        "--vocabulary", type=Path, help="vocabulary.json, for the best score its answers allow"
    )
    parser.add_argument("--output", type=Path, help="write the metrics as JSON")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.output and args.output.exists():
        raise RunError(f"{args.output}: exists; choose another --output")
    known = Vocabulary.read(args.vocabulary).answers if args.vocabulary else None
    annotations = read_annotations(args.annotations)
    ids, where = list(annotations), str(args.annotations)
    if args.questions:
        ids, where = [q.question_id for q in read_questions(args.questions)], str(args.questions)
    elif args.split:
        folder, name = args.split
        ids = Prepared.open(folder).split(name).question_ids.tolist()
        where = f"split {name} of {folder}"
    if unknown := [i for i in ids if i not in annotations]:
        raise DataError(f"{args.annotations}: {name_ids(unknown)} of {where} not annotated")
    predictions = read_results(args.results, ids, where)
    given = [annotations[i] for i in ids]
    answers = [annotation.answers for annotation in given]
    answer_types = _types([annotation.answer_type for annotation in given])
    question_types = _types([annotation.question_type for annotation in given])
    scores = accuracies(args.metric, predictions, answers)
    metrics = {**summarise(scores, answer_types, question_types), "metric": args.metric}
    print(f"{args.results}, metric {args.metric}\n\n{table(metrics, answer_types, question_types)}")
    if known is not None:
        metrics["upper_bound"] = 100 * float(upper_bound(args.metric, answers, known).mean())
        print(f"\nbest possible with {len(known):,} answers: {metrics['upper_bound']:.2f} %")
    if args.output:
        save_text(args.output, json.dumps(metrics, indent=2) + "\n")
    return 0


def _types(names: Sequence[str]) -> Types:
    distinct, codes = np.unique(np.array(names, dtype=object), return_inverse=True)
    return Types(codes.astype(np.int32), tuple(distinct.tolist()))


if __name__ == "__main__":
    command(main)
