"""One update: parameter groups, clipping, and pieces of a batch against the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import Lab, make_lab
from torch import Tensor, nn

from mcan import build
from mcan.batch import Batch
from mcan.config import load_config
from mcan.config.schema import OptimizerConfig
from mcan.data.prepared import Prepared
from mcan.engine.checkpoint import last_checkpoint
from mcan.engine.losses import LOSSES
from mcan.engine.optimizers import OPTIMIZERS, build_optimizer
from mcan.engine.processes import Processes, StopRequest
from mcan.engine.run_folder import RunFolder, RunLog
from mcan.engine.trainer import Trainer
from mcan.errors import TrainingError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    changes = {"model": {"dropout": 0.0}, "optimizer": {"eps": 1e-3}}
    return make_lab(tmp_path_factory.mktemp("lab"), changes)


def make_trainer(lab: Lab, *overrides: str) -> Trainer:
    here = [f"data.prepared={lab.folder}/prepared", f"data.images=[{lab.folder}/images.h5]"]
    config = load_config(lab.folder / lab.config, [*here, *overrides])
    prepared = Prepared.open(config.data.prepared)
    stores = build.open_stores(config, Processes(CPU))
    dataset = build.open_dataset(config, prepared, ["train"], stores)
    sizes = build.model_sizes(prepared.vocabulary, dataset)
    torch.manual_seed(0)
    return Trainer(
        config,
        build.build_model(config.model, sizes),
        dataset,
        build.run_metadata(config, prepared, dataset, sizes),
        RunFolder(Path("none")),
        Processes(CPU),
        build.entry(config, CPU, config.train.precision, build.padded_lengths(config, dataset)),
    )


def first_batch(trainer: Trainer) -> Sequence[Batch]:
    with trainer.batches(0, 0) as batches:
        return next(batches)


def update(trainer: Trainer) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients and weights after the first update."""
    trainer.update(first_batch(trainer))
    named = trainer.model.named_parameters()
    return {name: (p.grad.clone(), p.detach().clone()) for name, p in named if p.grad is not None}


@pytest.mark.parametrize("pieces", [2, 3, 5, 8])
@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_is_the_update_of_the_whole_batch(lab, loss, pieces):
    whole = update(make_trainer(lab, f"train.loss={loss}"))
    parts = update(make_trainer(lab, f"train.loss={loss}", f"train.accumulation={pieces}"))
    assert whole.keys() == parts.keys()
    scale = max(float(gradient.abs().max()) for gradient, _ in whole.values())
    for name, (gradient, weight) in whole.items():
        torch.testing.assert_close(parts[name][0], gradient, atol=1e-6 * scale, rtol=1e-4)
        torch.testing.assert_close(parts[name][1], weight, atol=1e-6, rtol=1e-5)


def test_update_is_that_of_torchs_loss_and_optimiser(lab):
    trainer = make_trainer(lab, "train.loss=bce_mean", "train.accumulation=3")
    twin, dataset, options = make_trainer(lab), trainer.dataset, trainer.config.optimizer
    rows = torch.cat([piece.index for piece in first_batch(trainer)]).tolist()
    assert len(rows) == len(set(rows)) == 8
    batch = trainer.enter(dataset[rows])
    logits = twin.model(batch.question, batch.image)
    dense = torch.zeros_like(logits)
    for row, number in enumerate(rows):
        for answer, score in zip(
            dataset.splits[0].target_answers.take(np.array([number]))[0],
            dataset.splits[0].target_scores.take(np.array([number]))[0],
            strict=True,
        ):
            dense[row, answer] = float(score)
    F.binary_cross_entropy_with_logits(logits, dense).backward()
    rate = options.lr / 2  # one warm-up epoch runs at half
    torch.optim.Adam(twin.model.parameters(), rate, options.betas, 1e-3).step()
    update(trainer)
    ours, theirs = trainer.model.state_dict(), twin.model.state_dict()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-5)


