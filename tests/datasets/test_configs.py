"""The configs of the dataset folders: that they load, and that they are the published recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcan.config import Config, load_config
from mcan.engine.schedules import RunLength

CONFIGS = Path(__file__).parents[2] / "configs"
DATASETS = ("vqa_v2", "vqa_v1", "vqa_cp_v1", "vqa_cp_v2", "ok_vqa", "vizwiz", "custom")
FILES = sorted(path for dataset in DATASETS for path in (CONFIGS / dataset).glob("*.yaml"))


def load(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads_and_names_its_dataset(path: Path) -> None:
    config = load_config(path)
    dataset = path.parent.name
    assert config.name == f"{dataset}_{path.stem}"
    assert config.data.prepared == f"data/{dataset}/prepared"
    # The metric of own data is the one that prepare.py recorded.
    assert dataset != "custom" or config.evaluation.metric is None


def epoch_rates(config: Config, questions: int) -> list[float]:
    """The rate in the middle of each epoch."""
    steps = questions // config.train.batch_size
    run = RunLength(questions, config.train.batch_size, steps, config.train.epochs)
    return [
        config.optimizer.lr * config.schedule.factor(epoch * steps + steps // 2, run)
        for epoch in range(config.train.epochs)
    ]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("mcan_small", 1e-4),
        ("mcan_small_train_val", 1e-4),
        ("mcan_small_train_val_vg", 1e-4),
        ("mcan_small_grid", 1e-4),
        ("mcan_large", 7e-5),
        ("mcan_large_train_val", 5e-5),
        ("mcan_large_train_val_vg", 5e-5),
    ],
)
def test_learning_rates_are_the_published_ones(name: str, base: float) -> None:
    published = [2.5e-5, 5e-5, 7.5e-5, *[1e-4] * 7, *[2e-5] * 2, 4e-6]
    expected = [rate * base / 1e-4 for rate in published]
    assert epoch_rates(load(f"vqa_v2/{name}"), 443_757) == pytest.approx(expected)


@pytest.mark.parametrize(("size", "hidden", "fused"), [("small", 512, 1024), ("large", 1024, 2048)])
@pytest.mark.parametrize(
    ("suffix", "splits", "evaluate"),
    [
        ("", ("train",), "val"),
        ("_train_val", ("train", "val"), None),
        ("_train_val_vg", ("train", "val", "vg"), None),
    ],
)
def test_the_recipe(
    size: str, hidden: int, fused: int, suffix: str, splits: tuple[str, ...], evaluate: str | None
) -> None:
    config = load(f"vqa_v2/mcan_{size}{suffix}")
    assert (config.data.train, config.data.evaluate) == (splits, evaluate)
    assert (config.data.max_tokens, config.train.batch_size, config.train.epochs) == (14, 64, 13)
    assert (config.model.hidden_size, config.model.fusion_size) == (hidden, fused)
    assert config.model.heads * config.model.depth == 48
    assert (config.optimizer.betas, config.optimizer.eps) == ((0.9, 0.98), 1e-9)
    assert config.train.loss == "bce_sum"
    assert config.evaluation.metric == "vqa"
    vectors = config.model.question.word_vectors
    assert vectors is not None
    assert (vectors.unknown, vectors.frozen) == ("zero", False)
