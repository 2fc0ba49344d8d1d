#!/usr/bin/env python3
"""Evaluate a run, a checkpoint or an ensemble: `python eval.py RUN [RUN ...] [key=value ...]`."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path

from mcan.build import (
    answer_probabilities,
    count_trained_on,
    open_dataset,
    open_stores,
    predict_over_processes,
    restore_model,
    stored_config,
    unknown_stores,
)
from mcan.config import Config, flatten
from mcan.config.schema import DataConfig
from mcan.console import positive
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.checkpoint import Checkpoint, open_checkpoint
from mcan.engine.processes import Processes, processes
from mcan.errors import DataError, RunError, command
from mcan.evaluation.results import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    Scorer,
    accuracy_table,
    list_mistakes,
    prediction_entries,
    question_details,
    submission,
)
from mcan.files import refuse_existing, save_text
from mcan.preparation.questions import by_question_id, read_questions
from mcan.section import show
from mcan.text.vocabulary import Vocabulary

TOP = 5
_SHARED = (
    *("data.images", "data.grid", "data.max_tokens", "model.image.input", "train.loss"),
    *("evaluation.metric", "evaluation.precision"),
)
"""Keys that members of an ensemble must agree on."""
_OVERRIDE = re.compile(r"[\w.]+=")


def parse() -> Namespace:
    parser = ArgumentParser(
        description="Predict the answers of a split with a trained model, score them, and write "
        "predictions.json and metrics.json. Several runs or checkpoints are an ensemble: their "
        "probabilities are averaged.",
        epilog="A checkpoint holds its config and vocabulary; overrides such as data.prepared=... "
        "say where the data is now.",
    )
    add = parser.add_argument
    meaning = "run folder or .pt file; key=value changes a key of the stored config"
    add("arguments", metavar="RUN_OR_CHECKPOINT | key=value", nargs="+", help=meaning)
    add("--split", help="split to evaluate (default: the config's data.evaluate)")
    meaning = (
        "which checkpoint of a run (default: last, as the paper's protocol; best is chosen on "
        "data.evaluate, so do not report it on that split)"
    )
    add("--checkpoint", choices=("last", "best"), default="last", help=meaning)
    meaning = (
        "folder for the two files, which must not be there yet; an ensemble needs it (default: a "
        "folder for split and step in predictions/ of the run, or beside the checkpoint, which is "
        "rewritten; with other questions, images or data.limit than in the stored config, a folder "
        "data_... of their own)"
    )
    add("--output", type=Path, help=meaning)
    add("--top", action="store_true", help=f"also write the {TOP} best answers and probabilities")
    meaning = "also write question, image, human answers and score of each question"
    add("--full", action="store_true", help=meaning)
    meaning = "print the N mistakes (score 0) with the highest probability"
    add("--worst", type=positive, metavar="N", help=meaning)
    meaning = "also write what the evaluation server takes: [{question_id, answer}], integer ids"
    add("--submission", type=Path, metavar="FILE.json", help=meaning)
    meaning = "the question file of the submission (default: all questions of the split)"
    add("--questions", type=Path, metavar="FILE", help=meaning)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    if args.questions is not None and args.submission is None:
        raise RunError("--questions says what --submission holds; give both")
    overrides = [text for text in args.arguments if _OVERRIDE.match(text)]
    targets = [text for text in args.arguments if not _OVERRIDE.match(text)]
    if not targets:
        raise RunError("name at least one run folder or checkpoint")
    if len(targets) > 1 and args.output is None:
        raise RunError("an ensemble belongs to no run; name a folder with --output")
    members = [open_checkpoint(Path(target), args.checkpoint) for target in targets]
    configs = [stored_config(member, overrides) for member in members]
    check_together(members, configs)
    config = configs[0]
    split = args.split or config.data.evaluate
    if split is None:
        raise RunError(f"{members[0].source}: the config has no data.evaluate; use --split")
    for name in (PREDICTIONS_FILE, METRICS_FILE) if args.output else ():
        refuse_existing(args.output / name, "--output")
    refuse_existing(args.submission, "--submission")
    with processes(config.train.device, config.train.deterministic) as job:
        evaluate(members, configs, split, args, job)


def check_together(members: list[Checkpoint], configs: list[Config]) -> None:
    """Raise `RunError` if the checkpoints cannot predict as one."""
    first, ours = members[0], flatten(configs[0].model_dump())
    for other, config in zip(members, configs, strict=True):
        if first.vocabulary_digest != other.vocabulary_digest:
            raise RunError(f"{other.source} has another vocabulary than {first.source}")
        its = flatten(config.model_dump())
        for key in (key for key in _SHARED if ours[key] != its[key]):
            raise RunError(
                f"{other.source} has {key} = {show(its[key])}, {first.source} has "
                f"{show(ours[key])}; an ensemble needs the same"
            )


def evaluate(
    members: list[Checkpoint], configs: list[Config], split: str, args: Namespace, job: Processes
) -> None:
    """Predict on all processes; on the first, score, write the files and print the table."""
    config, sources = configs[0], [str(member.source) for member in members]
    prepared = Prepared.open(config.data.prepared)
    vocabulary = Vocabulary.from_json(members[0].vocabulary, sources[0])
    stores = open_stores(config, job)
    dataset = open_dataset(config, prepared, [split], stores, vocabulary)
    if vocabulary.digest != prepared.vocabulary.digest:
        job.print_once(f"{prepared.folder} has another vocabulary; its questions are re-encoded")
    seen = max(count_trained_on(member, prepared, dataset.splits[0]) for member in members)
    if seen:
        exact = all(member.question_keys is not None for member in members)
        basis = " (same image id and text)" if exact else ""
        job.print_once(
            f"warning: {', '.join(sources)}: trained on {seen:,} of these {len(dataset):,} "
            f"questions{basis}; their accuracy says nothing about new data"
        )
    for member in members:
        for warning in unknown_stores(member, (*stores[0], *stores[1])):
            job.print_once(f"warning: {warning}")
    pairs = zip(members, configs, strict=True)
    models = [restore_model(member, its, dataset).to(job.device) for member, its in pairs]
    folder = args.output or default_folder(members[0], config, split)
    metric = config.evaluation.metric or prepared.metric
    scorer = Scorer(dataset, metric, vocabulary.answers)
    asked, where = [], str(args.questions or f"the split {split}")
    if args.submission is not None:
        ids = asked = dataset.question_ids()
        if args.questions is not None:
            asked = list(by_question_id(read_questions(args.questions), args.questions))
        # With empty answers, before the work: what the server takes depends on ids alone.
        submission([{"question_id": i, "answer": ""} for i in ids], asked, where)
    score = answer_probabilities(models, config.train.loss)
    top = min(TOP, len(vocabulary.answers)) if args.top else 1
    predictions = predict_over_processes(score, dataset, config, job, top)
    if predictions is None:  # the first process reports
        return
    scores = scorer.scores(predictions) if scorer.possible else None
    entries = prediction_entries(dataset, predictions, vocabulary.answers, args.top)
    details = question_details(dataset, scores) if args.full or args.worst else []
    full = [entry | detail for entry, detail in zip(entries, details, strict=bool(details))]
    save_text(folder / PREDICTIONS_FILE, json.dumps(full if args.full else entries) + "\n")
    if scores is not None:
        metrics = scorer.summarise(scores) | {
            "metric": metric,
            "precision": config.evaluation.precision,
            "upper_bound": scorer.upper_bound(),
            "dataset": prepared.dataset,
            "prepared": str(prepared.folder),
            "split": split,
            "digest": prepared.digest(split),
            "limit": config.data.limit,
            "stores": {str(store.path): store.digest for group in stores for store in group},
            "checkpoints": sources,
            "steps": [member.position["step"] for member in members],
            "trained_on_questions": seen,
        }
        save_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
        part = f" (first {len(dataset):,} questions: data.limit)" if config.data.limit else ""
        print(f"{', '.join(sources)} on {split}{part}, metric {metric}\n")
        print(accuracy_table(metrics, dataset.answer_types, dataset.question_types))
        best = f"best possible with {len(vocabulary.answers):,} answers"
        print(f"\n{best}: {metrics['upper_bound']:.2f} %")
        if args.worst:
            print(f"\n{list_mistakes(full, predictions, args.worst)}\n")
    else:
        print(f"{split} has no human answers, so there is no accuracy")
    print(f"written: {folder}")
    if args.submission is not None:
        # Last, as a second try refuses to replace it.
        entries = submission(entries, asked, where)
        save_text(args.submission, json.dumps(entries) + "\n")
        print(f"written: {args.submission} ({len(entries):,} answers)")


def default_folder(checkpoint: Checkpoint, config: Config, split: str) -> Path:
    """In the run; for a checkpoint that lies elsewhere, beside it and under its name.

    Other data than that of the stored config is part of the folder's name, so that its result
    replaces no other.
    """
    path = checkpoint.source or Path()
    name = f"{path.stem}_{split}"
    if path.parent.name == "checkpoints":
        path, name = path.parent, f"{split}_step_{checkpoint.position['step']:08d}"
    own, here = stored_config(checkpoint).data, config.data
    digest = _digest(here, split)
    with suppress(DataError):  # what the stored config names may have moved
        if own.limit != here.limit or _digest(own, split) != digest:
            name = f"data_{digest}_{name}"
    return path.parent / "predictions" / name


def _digest(data: DataConfig, split: str) -> str:
    """8 digits that stand for questions and images, wherever they are."""
    stores = [open_store(path).digest for path in (*data.images, *data.grid)]
    content = [Prepared.open(data.prepared).digest(split), data.limit, stores]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


if __name__ == "__main__":
    command(main)
