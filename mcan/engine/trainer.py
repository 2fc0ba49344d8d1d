"""The training loop.

An update computes `accumulation` pieces per process; what it draws at random depends on (seed,
step, rank) alone. Together with a sampler that depends on (seed, epoch) this makes a resumed run
equal an uninterrupted one to the bit, wherever it was stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.engine.checkpoint import Checkpoint, Position, last_checkpoint, store
from mcan.engine.distributed import Ranks
from mcan.engine.feed import Feed
from mcan.engine.losses import LOSSES
from mcan.engine.optimisation import build_optimizer, build_schedule
from mcan.engine.run_folder import RunFolder
from mcan.engine.run_log import RunLog, SilentLog
from mcan.engine.signals import StopRequest
from mcan.errors import TrainingError
from mcan.progress import progress

if TYPE_CHECKING:
    from mcan.config.schema import Config

Evaluate = Callable[[nn.Module, Callable[[], bool]], dict[str, Any] | None]
"""(model, should_stop) -> metrics with an "overall", or None where it stopped early; all ranks call
it.
"""

# A stop request has to reach all processes at the same step; asking costs a small all-reduce.
STOP_CHECK_STEPS = 8


class Trainer:
    """Trains `model` on `dataset` and keeps the run's checkpoints and logs.

    `template` holds what every checkpoint says about the run (config, vocabulary, sizes, splits).
    `checkpoint` is where to go on, None for a new run.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: VQADataset,
        evaluate: Evaluate | None,
        config: Config,
        template: Checkpoint,
        run: RunFolder,
        ranks: Ranks,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.model = model.to(ranks.device)
        self.evaluate = evaluate
        self.seed = config.seed
        self.options = config.train
        self.template = template
        self.run = run
        self.ranks = ranks
        self.feed = Feed(
            dataset,
            config.train.batch_size,
            config.train.accumulation,
            config.train.drop_last,
            config.seed,
            config.data.workers,
            ranks,
        )
        self.base_rate = config.optimizer.lr
        self.schedule = build_schedule(config, len(dataset), self.feed.epoch_steps)
        self.loss = LOSSES[config.train.loss]
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.position = Position()
        self.best: dict[str, float] | None = None
        self.metrics_bytes = 0
        self.window = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        if checkpoint is not None:
            self._restore(checkpoint)
        if config.train.compile:
            self.model.compile(dynamic=True)
        self.network: nn.Module = self.model
        if ranks.world > 1:
            on_gpu = ranks.device.type == "cuda"
            self.network = DistributedDataParallel(
                self.model, device_ids=[ranks.device] if on_gpu else None
            )
        self.log: RunLog | SilentLog = SilentLog()

    def fit(self, stop: StopRequest) -> bool:
        """Train to the end; False where `stop` asked to leave (a checkpoint is written then)."""
        if self.ranks.first:
            run, step = self.run, self.position.step
            self.log = RunLog(run.metrics, run.tensorboard, self.metrics_bytes, step)
        stop.training = True
        try:
            while self.position.epoch < self.options.epochs:
                if not (self._train_epoch(stop) and self._finish_epoch(stop)):
                    self._save()
                    return False
            return True
        finally:
            self.log.close()

    def _train_epoch(self, stop: StopRequest) -> bool:
        """The rest of the epoch; False where it was left early."""
        position, options = self.position, self.options
        with self._progress() as bar:
            started, seen = time.perf_counter(), 0
            for pieces in self.feed.batches(position.epoch, position.batch):
                rate = self._update(pieces)
                position.batch += 1
                position.step += 1
                seen += self.feed.questions(position.batch - 1)
                bar.update()
                if (
                    position.step % options.log_every == 0
                    or position.batch == self.feed.epoch_steps
                ):
                    now = time.perf_counter()
                    self._write_window(bar, rate, seen / (now - started))
                    started, seen = now, 0
                if (every := options.checkpoint_every) and position.step % every == 0:
                    self._save()
                if self._asked_to_stop(stop):
                    return False
        return True

    def _finish_epoch(self, stop: StopRequest) -> bool:
        """Evaluate where it is due and write the checkpoint; False where it was left early."""
        position = self.position
        number = position.epoch + 1
        due = number % self.options.evaluate_every == 0 or number == self.options.epochs
        improved = False
        if self.evaluate is not None and due:
            # Processes have different numbers of batches to predict, so only one alone may break
            # off.
            alone = self.ranks.world == 1
            metrics = self.evaluate(self.model, lambda: alone and stop.signal is not None)
            if metrics is None:
                return False
            improved = self._write_evaluation(metrics)
        position.epoch, position.batch = number, 0
        self._save(best=improved)
        return True

    def _update(self, pieces: list[Batch]) -> float:
        """One optimiser step on this process's pieces of the batch; returns the learning rate."""
        position, ranks = self.position, self.ranks
        rate = self.base_rate * self.schedule(position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_step_seed(self.seed, position.step, ranks.rank))
        self.optimizer.zero_grad()
        # DDP averages gradients over processes; the loss is a sum over the global batch.
        scale = self.loss.scale(self.feed.questions(position.batch)) * ranks.world
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            if piece.size:
                self.window[0] += self._backward(piece, scale, synchronise=last)
                self.window[1] += piece.size
            elif last and ranks.world > 1:
                # DDP needs a backward pass from every process: one that counts for nothing.
                self._backward(self.feed.dataset[[0]], 0.0, synchronise=True)
        if ranks.device.type == "cpu":  # a GPU would have to be waited for
            self._check_finite(position.step + 1)
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.optimizer.step()
        return rate

    def _backward(self, piece: Batch, scale: float, synchronise: bool) -> Tensor:
        """Add a piece's gradients; returns its summed loss."""
        device = self.ranks.device
        piece = piece.to(device, non_blocking=True)
        ddp = self.network if isinstance(self.network, DistributedDataParallel) else None
        with ddp.no_sync() if ddp is not None and not synchronise else nullcontext():
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.options.precision == "bf16"
            ):
                logits = self.network(piece.question, piece.image)
            total = self.loss.total(logits, piece.targets)
            torch.autograd.backward(total * scale)
        return total.detach().double()

    def _asked_to_stop(self, stop: StopRequest) -> bool:
        if self.ranks.world > 1 and self.position.step % STOP_CHECK_STEPS:
            return False
        return self.ranks.any(stop.signal is not None)

    def _progress(self) -> tqdm[Any]:
        return progress(
            total=self.feed.epoch_steps,
            initial=self.position.batch,
            desc=f"epoch {self.position.epoch + 1}/{self.options.epochs}",
            unit="step",
            disable=not self.ranks.first,
        )

    def _write_window(self, bar: tqdm[Any], rate: float, speed: float) -> None:
        """Log the mean loss per question since the last line."""
        self._check_finite(self.position.step)
        total, count = self.ranks.sum(self.window.clone()).tolist()
        self.window.zero_()
        loss = total / count
        self.log.write(
            "train",
            self.position.step,
            {
                "epoch": self.position.epoch + 1,
                "loss": loss,
                "lr": rate,
                "samples_per_s": round(speed, 1),
            },
        )
        bar.set_postfix_str(f"loss {loss:.4f}, lr {rate:.2e}, {speed:,.0f} samples/s")

    def _write_evaluation(self, metrics: dict[str, Any]) -> bool:
        """Log an evaluation; True where it is the best so far."""
        position, score = self.position, metrics["overall"]
        self.log.write("evaluation", position.step, {"epoch": position.epoch + 1, **metrics})
        if self.ranks.first:
            tqdm.write(f"epoch {position.epoch + 1}: accuracy {score:.2f} %")
        if self.best is not None and score <= self.best["score"]:
            return False
        self.best = {"score": score, "step": position.step}
        return True

    def _check_finite(self, step: int) -> None:
        """Raise on all processes where the loss of one is not finite."""
        if self.ranks.any(not math.isfinite(float(self.window[0]))):
            raise TrainingError(self._diverged("the loss", step))

    def _diverged(self, what: str, step: int) -> str:
        kept = last_checkpoint(self.run.checkpoints)
        remedy = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
        return (
            f"{what} stopped being a finite number at step {step} "
            f"(epoch {self.position.epoch + 1}); {remedy}; try a lower optimizer.lr, a longer "
            "warm-up or train.clip_norm"
        )

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint and drop those past `keep_last`; all processes call it."""
        self._check_finite(self.position.step)
        windows = self.ranks.gather(self.window.tolist())
        self.ranks.on_first(lambda: self._write_checkpoint(windows or [], best))

    def _write_checkpoint(self, windows: list[list[float]], best: bool) -> None:
        state = self.model.state_dict()
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise TrainingError(self._diverged("a weight", self.position.step))
        checkpoint = replace(
            self.template,
            model=state,
            optimizer=self.optimizer.state_dict(),
            position=dict(vars(self.position)),
            window=windows,
            best=self.best,
            metrics_bytes=self.log.sync(),
        )
        store(checkpoint, self.run.checkpoints, best, self.options.keep_last)

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.restore(self.model, self.optimizer)
        self.position = Position(**checkpoint.position)
        self.best = checkpoint.best
        self.metrics_bytes = checkpoint.metrics_bytes
        windows = torch.tensor(checkpoint.window, dtype=torch.float64)
        if len(windows) == self.ranks.world:
            self.window.copy_(windows[self.ranks.rank])
        elif self.ranks.first:
            self.window.copy_(windows.sum(0))


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one process; distinct ones are independent streams."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
