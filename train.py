#!/usr/bin/env python3
"""Train a model: `python train.py CONFIG [key=value ...] [--resume]`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from mcan import build
from mcan.config import Config, dump_config, load_config
from mcan.data.loading import STOP_SIGNALS
from mcan.data.prepared import Prepared
from mcan.engine.checkpoint import Checkpoint, Position, open_checkpoint
from mcan.engine.processes import Processes, StopRequest, on_signals, processes
from mcan.engine.run_folder import RunFolder, check_resumable, checkpoint_to_resume
from mcan.engine.trainer import Trainer, finished
from mcan.engine.transfer import freeze, inherit, transfer
from mcan.errors import command


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
        help="continue where the run stopped (or start it if there is none); the result is "
        "bit-identical to a run that was not interrupted",
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse()
    config = load_config(args.config, args.overrides)
    run = RunFolder(Path(config.runs) / config.name)
    options, stop = config.train, StopRequest()
    with (
        on_signals(STOP_SIGNALS, stop.handle),
        processes(options.device, options.deterministic) as job,
    ):
        # Asked once: the first process may have made the folder by the time another looks.
        checkpoint, config = job.run_on_first(
            lambda: checkpoint_to_resume(run, config, args.resume, job.device)
        )
        position = Position(**checkpoint.position) if checkpoint else Position()
        if checkpoint is not None and finished(position, options):
            newest = checkpoint
            job.run_on_first(lambda: run.tidy(newest, options.keep_last))
            most = f" (train.max_steps={options.max_steps})" if options.max_steps else ""
            steps = f"finished after {position.step} steps{most}"
            job.print_once(f"{run.path}: {steps}; nothing to resume")
            return 0
        if train(config, run, checkpoint, job, stop):
            job.print_once(f"finished; evaluate with: python eval.py {shlex.quote(str(run.path))}")
            return 0
        arguments = shlex.join([args.config, *args.overrides])
        job.print_once(f"stopped; continue with: python train.py {arguments} --resume")
        return stop.exit_status


def train(
    config: Config, run: RunFolder, checkpoint: Checkpoint | None, job: Processes, stop: StopRequest
) -> bool:
    """Build the parts and run the loop; True if it came to its end."""
    prepared = Prepared.open(config.data.prepared)
    stores = build.open_stores(config, job)
    dataset = build.open_dataset(config, prepared, config.data.train, stores)
    build.check_fits(config, dataset)
    counts, warnings = build.preflight(dataset)
    if config.train.compile and job.device.type == "cpu":
        warnings.append("train.compile: compiling takes minutes on a CPU and seldom pays there")
    if config.data.limit is not None:
        counts += f" (data.limit: the first {config.data.limit:,} of each split)"
    sizes = build.model_sizes(prepared.vocabulary, dataset)
    metadata = build.run_metadata(config, prepared, dataset, sizes)
    if checkpoint is not None:
        check_resumable(checkpoint, metadata, run.path)
    start = config.train.init_from if checkpoint is None else None
    source = open_checkpoint(Path(start.checkpoint)) if start else checkpoint
    if source is not None:  # so that evaluations know all that the network was trained on
        inherit(metadata, source, resumed=start is None)
    evaluate, lengths = None, build.padded_lengths(config, dataset)
    if config.data.evaluate is not None:
        held_out = build.open_dataset(config, prepared, [config.data.evaluate], stores)
        lengths = build.padded_lengths(config, dataset, held_out)
        warnings += build.unknown_word_warnings(held_out)
        metric = config.evaluation.metric or prepared.metric
        if shared := build.count_trained_on(metadata, prepared, held_out.splits[0]):
            given = config.train.init_from
            hold = "data.train and train.init_from hold" if given else "data.train holds"
            warnings.append(
                f"{hold} {shared:,} of the {len(held_out):,} questions of "
                f"data.evaluate ({config.data.evaluate}); the accuracy says nothing about new data"
            )
        evaluate = build.build_evaluator(
            held_out, metric, prepared.vocabulary, config, job, lengths, shared
        )
    for warning in warnings:
        job.print_once(f"warning: {warning}")

    torch.manual_seed(config.seed)
    vectors = coverage = None
    if checkpoint is None:
        vectors, coverage = build.word_vectors(config, prepared.vocabulary)
    model = build.build_model(config.model, sizes, vectors)
    if start and source:
        job.print_once(transfer(source, model, prepared.vocabulary, start.partial))
    freeze(model, config.train.freeze)
    model.to(job.device)
    for warning in build.memory_warnings(model, dataset, config, job) if job.first else ():
        job.print_once(f"warning: {warning}")

    enter = build.entry(config, job.device, config.train.precision, lengths)
    trainer = Trainer(config, model, dataset, metadata, run, job, enter, evaluate, checkpoint)
    # Only now, so that a mistake in the config or the data leaves no folder behind.
    keep = config.train.keep_last
    job.run_on_first(lambda: run.start(dump_config(config), checkpoint, keep))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    job.print_once(
        f"{run.path}: {counts}, {parameters:,} parameters, "
        f"{trainer.epoch_steps:,} steps per epoch on {job.device} x {job.world}"
        + (f", {limit:,} steps at most" if (limit := config.train.max_steps) else "")
        + (f"\n{coverage}" if coverage else "")
        + (f"\nresumed after step {trainer.position.step:,}" if checkpoint else "")
    )
    return trainer.fit(stop)


if __name__ == "__main__":
    command(main)
