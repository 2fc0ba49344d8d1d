"""Training measured step by step: our `Trainer`, and the baseline on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcan.batch import Batch, Targets
from mcan.benchmarking.baseline import Baseline, padded
from mcan.benchmarking.bench import Bench
from mcan.benchmarking.stopwatch import Stopwatch
from mcan.benchmarking.turns import Spec, Turns
from mcan.engine.run_folder import RunFolder
from mcan.engine.signals import StopRequest
from mcan.engine.trainer import Trainer
from mcan.nn.mcan import build_model
from mcan.wiring import describe_run

FORWARD_PASSES = 3
"""What a training step costs: backward forms two products for each one of forward."""


def train(spec: Spec, bench: Bench, turns: Turns) -> None:
    """`spec.steps` updates by the `Trainer` per repetition."""
    config = bench.config
    model = build_model(config.model, bench.sizes)
    template = describe_run(config, bench.prepared, bench.dataset, bench.sizes)
    run = RunFolder(Path(config.runs) / config.name)
    run.path.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, bench.dataset, None, config, template, run, bench.ranks)

    watch, total = Stopwatch(bench.ranks.device), trainer.loss.total

    def measured_loss(logits: Tensor, targets: Targets) -> Tensor:
        loss = total(logits, targets)
        watch.mark("forward")
        return loss

    trainer.loss = replace(trainer.loss, total=measured_loss)
    trainer.optimizer.register_step_pre_hook(lambda *_: watch.mark("backward"))
    trainer.optimizer.register_step_post_hook(lambda *_: watch.mark("optimiser"))
    batches = trainer.feed.batches

    def measured_batches(epoch: int, start: int) -> Iterator[list[Batch]]:
        return _in_turns(batches(epoch, start), spec.steps, watch, bench.macs(), turns)

    trainer.feed.batches = measured_batches  # type: ignore[method-assign]
    trainer.fit(StopRequest())


def train_baseline(spec: Spec, bench: Bench, turns: Turns) -> None:
    """The same updates by the baseline: Adam parameter by parameter, the loss read at each step."""
    config, device = bench.config, bench.ranks.device
    model = Baseline(config.model, bench.sizes).to(device).train()
    adam = torch.optim.Adam(
        model.parameters(),
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        foreach=False,
    )
    regions, words = bench.padded_to()
    watch = Stopwatch(device)
    feed = bench.feed().batches(0, 0)
    for (batch,) in _in_turns(feed, spec.steps, watch, bench.macs(), turns):
        features, tokens = padded(batch, regions, words)
        targets = batch.targets.dense(batch.size, bench.sizes.answers)
        watch.mark("data")
        adam.zero_grad()
        logits = model(features.to(device), tokens.to(device))
        loss = F.binary_cross_entropy_with_logits(logits, targets.to(device), reduction="sum")
        watch.mark("forward")
        torch.autograd.backward(loss)
        watch.mark("backward")
        adam.step()
        watch.mark("optimiser")
        loss.item()


def _in_turns(
    batches: Iterator[list[Batch]],
    steps: int,
    watch: Stopwatch,
    macs: NDArray[np.int64],
    turns: Turns,
) -> Iterator[list[Batch]]:
    """The batches, `steps` of them at each turn; what was done with them is reported after it."""
    while True:
        turns.wait()
        questions = forward = 0
        watch.start()
        for _ in range(steps):
            pieces = next(batches)
            watch.mark("data")
            yield pieces
            watch.mark("other")
            questions += sum(piece.size for piece in pieces)
            forward += sum(int(macs[piece.index].sum()) for piece in pieces)
        phases = watch.read()
        turns.report(
            seconds=sum(phases.values()),
            questions=questions,
            macs=forward * FORWARD_PASSES,
            steps=steps,
            phases=phases,
        )
