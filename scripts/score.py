#!/usr/bin/env python3
"""Score a result file, from here or elsewhere, against human answers; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcan.console import message
from mcan.data.arrays import Id, array_to_ids
from mcan.data.prepared import Categories, Prepared
from mcan.errors import DataError, command
from mcan.evaluation.metrics import METRICS, accuracies, percentage, summarise_scores
from mcan.evaluation.results import accuracy_table, name_ids, read_results
from mcan.files import refuse_existing, save_text
from mcan.preparation.questions import (
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
    ids, where, split = list[Id](), str(args.annotations), None
    if args.split:
        prepared = Prepared.open(args.split[0])
        split = prepared.split(args.split[1])
        ids, where = array_to_ids(split.question_ids), f"split {split.name} of {prepared.folder}"
    elif args.questions:
        ids = list(by_question_id(read_questions(args.questions), args.questions))
        where = str(args.questions)
    metric = args.metric or (prepared.metric if split else "vqa")
    if args.annotations:
        annotations = by_question_id(read_annotations(args.annotations), args.annotations)
        ids = ids or list(annotations)
        if unknown := [i for i in ids if i not in annotations]:
            raise DataError(f"{args.annotations}: {name_ids(unknown)} of {where} not annotated")
        answers: Sequence[Sequence[str]] = [annotations[i].answers for i in ids]
        answer_types = _types([annotations[i].answer_type for i in ids])
        question_types = _types([annotations[i].question_type for i in ids])
    elif split and split.human_answers.complete:
        answers, answer_types = split.human_answers, split.answer_types
        question_types = split.question_types
    else:
        raise DataError(f"{where}: some questions have no answers; give --annotations")
    predictions = read_results(args.results, ids, where)
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


def _types(names: Sequence[str]) -> Categories:
    distinct, codes = np.unique(np.array(names, dtype=object), return_inverse=True)
    return Categories(codes.astype(np.int32), tuple(distinct.tolist()))


if __name__ == "__main__":
    command(main)
