#!/usr/bin/env python3
"""Evaluate a run or checkpoint: `python eval.py RUN_OR_CHECKPOINT [--split S] [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcan.config import Config, config_from_dict
from mcan.data.prepared import Prepared
from mcan.data.split import Split
from mcan.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from mcan.engine.distributed import Ranks, ranks
from mcan.errors import RunError, command
from mcan.evaluation.report import Scorer, predictions_json, table, write_report
from mcan.text.vocabulary import Vocabulary
from mcan.wiring import (
    choose_metric,
    open_dataset,
    open_stores,
    predict_over_ranks,
    probabilities,
    restore_model,
    say,
)

TOP = 5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Predict the answers of a split with a trained model, score them, and write "
        "predictions.json and metrics.json.",
        epilog="A checkpoint holds its config and vocabulary; overrides such as data.prepared=... "
        "say where the data is now.",
    )
    parser.add_argument("target", metavar="RUN_OR_CHECKPOINT", help="run folder or .pt file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change a key of the stored config"
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
        "--output",
        type=Path,
        help="folder for the two files, which must not be there yet (default: a folder in the "
        "run's predictions/, rewritten each time)",
    )
    parser.add_argument(
        "--top",
        action="store_true",
        help=f"also write the first {TOP} answers with their probabilities",
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse()
    path = find_checkpoint(Path(args.target), args.checkpoint)
    checkpoint = load_checkpoint(path)
    config = config_from_dict(checkpoint.config, str(path), args.overrides)
    split = args.split or config.data.evaluate
    if split is None:
        raise RunError(f"{path}: the config has no data.evaluate; name a split with --split")
    step = checkpoint.position["step"]
    folder = args.output or path.parent.parent / "predictions" / f"{split}_step_{step:08d}"
    with ranks(config.train.device) as job:
        evaluate(config, checkpoint, path, split, folder, args, job)
    return 0


def evaluate(
    config: Config,
    checkpoint: Checkpoint,
    path: Path,
    split: str,
    folder: Path,
    args: argparse.Namespace,
    job: Ranks,
) -> None:
    prepared = Prepared.open(config.data.prepared)
    if prepared.vocabulary.digest != checkpoint.vocabulary_digest:
        raise RunError(
            f"{path} was trained with another vocabulary than that of {prepared.folder}; give the "
            "prepared dataset it was trained on with data.prepared=..."
        )
    answers = Vocabulary.from_json(checkpoint.vocabulary, str(path)).answers
    dataset = open_dataset(config, prepared, [split], open_stores(config, job.device))
    seen = _trained_on(checkpoint, prepared, dataset.splits[0])
    if seen:
        say(
            job,
            f"WARNING: {path} was trained on {seen}; its accuracy there says nothing about new "
            "data",
        )
    model = restore_model(checkpoint, config).to(job.device)
    predictions = predict_over_ranks(
        probabilities(model, config, job.device),
        dataset,
        config,
        job,
        top=min(TOP, len(answers)) if args.top else 1,
    )
    if predictions is None:
        return
    metric = choose_metric(config, prepared)
    scorer = Scorer(dataset, metric, answers)
    metrics: dict[str, Any] | None = None
    if scorer.possible:
        metrics = {
            **scorer.metrics(predictions),
            "metric": metric,
            "upper_bound": scorer.upper_bound(),
            "split": split,
            "checkpoint": str(path),
            "step": checkpoint.position["step"],
            "trained_on_this_split": seen,
        }
    entries = predictions_json(dataset, predictions, answers, TOP if args.top else None)
    write_report(folder, entries, metrics, overwrite=args.output is None)
    if metrics is not None:
        print(f"{path} on {split}, metric {metric}\n\n{table(dataset, metrics)}\n")
        print(f"best possible with {len(answers):,} answers: {metrics['upper_bound']:.2f} %")
    else:
        print(f"{split} has no human answers, so there is no accuracy")
    print(f"written: {folder}")


def _trained_on(checkpoint: Checkpoint, prepared: Prepared, split: Split) -> str | None:
    """The training split that the evaluated split is, by its name or by its question ids."""
    for trained in checkpoint.trained_on:
        same_name = (trained["dataset"], trained["split"]) == (prepared.dataset, split.name)
        if same_name or trained["digest"] == split.digest:
            return f"{trained['split']} of {trained['dataset']}"
    return None


if __name__ == "__main__":
    command(main)
