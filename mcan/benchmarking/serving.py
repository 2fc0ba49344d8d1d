"""Evaluation and loading, measured as whole passes over the questions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mcan.benchmarking.baseline import Baseline, padded
from mcan.benchmarking.baseline_loader import PerSampleFiles
from mcan.benchmarking.bench import Bench
from mcan.benchmarking.stopwatch import Stopwatch
from mcan.benchmarking.turns import Spec, Turns
from mcan.data.sampler import EvaluationSampler
from mcan.nn.mcan import build_model
from mcan.prediction import belief, predict_over_ranks

REFERENCE_BATCH = 32
"""Questions per batch when the authors' code evaluates."""


def evaluate(spec: Spec, bench: Bench, turns: Turns) -> None:
    """All questions once, as `eval.py` predicts them."""
    model = build_model(bench.config.model, bench.sizes).to(bench.ranks.device).eval()
    score = belief([model], bench.config, bench.ranks.device)

    def predict() -> int:
        predict_over_ranks(score, bench.dataset, bench.config, bench.ranks)
        return len(bench.dataset)

    _repeat(predict, bench, turns, int(bench.macs().sum()))


def evaluate_baseline(spec: Spec, bench: Bench, turns: Turns) -> None:
    """All questions once, in batches of 32, without a graph."""
    device = bench.ranks.device
    model = Baseline(bench.config.model, bench.sizes).to(device).eval()
    regions, words = bench.padded_to()

    @torch.no_grad()
    def predict() -> int:
        for rows in EvaluationSampler(np.arange(len(bench.dataset)), REFERENCE_BATCH):
            features, tokens = padded(bench.dataset[rows], regions, words)
            model(features.to(device), tokens.to(device)).argmax(1).cpu()
        return len(bench.dataset)

    _repeat(predict, bench, turns, int(bench.macs().sum()))


def load(spec: Spec, bench: Bench, turns: Turns) -> None:
    """Ready batches of one epoch, prepared in this process."""
    feed = bench.feed()
    _repeat(lambda: sum(piece.size for (piece,) in feed.batches(0, 0)), bench, turns)


def load_baseline(spec: Spec, bench: Bench, turns: Turns) -> None:
    """Ready batches of one epoch, sample by sample."""
    regions, words = bench.padded_to()
    files = PerSampleFiles(spec.files, bench.dataset, bench.prepared.vocabulary, regions, words)
    batch_size = bench.config.train.batch_size
    _repeat(lambda: sum(len(ids) for _, ids, _ in files.loader(batch_size)), bench, turns)


def _repeat(work: Callable[[], int], bench: Bench, turns: Turns, macs: int = 0) -> None:
    """`work` at each turn; it returns the questions that it dealt with."""
    watch = Stopwatch(bench.ranks.device)
    while True:
        turns.wait()
        watch.start()
        questions = work()
        watch.mark("all")
        turns.report(seconds=watch.read()["all"], questions=questions, macs=macs)
