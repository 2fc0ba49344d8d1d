#!/usr/bin/env python3
"""Score a result file, from here or elsewhere, against human answers; see `--help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Categories, Prepared
from mcan.errors import DataError, RunError, command
from mcan.evaluation.metrics import METRICS, accuracies, summarise_scores
from mcan.evaluation.results import accuracy_table, name_ids, read_results
from mcan.files import refuse_existing, save_text
from mcan.preparation.questions import by_question_id, read_annotations, read_questions


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Accuracy of result files, JSON lists of {question_id, answer}, overall, per "
        "answer type and per question type.",
        epilog="Files may be plain, .gz, or a member of a zip archive (archive.zip/name.json).",
    )
    add = parser.add_argument
    add("results", metavar="RESULTS.json", type=Path, nargs="+")
    add("--annotations", type=Path, required=True, help="in the VQA layout")
    add("--metric", choices=METRICS, help="default: that of PREPARED, else vqa")
    add("--output", type=Path, help="write the metrics of one file as JSON")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--questions", type=Path, help="score only these; all must be annotated")
    meaning = "score only the questions of a split of a prepared dataset"
    add("--split", nargs=2, metavar=("PREPARED", "SPLIT"), help=meaning)
    args = parser.parse_args()
    if args.output and len(args.results) > 1:
        raise RunError(f"--output takes the metrics of one file, not of {len(args.results)}")
    return args


def main() -> None:
    args = parse()
    refuse_existing(args.output, "--output")
    annotations = by_question_id(read_annotations(args.annotations), args.annotations)
    ids, where, metric = list(annotations), str(args.annotations), "vqa"
    if args.questions:
        ids = list(by_question_id(read_questions(args.questions), args.questions))
        where = str(args.questions)
    elif args.split:
        folder, name = args.split
        prepared = Prepared.open(folder)
        ids, metric = array_to_ids(prepared.split(name).question_ids), prepared.metric
        where = f"split {name} of {folder}"
    if unknown := [i for i in ids if i not in annotations]:
        raise DataError(f"{args.annotations}: {name_ids(unknown)} of {where} not annotated")
    metric = args.metric or metric
    given = [annotations[i] for i in ids]
    humans = [annotation.answers for annotation in given]
    kinds = ([each.answer_type for each in given], [each.question_type for each in given])
    types = [_types(names) for names in kinds]
    tables = []
    for path in args.results:
        scores = accuracies(metric, read_results(path, ids, where), humans)
        metrics = {**summarise_scores(scores, *types), "metric": metric}
        tables.append(f"{path}, metric {metric}\n\n{accuracy_table(metrics, *types)}")
    print("\n\n".join(tables))
    if args.output:
        save_text(args.output, json.dumps(metrics, indent=2) + "\n")


def _types(names: Sequence[str]) -> Categories:
    distinct, codes = np.unique(np.array(names, dtype=object), return_inverse=True)
    return Categories(codes.astype(np.int32), tuple(distinct.tolist()))


if __name__ == "__main__":
    command(main)
