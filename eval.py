#!/usr/bin/env python3
"""Evaluate a run, a checkpoint or an ensemble: `python eval.py RUN [RUN ...] [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcan.config import Config, config_from_dict
from mcan.data.dataset import VQADataset
from mcan.data.hdf5 import Id
from mcan.data.prepared import Prepared
from mcan.data.split import Split
from mcan.data.vqa_layout import Question, read_questions
from mcan.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from mcan.engine.distributed import Ranks, ranks
from mcan.errors import RunError, command
from mcan.evaluation.metrics import Metric
from mcan.evaluation.predict import Predictions
from mcan.evaluation.report import Scorer, predictions_json, refuse_existing, table, write_report
from mcan.evaluation.results import submission
from mcan.files import save_text
from mcan.prediction import belief, predict_over_ranks
from mcan.text.vocabulary import Vocabulary
from mcan.wiring import choose_metric, open_dataset, open_stores, restore_model, say

TOP = 5
_OVERRIDE = re.compile(r"[\w.]+=")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Predict the answers of a split with a trained model, score them, and write "
        "predictions.json and metrics.json. Several runs or checkpoints are an ensemble.",
        epilog="A checkpoint holds its config and vocabulary; overrides such as data.prepared=... "
        "say where the data is now.",
    )
    parser.add_argument(
        "arguments",
        metavar="RUN_OR_CHECKPOINT | key=value",
        nargs="+",
        help="run folder or .pt file; key=value changes a key of the stored config",
    )
    parser.add_argument("--split", help="split to evaluate (default: the config's data.evaluate)")
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which checkpoint of a run (default: last, as the paper's protocol; best is chosen on "
        "data.evaluate, so do not report it on that split)",
    )
    parser.add_argument(
        "--average",
        choices=("probabilities", "logits"),
        default="probabilities",
        help="what an ensemble averages (default: probabilities)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the two files, which must not be there yet; an ensemble needs it "
        "(default: a folder in the run's predictions/, or in predictions/ beside a checkpoint that "
        "lies elsewhere, rewritten each time)",
    )
    parser.add_argument(
        "--top",
        action="store_true",
        help=f"also write the first {TOP} answers with their probabilities",
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE.json",
        help="also write what the evaluation server takes: [{question_id, answer}], integer ids",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="the question file of the submission: each of its questions once, and no other "
        "(default: all questions of the split)",
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse()
    if args.questions is not None and args.submission is None:
        raise RunError("--questions says what --submission holds; give both")
    overrides = [text for text in args.arguments if _OVERRIDE.match(text)]
    targets = [text for text in args.arguments if not _OVERRIDE.match(text)]
    if not targets:
        raise RunError("name at least one run folder or checkpoint")
    if len(targets) > 1 and args.output is None:
        raise RunError("an ensemble belongs to no run; name a folder with --output")
    members = [
        load_checkpoint(find_checkpoint(Path(target), args.checkpoint)) for target in targets
    ]
    configs = [config_from_dict(m.config, str(m.source), overrides) for m in members]
    first, config = members[0], configs[0]
    for other, its_config in zip(members, configs, strict=True):
        check_together(first, config, other, its_config)
    split = args.split or config.data.evaluate
    if split is None:
        raise RunError(f"{first.source}: the config has no data.evaluate; name one with --split")
    if args.output is not None:
        refuse_existing(args.output)
    if args.submission is not None and args.submission.exists():
        raise RunError(f"{args.submission}: exists; choose another --submission")
    # Before the work, so that a mistake costs nothing.
    wanted = read_questions(args.questions) if args.questions is not None else None
    with ranks(config.train.device) as job:
        evaluate(members, configs, split, wanted, args, job)
    return 0


def check_together(first: Checkpoint, config: Config, other: Checkpoint, its: Config) -> None:
    """Raise `RunError` where two checkpoints cannot predict as one."""
    if first.vocabulary_digest != other.vocabulary_digest:
        raise RunError(f"{other.source} has another vocabulary than {first.source}")
    for key, ours, theirs in (
        ("data.images", config.data.images, its.data.images),
        ("data.grid", config.data.grid, its.data.grid),
        ("data.max_tokens", config.data.max_tokens, its.data.max_tokens),
        ("model.image.input", config.model.image.input, its.model.image.input),
        ("train.loss", config.train.loss, its.train.loss),
    ):
        if ours != theirs:
            raise RunError(
                f"{other.source} has {key} = {theirs!r}, {first.source} has {ours!r}; an ensemble "
                "needs the same"
            )


def evaluate(
    members: list[Checkpoint],
    configs: list[Config],
    split: str,
    wanted: Sequence[Question] | None,
    args: argparse.Namespace,
    job: Ranks,
) -> None:
    config, sources = configs[0], ", ".join(str(member.source) for member in members)
    prepared = Prepared.open(config.data.prepared)
    vocabulary = Vocabulary.from_json(members[0].vocabulary, str(members[0].source))
    stores = open_stores(config, job.device)
    dataset = open_dataset(config, prepared, [split], stores, vocabulary)
    if vocabulary.digest != prepared.vocabulary.digest:
        say(job, f"{prepared.folder} has another vocabulary; its questions are encoded anew")
    seen = max(trained_on(member, prepared, dataset.splits[0]) for member in members)
    if seen:
        warning = (
            f"trained on {seen:,} of these questions; the accuracy says nothing about new data"
        )
        say(job, f"WARNING: {sources}: {warning}")
    models = [
        restore_model(member, its, dataset).to(job.device)
        for member, its in zip(members, configs, strict=True)
    ]
    answers = vocabulary.answers
    asked: list[Id] = []
    where = str(args.questions or f"the split {split}")
    if args.submission is not None:
        ids = dataset.question_ids(range(len(dataset)))
        asked = ids if wanted is None else [question.question_id for question in wanted]
        # With empty answers, before the work: what the server takes depends on ids alone.
        submission([{"question_id": i, "answer": ""} for i in ids], asked, where)
    predictions = predict_over_ranks(
        belief(models, config, job.device, args.average),
        dataset,
        config,
        job,
        top=min(TOP, len(answers)) if args.top else 1,
    )
    if predictions is None:  # the first process reports
        return
    record = {
        "split": split,
        "checkpoints": [str(member.source) for member in members],
        "steps": [member.position["step"] for member in members],
        "trained_on_questions": seen,
    }
    metric = choose_metric(config, prepared)
    report(predictions, dataset, answers, metric, record, args)
    if args.submission is not None:
        entries = submission(predictions_json(dataset, predictions, answers), asked, where)
        save_text(args.submission, json.dumps(entries) + "\n")
        print(f"written: {args.submission} ({len(entries):,} answers)")


def report(
    predictions: Predictions,
    dataset: VQADataset,
    answers: Sequence[str],
    metric: Metric,
    record: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    """Score, write the files, print the table."""
    scorer = Scorer(dataset, metric, answers)
    metrics: dict[str, Any] | None = None
    if scorer.possible:
        bound = {"metric": metric, "upper_bound": scorer.upper_bound()}
        metrics = {**scorer.metrics(predictions), **bound, **record}
    entries = predictions_json(dataset, predictions, answers, TOP if args.top else None)
    folder = args.output or default_folder(Path(record["checkpoints"][0]), record)
    write_report(folder, entries, metrics)
    if metrics is None:
        print(f"{record['split']} has no human answers, so there is no accuracy")
    else:
        print(f"{', '.join(record['checkpoints'])} on {record['split']}, metric {metric}\n")
        print(table(metrics, dataset.answer_types, dataset.question_types))
        best = metrics["upper_bound"]
        print(f"\nbest possible with {len(answers):,} answers: {best:.2f} %")
    print(f"written: {folder}")


def default_folder(checkpoint: Path, record: dict[str, Any]) -> Path:
    """In the run; for a checkpoint that lies elsewhere, beside it and under its name."""
    if checkpoint.parent.name == "checkpoints":
        name = f"{record['split']}_step_{record['steps'][0]:08d}"
        return checkpoint.parent.parent / "predictions" / name
    return checkpoint.parent / "predictions" / f"{checkpoint.stem}_{record['split']}"


def trained_on(checkpoint: Checkpoint, prepared: Prepared, split: Split) -> int:
    """How many questions of `split` the checkpoint was trained on, as far as can be told.

    Exact where the training split is this one or still in `prepared`; otherwise a split of the same
    dataset and name counts as the same.
    """
    seen: set[Id] = set()
    ids = split.question_ids.tolist()
    for trained in checkpoint.trained_on:
        if trained["digest"] == split.digest:
            return len(ids)
        if trained["dataset"] != prepared.dataset:
            continue
        if trained["split"] in prepared.splits:
            other = prepared.split(trained["split"])
            if other.digest == trained["digest"]:
                seen.update(set(other.question_ids.tolist()).intersection(ids))
                continue
        if trained["split"] == split.name:
            return len(ids)
    return len(seen)


if __name__ == "__main__":
    command(main)
