#!/usr/bin/env python3
"""Score a result file, from here or elsewhere, against human answers; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mcan.console import message
from mcan.data.arrays import Id, array_to_ids
from mcan.data.prepared import Categories, Prepared, Split
from mcan.errors import DataError, command
from mcan.evaluation.metrics import METRICS, accuracies, percentage, summarise_scores
from mcan.evaluation.results import accuracy_table, name_ids, read_results
from mcan.files import refuse_existing, save_text
from mcan.preparation.questions import (
    Example,
    by_question_id,
    read_annotations,
    read_questions,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Accuracy of a result file, a JSON list of {question_id, answer}, overall, per "
        "answer type and per question type.",
        epilog="Files may be plain, .gz, or a member of a zip archive (archive.zip/name.json).",
    )
    parser.add_argument("results", metavar="RESULTS.json", type=Path)
    meaning = "in the VQA layout (default with --split: the answers that the split holds)"
    parser.add_argument("--annotations", type=Path, help=meaning)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--questions", type=Path, help="score only these; all must be annotated")
    meaning = "score only the questions of a split of a prepared dataset"
    chosen.add_argument("--split", nargs=2, metavar=("PREPARED", "SPLIT"), help=meaning)
    meaning = "default: that of PREPARED, else vqa"
    parser.add_argument("--metric", choices=METRICS, help=meaning)
    parser.add_argument("--output", type=Path, help="write the metrics as JSON")
    args = parser.parse_args()
    if not (args.annotations or args.split):
        parser.error("give --annotations or --split")
    return args


def main() -> None:
    args = parse()
    refuse_existing(args.output, "--output")
    metric, annotations = args.metric or "vqa", dict[Id, Example]()
    if args.annotations:
        annotations = by_question_id(read_annotations(args.annotations), args.annotations)
    ids, where = list(annotations), str(args.annotations)
    if args.questions:
        ids = list(by_question_id(read_questions(args.questions), args.questions))
        where = str(args.questions)
    elif args.split:
        prepared = Prepared.open(args.split[0])
        split, metric = prepared.split(args.split[1]), args.metric or prepared.metric
        ids, where = array_to_ids(split.question_ids), f"split {split.name} of {prepared.folder}"
        if not args.annotations:
            annotations = dict(zip(ids, split_annotations(split), strict=True))
    if unknown := [i for i in ids if i not in annotations]:
        raise DataError(f"{args.annotations}: {name_ids(unknown)} of {where} not annotated")
    predictions = read_results(args.results, ids, where)
    given = [annotations[i] for i in ids]
    answer_types = _types([annotation.answer_type for annotation in given])
    question_types = _types([annotation.question_type for annotation in given])
    answers = [annotation.answers for annotation in given]
    scores = accuracies(metric, predictions, answers)
    metrics = {**summarise_scores(scores, answer_types, question_types), "metric": metric}
    print(f"{args.results}, metric {metric}\n")
    print(accuracy_table(metrics, answer_types, question_types))
    normalised = percentage(accuracies("vqa_normalised", predictions, answers))
    if metrics["overall"] < normalised - 1:
        message(
            f"warning: the metric vqa_normalised gives {normalised:.2f}: {metric} compares the "
            "answer of people who all agree as they wrote it"
        )
    if args.output:
        save_text(args.output, json.dumps(metrics, indent=2) + "\n")


def split_annotations(split: Split) -> Iterator[Example]:
    """The answers and types that a prepared split holds; `DataError` if it has none."""
    if not split.human_answers.complete:
        raise DataError(f"{split.path}: some questions have no answers; give --annotations")
    types, kinds = split.answer_types, split.question_types
    rows = zip(split.human_answers, types.codes, kinds.codes, strict=True)
    for answers, answer_type, question_type in rows:
        yield Example(0, 0, "", answers, types.names[answer_type], kinds.names[question_type])


def _types(names: Sequence[str]) -> Categories:
    distinct, codes = np.unique(np.array(names, dtype=object), return_inverse=True)
    return Categories(codes.astype(np.int32), tuple(distinct.tolist()))


if __name__ == "__main__":
    command(main)
