"""Benchmarks: what arms compute and count, what a report says, and the script's answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcan import benchmarking
from mcan.batch import Image, Question
from mcan.benchmarking import BASELINE, ROOT, Arm, measure, ratios, report, save
from mcan.build import build_model
from mcan.config import load_config
from mcan.engine.processes import processes
from mcan.errors import DataError, RunError
from mcan.nn.dropout import Dropout
from mcan.nn.mcan import ModelSizes
from mcan.preparation.synthetic import make_synthetic
from mcan.rows import Padded

CONFIG = str(ROOT / "configs/_base_/mcan_small.yaml")
QUESTIONS = 64


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    """A training arm on data of its own."""
    folder = tmp_path_factory.mktemp("data")
    make_synthetic(
        folder,
        questions=QUESTIONS,
        images=13,
        feature_dim=6,
        regions=(2, 5),
        words={3: 1, 4: 1, 5: 1, 6: 1},
    )
    overrides = (
        *("model.hidden_size=16", "model.heads=2", "model.depth=1", "train.batch_size=8"),
        *(f"data.prepared={folder / 'prepared'}", f"data.images=[{folder / 'images.h5'}]"),
        *("data.evaluate=null", "train.device=cpu", f"runs={folder / 'runs'}", "name=benchmark"),
    )
    return Arm("train", CONFIG, overrides, steps=2)


@pytest.mark.parametrize(("job", "questions"), [("train", 16), ("eval", 64), ("loader", 64)])
def test_jobs_count_their_questions(arm: Arm, job: str, questions: int, tmp_path: Path) -> None:
    for _ in range(2):
        result = benchmarking._repeat(replace(arm, job=job), str(tmp_path))
        assert result["questions"] == questions
        assert result["seconds"] > 0
        assert (result.get("flops", 0) > 0) == (job != "loader")


def test_the_baseline_pads_everything_and_drops_as_torch_does(arm: Arm) -> None:
    arm = replace(arm, baseline=True).having("train.rows=padded")
    with processes("cpu") as job:
        bench = benchmarking._Bench(load_config(arm.config, arm.overrides), job, arm)
        modules = list(bench.model().modules())
        assert not any(isinstance(module, Dropout) for module in modules)
        assert sum(isinstance(module, nn.Dropout) for module in modules) > 10
        trainer, seen = bench.trainer(), []
        trainer.model.register_forward_pre_hook(
            lambda _, inputs: seen.extend(each.rows.mask.shape for each in inputs)
        )
        with trainer.batches(0, 0) as batches:
            trainer.update(next(batches))
    assert seen == [(8, benchmarking.WORDS), (8, 5)]


@pytest.mark.parametrize("similarity", ["general", "concat", "perceptron"])
@pytest.mark.parametrize("lengths", [(5, 7), (11, 3)])
def test_operations_are_those_that_torch_counts(similarity: str, lengths: tuple[int, int]) -> None:
    overrides = (f"model.similarity={similarity}", "model.hidden_size=16", "model.heads=2")
    data = ("name=n", "data.prepared=p", "data.images=[i]")
    config = load_config(CONFIG, (*overrides, *data))
    sizes = ModelSizes(9, 4, 6, None)
    words, regions = (Padded(torch.ones(1, n, dtype=torch.bool), False) for n in lengths)
    question = Question(torch.ones(1, lengths[0], dtype=torch.int64), words)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(config.model, sizes).eval()(
            question, Image(regions, torch.zeros(1, lengths[1], 6))
        )
    found = benchmarking._forward_flops(config, sizes, *(np.array([n]) for n in lengths))
    # Not counted on a CPU: the LSTM's four gates, from an embedding of 300 and a state of 16.
    lstm = lengths[0] * 2 * 4 * 16 * (300 + 16)
    assert found == pytest.approx([counter.get_total_flops() + lstm])


@pytest.mark.slow
def test_arms_take_turns_in_processes_of_their_own(arm: Arm) -> None:
    arms = {BASELINE: replace(arm, baseline=True).having("train.rows=padded")}
    arms["float32"] = arm
    results = measure(arms, 2)
    for name, result in results.items():
        assert len(result["repetitions"]) == 2
        for each in (result["warm_up"], *result["repetitions"]):
            assert each["questions"] == 16, name
            assert each["peak_memory"] > 5e7
    with pytest.raises(RunError, match=r"^the arm 'lost' ended early: .*nowhere"):
        measure({"lost": arm.having("data.prepared=nowhere")}, 1)


def record(**arms: list[tuple[float, int]]) -> dict[str, Any]:
    """A record of arms whose repetitions took (seconds, questions)."""
    machine = {
        "processor": "P", "instructions": ["amx_bf16"], "memory": 2**34, "cpus": 2, "gpus": [],
        "torch": "2", "numpy": "2", "python": "3", "time": "now", "revision": "r",
    }  # fmt: skip

    def repetition(seconds: float, questions: int) -> dict[str, Any]:
        memory = {"peak_memory": 5_000_000, "peak_device_memory": None}
        return {"seconds": seconds, "questions": questions, "flops": 2e9, "steps": 2} | memory

    return {
        "what": "train",
        "title": "Training step",
        "work": "Made-up questions.",
        "unit": "step",
        "machine": machine,
        "products": {"float32": {"repetitions": [repetition(1, 0)]}},
        "arms": {
            name: {"threads": 2, "repetitions": [repetition(*each) for each in values]}
            for name, values in arms.items()
        },
    }


def test_ratios_are_of_neighbouring_repetitions() -> None:
    arms = record(baseline=[(4.0, 8), (40.0, 8)], ours=[(1.0, 8), (20.0, 8)])["arms"]
    assert ratios(arms["ours"], arms["baseline"]) == [4.0, 2.0]


def test_report(tmp_path: Path) -> None:
    made = record(baseline=[(4.0, 8)] * 3, ours=[(1.0, 8), (2.0, 8), (4.0, 8)])
    text = report(made)
    assert "| baseline | 2.000 (2.000 to 2.000) | 2.0 | 1.00 (1.00 to 1.00) | 5 | 0 | 25% |" in text
    assert "| ours | 1.000 (0.500 to 2.000) | 4.0 | 2.00 (1.00 to 4.00) | 5 | 1 | 50% |" in text
    assert "P, 2 cores (amx_bf16), 16 GiB; GPU: none." in text

    save(made, tmp_path / "today")
    assert json.loads((tmp_path / "today" / "train.json").read_text()) == made
    assert (tmp_path / "today.md").read_text() == f"# Benchmark today\n\n{text}"
    with pytest.raises(DataError, match=r"train\.json: already exists"):
        save(made, tmp_path / "today")
    (tmp_path / "today" / "broken.json").write_text("[]")
    with pytest.raises(DataError, match=r"broken\.json: not a record that scripts/benchmark\.py"):
        save(made | {"what": "eval"}, tmp_path / "today")


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ("train --steps 1", ["baseline", "float32", "bf16"]),
        ("train --steps 1 --vary train.batch_size=2,4", [f"train.batch_size {n}" for n in (2, 4)]),
        ("train --steps 1 --vary regions=2,3", ["regions 2", "regions 3"]),
        ("eval --questions 20 --no-bf16", ["baseline", "float32"]),
        ("loader --questions 20", ["ready batches"]),
        ("startup --questions 20", ["20 questions"]),
    ],
)
def test_script(arguments: str, rows: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "made"
    done = run_script(
        *arguments.split(), "--quick", "--repeats", "1", "--threads", "1", "--save", str(folder)
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == rows
    assert (tmp_path / "made.md").read_text().endswith(done.stdout)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train.json").write_text("{}")
    done = run_script("train", "--save", str(tmp_path / "made"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/made/train.json: already")
    done = run_script("train", "model.depht=3")
    assert done.returncode == 2
    assert "model.depht is not a key of model; did you mean depth?" in done.stderr
