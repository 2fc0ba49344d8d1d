"""Costs of runs: sizes of prepared data, arithmetic, time from finished runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mcan.config import Config, config_from_dict, dump_config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.data.synthetic import make_synthetic
from mcan.nn.mcan import ModelSizes, build_model
from mcan.tables.cost import data_sizes, pace, training_flops
from mcan.tables.spec import Assumed

ASSUMED = Assumed(
    questions={"train": 100, "val": 20},
    words=6.5,
    regions=36,
    tokens=50,
    answers=9,
    feature_size=6,
)


def config(folder, **changes) -> Config:
    data = {"prepared": str(folder / "prepared"), "images": [str(folder / "images.h5")]}
    return config_from_dict({"name": "run", "data": data, **changes}, "test")


def test_sizes_of_prepared_data(tmp_path):
    made = make_synthetic(
        tmp_path, questions=30, images=7, words=(1, 9), feature_dim=6, regions=(2, 5), grid=True
    )
    data = {
        "prepared": str(made.prepared),
        "images": [str(made.images)],
        "grid": [str(made.grid)],
        "train": ["train", "val"],
        "max_tokens": 4,
    }
    sizes = data_sizes(config(tmp_path, data=data), ASSUMED)
    assert sizes is not None
    prepared = Prepared.open(made.prepared)
    store, grid = open_store(made.images), open_store(made.grid)
    dataset = VQADataset([prepared.split("train"), prepared.split("val")], [store], [grid], 4)
    batch = dataset[range(len(dataset))]
    assert not sizes.assumed
    assert sizes.questions == len(dataset) == 37
    assert sizes.words == pytest.approx(batch.question.values.shape[0] / 37)
    assert sizes.regions == pytest.approx(np.diff(store.offsets).mean())
    assert sizes.grid_rows == pytest.approx(np.diff(grid.offsets).mean())
    vocabulary = prepared.vocabulary
    assert sizes.model == ModelSizes(len(vocabulary.tokens), len(vocabulary.answers), 6, 6)


def test_cells_of_pixels(tmp_path):
    made = make_synthetic(tmp_path, questions=4, images=3, kind="pixels", pixels=(13, 9))
    stem = {"channels": [4, 6, 8], "strides": [2, 1, 2]}
    model = {"hidden_size": 8, "heads": 2, "image": {"input": "pixels", "stem": stem}}
    chosen = config(tmp_path, model=model)
    sizes = data_sizes(chosen, None)
    assert sizes is not None
    network = build_model(chosen.model, sizes.model)
    prepared = Prepared.open(made.prepared)
    batch = VQADataset([prepared.split("train")], [open_store(made.images)])[[0]]
    assert network.stem is not None
    assert batch.image.pixels is not None
    assert sizes.regions == len(network.stem(batch.image.pixels)[0].values)


def test_sizes_assumed_or_unknown(tmp_path):
    sizes = data_sizes(config(tmp_path), ASSUMED)
    assert sizes is not None
    assert sizes.assumed
    assert (sizes.questions, sizes.words, sizes.regions) == (100, 6.5, 36)
    data = {"prepared": "nowhere", "images": ["nowhere.h5"]}
    both = data_sizes(config(tmp_path, data={**data, "train": ["train", "val"]}), ASSUMED)
    assert both is not None
    assert both.questions == 120
    assert data_sizes(config(tmp_path, data={**data, "train": ["vg"]}), ASSUMED) is None
    assert data_sizes(config(tmp_path), None) is None


def test_training_of_the_full_size(tmp_path):
    """2.74 G multiply-adds forward for 14 words and 100 regions; six operations each."""
    full = ASSUMED.model_copy(
        update={
            "questions": {"train": 1000},
            "words": 14.0,
            "regions": 100.0,
            "answers": 3129,
            "feature_size": 2048,
        }
    )
    chosen = config(tmp_path)
    sizes = data_sizes(chosen, full)
    assert sizes is not None
    assert training_flops(chosen, sizes) == pytest.approx(6 * 2.74e9 * 1000 * 13, rel=0.005)


def test_time_of_finished_runs(tmp_path):
    """The median over runs that were started once, and which run that is."""
    assert pace(tmp_path, ASSUMED) is None
    chosen = config(tmp_path)
    sizes = data_sizes(chosen, ASSUMED)
    assert sizes is not None
    flops = training_flops(chosen, sizes)
    for number, (seconds, starts) in enumerate([(10, 1), (30, 1), (20, 1), (5, 2)]):
        run = tmp_path / f"run{number}"
        run.mkdir()
        (run / "config.yaml").write_text(dump_config(chosen))
        (run / "environment.json").write_text(json.dumps({"starts": [{}] * starts}))
        (run / "outcome_val.json").write_text(json.dumps({"seconds": seconds}))
    (tmp_path / "run3/outcome_test.json").write_text("{")
    for number, damaged in enumerate(("[]", '{"seconds": "long"}', '{"seconds": null}')):
        (tmp_path / f"run0/outcome_{number}.json").write_text(damaged)
    found = pace(tmp_path, ASSUMED)
    assert found is not None
    assert found.seconds_per_flop == pytest.approx(20 / flops)
    assert (found.run, found.finished) == (tmp_path / "run2", 3)
    (tmp_path / "run1/outcome_val.json").unlink()
    lower = pace(tmp_path, ASSUMED)
    assert lower is not None
    assert (lower.run, lower.finished) == (tmp_path / "run0", 2)