def test_loss_in_the_log_is_the_mean_per_question(lab):
    trainer = make_trainer(lab, "train.accumulation=3")
    micro_batches = first_batch(trainer)
    model = make_trainer(lab).model.requires_grad_(False)
    expected = 0.0
    for row in torch.cat([piece.index for piece in micro_batches]).tolist():
        one = trainer.enter(trainer.dataset[[row]])
        logits = model(one.question, one.image)
        dense = one.targets.dense(1, logits.shape[1])
        expected += float(F.binary_cross_entropy_with_logits(logits, dense, reduction="sum"))
    trainer.update(micro_batches)
    total, count = trainer.loss_since_last_log.tolist()
    assert count == 8
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("limit", [1e-3, 0.5])
def test_clipping(lab, limit):
    free = update(make_trainer(lab))
    clipped = update(make_trainer(lab, f"train.clip_norm={limit}"))
    norm = torch.cat([gradient.flatten() for gradient, _ in free.values()]).norm()
    assert norm > limit
    for name, (gradient, _) in free.items():
        torch.testing.assert_close(clipped[name][0], gradient * limit / norm, rtol=1e-4, atol=1e-7)


def test_a_network_in_evaluation_mode_is_trained_with_dropout(lab, monkeypatch):
    trainer, modes = make_trainer(lab), []

    def stop(_: Any) -> float:
        modes.append(trainer.model.training)
        raise TrainingError

    monkeypatch.setattr(trainer, "update", stop)
    trainer.model.eval()
    with pytest.raises(TrainingError):
        trainer._train_epoch(StopRequest())
    assert modes == [True]


def optimizer(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    return model, build_optimizer(model, **OptimizerConfig.model_validate(options).model_dump())


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_groups(name, kind):
    model, built = optimizer(name=name, weight_decay=0.1, lr=0.5, betas=[0.5, 0.6], eps=1e-5)
    assert type(built) is kind
    matrices, vectors = built.param_groups
    assert {id(p) for p in matrices["params"]} == {id(model[1].weight), id(model[3].weight)}
    others = [model[1].bias, model[2].weight, model[2].bias, model[3].bias]
    assert {id(p) for p in vectors["params"]} == {id(p) for p in others}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    for group in built.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.5, 0.6), 1e-5)
        assert group["fused"] is True


@pytest.mark.slow
def test_compiled_is_eager(lab):
    """Six updates of an epoch, whose shapes differ, and a prediction."""
    eager, compiled = make_trainer(lab), make_trainer(lab, "train.compile=true")
    with eager.batches(0, 0) as batches:
        every = list(batches)
    for position, micro_batches in enumerate(every):
        for trainer in (eager, compiled):
            trainer.position.batch = position
            trainer.update(micro_batches)
    torch.testing.assert_close(
        compiled.loss_since_last_log, eager.loss_since_last_log, rtol=1e-5, atol=0
    )
    weights = compiled.model.state_dict()
    torch.testing.assert_close(weights, eager.model.state_dict(), atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        found, expected = (
            build.answer_probabilities([trainer.model.eval()], "bce_sum")(
                trainer.enter(trainer.dataset[[0, 1, 2]])
            )
            for trainer in (compiled, eager)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_groups_keep_their_rates_as_plain_numbers(lab, monkeypatch):
    """The rates of an optimiser are scaled alike. A checkpoint with numpy's would not load."""

    def slow_first(
        groups: list[dict[str, Any]], lr: float, **options: Any
    ) -> torch.optim.Optimizer:
        groups[0]["lr"] = lr / 10
        return torch.optim.Adam(groups, lr=lr, **options)

    monkeypatch.setitem(OPTIMIZERS, "adam", slow_first)
    trainer = make_trainer(lab)
    rate = trainer.config.optimizer.lr
    monkeypatch.setattr(type(trainer.config.schedule), "factor", lambda *_: np.float64(0.5))
    with trainer.batches(0, 0) as batches:
        assert trainer.update(next(batches)) == 0.5 * rate
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.05 * rate, 0.5 * rate])
    assert {type(each) for each in rates} == {float}


def test_infinite_buffers_are_no_divergence(lab, tmp_path):
    trainer = make_trainer(lab)
    trainer.model.register_buffer("mask", torch.tensor(-torch.inf))
    trainer.run = RunFolder(tmp_path)
    trainer.run.start("", None, 1)
    trainer.log = RunLog(trainer.run, 0, 0)
    trainer._save()
    assert last_checkpoint(trainer.run.checkpoints)
    next(trainer.model.parameters()).data[0] = torch.nan
    with pytest.raises(TrainingError, match="a weight is no longer a finite number"):
        trainer._save()
    trainer.log.close()
