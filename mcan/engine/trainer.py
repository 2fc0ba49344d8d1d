"""The training loop.

An update computes `accumulation` micro-batches per process. What it draws at random depends on
(seed, step, rank) alone, and the order of questions on (seed, epoch). A resumed run is therefore
bit-identical to an uninterrupted one, wherever it was stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mcan.batch import Batch
from mcan.config import flatten
from mcan.console import progress
from mcan.data.dataset import VQADataset
from mcan.data.loading import load_batches
from mcan.data.sampler import BatchSampler
from mcan.engine.checkpoint import Checkpoint, Position, last_checkpoint, save_newest
from mcan.engine.losses import LOSSES
from mcan.engine.optimizers import build_optimizer
from mcan.engine.processes import Interrupted, Processes, StopRequest
from mcan.engine.run_folder import RunFolder, RunLog
from mcan.engine.schedules import RunLength
from mcan.errors import RunError, TrainingError
from mcan.nn.mcan import compile_in_place

if TYPE_CHECKING:
    from mcan.config.schema import Config, TrainConfig

Evaluate = Callable[[nn.Module, Callable[[], bool]], dict[str, Any] | None]
"""(model, should_stop) -> metrics with an "overall", or None if it stopped early. All processes
call it.
"""

# A stop request has to reach all processes at the same step; asking costs a small all-reduce.
STOP_CHECK_STEPS = 8


@dataclass(eq=False)
class Trainer:
    """Trains `model`, which is on its device, and writes the run's checkpoints and logs.

    `enter` moves a batch to the device and into the layout of rows that the network computes in.
    `metadata` holds what every checkpoint says about the run (config, vocabulary, sizes, splits).
    `checkpoint` is where to resume, None for a new run.
    """

    config: Config
    model: nn.Module
    dataset: VQADataset
    metadata: Checkpoint
    run: RunFolder
    processes: Processes
    enter: Callable[[Batch], Batch]
    evaluate: Evaluate | None = None
    checkpoint: InitVar[Checkpoint | None] = None

    def __post_init__(self, checkpoint: Checkpoint | None) -> None:
        config, options, processes = self.config, self.config.train, self.processes
        if options.batch_size < processes.world * options.accumulation:
            raise RunError(
                f"train.batch_size {options.batch_size} is less than {processes.world} processes x "
                f"train.accumulation {options.accumulation}; each micro-batch needs a question"
            )
        size, epoch = len(self.dataset), 0
        self.sampler = BatchSampler(
            size,
            options.batch_size,
            config.seed,
            epoch,
            options.drop_last,
            processes.rank,
            processes.world,
            options.accumulation,
        )
        self.epoch_steps = self.sampler.batches
        self.length = RunLength(size, options.batch_size, self.epoch_steps, options.epochs)
        self.loss = LOSSES[options.loss]
        self.optimizer = build_optimizer(self.model, **config.optimizer.model_dump())
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        state = checkpoint or self.metadata
        self.position, self.best = Position(**state.position), state.best
        self.metrics_bytes = state.metrics_bytes
        # Summed loss and number of questions of this process, on the device so as not to wait.
        self.loss_since_last_log = torch.zeros(2, dtype=torch.float64, device=processes.device)
        self.log: RunLog | None = None
        if checkpoint is not None:
            self._check_schedule(checkpoint.config["train"]["epochs"])
            checkpoint.restore(self.model, self.optimizer)
            sums = torch.tensor(checkpoint.loss_since_last_log, dtype=torch.float64)
            if len(sums) == processes.world:
                self.loss_since_last_log.copy_(sums[processes.rank])
            elif processes.first:  # resumed with another number of processes
                self.loss_since_last_log.copy_(sums.sum(0))
        if options.compile:
            compile_in_place(self.model)
        self.network: nn.Module = self.model
        if processes.world > 1:
            device_ids = [processes.device] if processes.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)

    def _check_schedule(self, epochs: int) -> None:
        """Raise `RunError` if the steps done so far, of `epochs`, belong to another schedule."""
        schedule, now = self.config.schedule, self.length
        before = replace(now, epochs=epochs)
        steps = range(self.position.step if epochs != now.epochs else 0)
        if any(schedule.factor(step, before) != schedule.factor(step, now) for step in steps):
            first = f"resume with {epochs}, " if self.position.epoch < epochs else ""
            raise RunError(
                f"{self.run.path}: with train.epochs={now.epochs} instead of {epochs}, "
                f"schedule.name={schedule.name} gives other learning rates for the steps done so "
                f"far; {first}train from the start under another name=, or start another run "
                f"with train.init_from.checkpoint={self.run.path}"
            )

    def fit(self, stop: StopRequest) -> bool:
        """Train to the end; False if `stop` asked to leave (a checkpoint is written then)."""
        if self.processes.first:
            self.log = RunLog(self.run, self.metrics_bytes, self.position.step)
        stop.training = True
        try:
            while not finished(self.position, self.config.train):
                if not (self._train_epoch(stop) and self._finish_epoch(stop)):
                    self._save()
                    return False
            return True
        finally:
            if self.log is not None:
                self.log.close()

    def _train_epoch(self, stop: StopRequest) -> bool:
        """The rest of the epoch; False if it was left early."""
        position, options = self.position, self.config.train
        last = self.epoch_steps
        if options.max_steps is not None:
            last = min(last, position.batch + options.max_steps - position.step)
        self.model.train()
        bar = progress(
            total=last,
            initial=position.batch,
            desc=f"epoch {position.epoch + 1}/{options.epochs}",
            unit="step",
            disable=not self.processes.first,
        )
        try:
            with bar, self.batches(position.epoch, position.batch) as batches:
                started, seen = time.perf_counter(), 0
                while position.batch < last:
                    # A signal ends the wait for a batch, but not if other processes wait for this.
                    stop.waiting = self.processes.world == 1
                    micro_batches = next(batches)
                    stop.waiting = False
                    rate = self.update(micro_batches)
                    seen += self._questions()
                    position.batch += 1
                    position.step += 1
                    bar.update()
                    ends = position.batch == last
                    if ends or position.step % options.log_every == 0:
                        now = time.perf_counter()
                        bar.set_postfix_str(self._log_training(rate, seen / (now - started)))
                        started, seen = now, 0
                    if (every := options.checkpoint_every) and position.step % every == 0:
                        self._save()
                    ask = self.processes.world == 1 or position.step % STOP_CHECK_STEPS == 0
                    if ask and self.processes.any(stop.signal is not None):
                        return False
        except Interrupted:
            return False  # between two steps, so that the position is right
        return True

    @contextmanager
    def batches(self, epoch: int, start: int) -> Iterator[Iterator[Sequence[Batch]]]:
        """This process's micro-batches of each batch of an epoch, from batch `start` on."""
        sampler = replace(self.sampler, epoch=epoch, start=start)
        workers, pin_memory = self.config.data.workers, self.processes.device.type == "cuda"
        with load_batches(self.dataset, sampler, workers, pin_memory) as single:
            yield zip(*[single] * self.config.train.accumulation, strict=True)

    def _questions(self) -> int:
        """Questions in the batch at `position`, over all processes."""
        size = self.config.train.batch_size
        return min(size, len(self.dataset) - self.position.batch * size)

    def _finish_epoch(self, stop: StopRequest) -> bool:
        """Evaluate if it is due and write the checkpoint; False if it was left early."""
        position, best = self.position, False
        epoch = position.epoch + 1
        options = self.config.train
        ends = finished(Position(epoch, 0, position.step), options)
        due = ends or epoch % options.evaluate_every == 0
        if self.evaluate is not None and due:
            # Processes predict different numbers of batches, so only one alone may break off.
            alone = self.processes.world == 1
            metrics = self.evaluate(self.model, lambda: alone and stop.signal is not None)
            if metrics is None:
                return False
            score = float(flatten(metrics)[self.config.evaluation.best_by])
            if self.log is not None:
                self.log.write("evaluation", position.step, {"epoch": epoch, **metrics})
            self.processes.print_once(f"epoch {epoch}: accuracy {metrics['overall']:.2f} %")
            best = self.best is None or score > self.best["score"]
            if best:
                self.best = {"score": score, "step": position.step}
        position.epoch, position.batch = epoch, 0
        self._save(best)
        return True

    def update(self, micro_batches: Sequence[Batch]) -> float:
        """One optimiser step on this process's part of the batch; returns the learning rate."""
        position, processes = self.position, self.processes
        # Plain numbers: a checkpoint with numpy's would not load.
        factor = float(self.config.schedule.factor(position.step, self.length))
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        # 32 bits, which is what torch's CPU generator takes of a seed. Two steps may share a stream
        # by chance: 2^-32 for a given pair.
        seed = np.random.SeedSequence((self.config.seed, position.step, processes.rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.optimizer.zero_grad()
        # DDP averages gradients over processes; the loss is a sum over the global batch.
        scale = self.loss.scale(self._questions()) * processes.world
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            if batch.size:
                self.loss_since_last_log[0] += self._backward(batch, scale, synchronise=last)
                self.loss_since_last_log[1] += batch.size
            elif last and processes.world > 1:
                # DDP needs a backward pass from every process: one that counts for nothing.
                self._backward(self.dataset[[0]], 0.0, synchronise=True)
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        return self.config.optimizer.lr * factor

    def _backward(self, batch: Batch, scale: float, synchronise: bool) -> Tensor:
        """Add a micro-batch's gradients; returns its summed loss."""
        batch, device = self.enter(batch), self.processes.device
        ddp = self.network if isinstance(self.network, DistributedDataParallel) else None
        with ddp.no_sync() if ddp is not None and not synchronise else nullcontext():
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"
            ):
                logits = self.network(batch.question, batch.image)
            total = self.loss.total(logits, batch.targets)
            torch.autograd.backward(total * scale)
        return total.detach().double()

    def _log_training(self, rate: float, speed: float) -> str:
        """Log the mean loss per question since the last line; returns a text for the bar."""
        total, count = self.processes.sum(self.loss_since_last_log.clone()).tolist()
        if not math.isfinite(total):
            raise self._diverged("the loss")
        self.loss_since_last_log.zero_()
        loss, epoch = total / count, self.position.epoch + 1
        if self.log is not None:
            values = {"epoch": epoch, "loss": loss, "lr": rate, "samples_per_s": round(speed, 1)}
            self.log.write("train", self.position.step, values)
        return f"loss {loss:.4f}, lr {rate:.2e}, {speed:,.0f} samples/s"

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint and drop those beyond `keep_last`; all processes call it."""
        sums = self.processes.gather(self.loss_since_last_log.tolist())
        self.processes.run_on_first(lambda: self._write_checkpoint(sums, best))

    def _write_checkpoint(self, sums: list[list[float]], best: bool) -> None:
        assert self.log is not None
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise self._diverged("a weight")
        checkpoint = replace(
            self.metadata,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            position=dict(vars(self.position)),
            loss_since_last_log=sums,
            best=self.best,
            metrics_bytes=self.log.sync(),
        )
        save_newest(checkpoint, self.run.checkpoints, best, self.config.train.keep_last)

    def _diverged(self, what: str) -> TrainingError:
        kept = last_checkpoint(self.run.checkpoints)
        remedy = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"{what} is no longer a finite number by step {self.position.step}; {remedy}; try a "
            "lower optimizer.lr, a longer warm-up or train.clip_norm"
        )


def finished(position: Position, options: TrainConfig) -> bool:
    """Whether training has come to its end, the last evaluation included."""
    steps = options.max_steps or math.inf
    return position.batch == 0 and (position.epoch >= options.epochs or position.step >= steps)
