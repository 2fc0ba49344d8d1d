"""What measuring processes do at their turns, without the processes."""

import numpy as np
import pytest
import torch

from mcan.benchmarking import products
from mcan.benchmarking.baseline_loader import write
from mcan.benchmarking.bench import Bench
from mcan.benchmarking.child import JOBS
from mcan.benchmarking.turns import Spec, Turns
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.distributed import Ranks
from mcan.nn.cost import forward_macs

CPU = Ranks(torch.device("cpu"))


class TwoTurns(Turns):
    """Two turns, kept in `results`."""

    def __init__(self):
        self.results = []

    def wait(self):
        if len(self.results) == 2:
            raise SystemExit(0)

    def report(self, **result):
        self.results.append(result)


def results(spec):
    bench, turns = Bench.open(spec, CPU), TwoTurns()
    with pytest.raises(SystemExit):
        JOBS[spec.job](spec, bench, turns)
    return bench, turns.results


def all_macs(bench, folder):
    """Of each question, from the files."""
    split = Prepared.open(folder / "prepared").split("train")
    regions = np.diff(open_store(folder / "images.h5").offsets)
    return [
        forward_macs(bench.config.model, bench.sizes, min(int(words), 14), int(regions[image]))
        for words, image in zip(np.diff(split.tokens.offsets), split.image_index, strict=True)
    ]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_arms_work_on_the_same_questions(spec, folder, precision):
    bench, ours = results(spec("train", f"train.precision={precision}"))
    _, baseline = results(spec("train_baseline"))
    macs, batches = all_macs(bench, folder), bench.feed().batches(0, 0)
    for own, other in zip(ours, baseline, strict=True):
        rows = torch.cat([next(batches)[0].index for _ in range(2)])
        for result in (own, other):
            assert result["questions"] == 8
            assert result["steps"] == 2
            assert result["macs"] == 3 * sum(macs[row] for row in rows.tolist())
            names = {"data", "forward", "backward", "optimiser", "other"}
            assert set(result["phases"]) == names
            assert min(result["phases"].values()) > 0
            assert result["seconds"] == pytest.approx(sum(result["phases"].values()))


@pytest.mark.parametrize("job", ["evaluate", "evaluate_baseline"])
def test_evaluation_arms_predict_every_question(spec, folder, job):
    bench, found = results(spec(job))
    for result in found:
        assert result["questions"] == 23
        assert result["macs"] == sum(all_macs(bench, folder))
        assert result["seconds"] > 0


def test_loading_arms_make_whole_batches(spec, folder, tmp_path):
    files = tmp_path / "npz"
    bench, ours = results(spec("load"))
    write(files, bench.dataset)
    _, baseline = results(spec("load_baseline", files=str(files)))
    assert [result["questions"] for result in (*ours, *baseline)] == [20] * 4


def test_the_rate_of_matrix_products(spec, monkeypatch):
    monkeypatch.setattr(products, "SHAPES", ((64, 32, 16), (8, 8, 8)))
    monkeypatch.setattr(products, "_SECONDS", 0.001)
    for result in results(spec("multiply"))[1]:
        assert set(result["rates"]) == {"float32", "bf16"}
        assert all(1e5 < rate < 1e15 for rate in result["rates"].values())


def test_a_spec_survives_the_command_line(spec):
    one = spec("load_baseline", files="a folder")
    assert Spec.parse(one.dump()) == one
