#!/usr/bin/env python3
"""Train a model: `python train.py CONFIG [key=value ...] [--resume]`."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path

import torch

from mcan.config import Config, dump_config, load_config
from mcan.data.preflight import preflight
from mcan.data.prepared import Prepared
from mcan.engine.checkpoint import Checkpoint, load_checkpoint
from mcan.engine.distributed import Ranks, ranks
from mcan.engine.resume import check_same_data, checkpoint_to_resume
from mcan.engine.run_folder import RunFolder
from mcan.engine.signals import StopRequest, stop_on_signals
from mcan.engine.trainer import Trainer
from mcan.errors import command
from mcan.nn.mcan import build_model
from mcan.prediction import Evaluator
from mcan.wiring import (
    check_fits,
    choose_metric,
    describe_run,
    model_sizes,
    open_dataset,
    open_stores,
    say,
    word_vectors,
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a model from a YAML config. The run's folder is <runs>/<name>.",
        epilog="Under torchrun, all processes train one model: torchrun --nproc-per-node 4 "
        "train.py CONFIG. Keys are described in docs/configuration.md.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="change a key, e.g. optimizer.lr=3e-4",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run stopped (or start it if there is none); ends with the same bits "
        "as a run that was not interrupted",
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse()
    config = load_config(args.config, args.overrides)
    run = RunFolder(Path(config.runs) / config.name)
    with stop_on_signals() as stop, ranks(config.train.device) as job:
        # Asked once: the first process may have made the folder by the time another looks.
        path = job.on_first(lambda: checkpoint_to_resume(run, config, args.resume))
        checkpoint = load_checkpoint(path) if path is not None else None
        if checkpoint is not None and checkpoint.position["epoch"] >= config.train.epochs:
            say(job, f"{run.path}: finished after {config.train.epochs} epochs; nothing to resume")
            return 0
        finished = train(config, run, checkpoint, job, stop)
    if finished:
        say(job, f"finished; evaluate with: python eval.py {run.path}")
        return 0
    arguments = shlex.join([args.config, *args.overrides])
    say(job, f"stopped; continue with: python train.py {arguments} --resume")
    return stop.exit_status


def train(
    config: Config, run: RunFolder, checkpoint: Checkpoint | None, job: Ranks, stop: StopRequest
) -> bool:
    """Wire the parts and run the loop; True where it came to its end."""
    prepared = Prepared.open(config.data.prepared)
    stores = open_stores(config, job.device)
    dataset = open_dataset(config, prepared, config.data.train, stores)
    check_fits(config, dataset)
    report = preflight(dataset)
    for warning in report.warnings:
        say(job, f"warning: {warning}")
    evaluator = None
    if config.data.evaluate is not None:
        held_out = open_dataset(config, prepared, [config.data.evaluate], stores)
        metric = choose_metric(config, prepared)
        evaluator = Evaluator(held_out, metric, prepared.vocabulary, config, job)

    torch.manual_seed(config.seed)
    sizes = model_sizes(prepared.vocabulary, dataset)
    vectors, coverage = (None, None) if checkpoint else word_vectors(config, prepared.vocabulary)
    model = build_model(config.model, sizes, vectors)
    template = describe_run(config, prepared, dataset, sizes)
    if checkpoint is not None:
        check_same_data(template, checkpoint, run.path)

    trainer = Trainer(model, dataset, evaluator, config, template, run, job, checkpoint)
    # Only now, so that a mistake in the config or the data leaves no folder behind.
    written = checkpoint.metrics_bytes if checkpoint else 0
    job.on_first(lambda: run.start(dump_config(config), written))
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    say(
        job,
        f"{run.path}: {report.questions:,} questions on {report.images:,} images, "
        f"{report.unknown_word_share:.1%} unknown words, {parameters:,} parameters, "
        f"{trainer.feed.epoch_steps:,} steps per epoch on {job.device} x {job.world}"
        + (f"\n{coverage}" if coverage else ""),
    )
    return trainer.fit(stop)


if __name__ == "__main__":
    command(main)
