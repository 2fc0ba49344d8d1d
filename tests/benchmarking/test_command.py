"""`scripts/benchmark.py` at tiny sizes, and what its processes say when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcan.benchmarking.arms import Arm, measure
from mcan.errors import RunError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/benchmark.py"
QUICK = ("--quick", "--repeats", "2", "--threads", "1")


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "options", "arms"),
    [
        ("train", (), {"baseline", "float32", "bf16"}),
        ("eval", (), {"baseline", "float32", "bf16"}),
        ("loader", (), {"baseline", "ours"}),
        (
            "scaling",
            (),
            {f"{p}, {n}" for p in ("float32", "bf16") for n in ("1 process", "2 processes")},
        ),
    ],
)
def test_a_benchmark_of_arms(tmp_path, what, options, arms):
    result = run(what, *QUICK, "--save", tmp_path / "machine", *options)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "machine" / f"{what}.json").read_text())
    assert record["arms"].keys() == arms
    for arm in record["arms"].values():
        assert len(arm["repetitions"]) == 2
        assert arm["start"]["environment"]["threads"] == 1
        assert all(repetition["seconds"] > 0 for repetition in arm["repetitions"])
    report = (tmp_path / "machine.md").read_text()
    assert result.stdout.strip() in report.replace("(machine/", f"({tmp_path / 'machine'}/")
    again = run(what, *QUICK, "--save", tmp_path / "machine")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "already exists" in again.stderr


@pytest.mark.slow
def test_start_up(tmp_path):
    result = run("startup", *QUICK, "--folder", tmp_path / "data", "--save", tmp_path / "machine")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "machine" / "startup.json").read_text())
    assert record["questions"] == 100
    assert len(record["starts"]) == 2
    assert (tmp_path / "data" / "prepared").is_dir()


@pytest.mark.slow
def test_a_sweep(tmp_path):
    result = run("scaling", "--sweep", "--quick", "--repeats", 1, "--save", tmp_path / "machine")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "machine" / "sweep.json").read_text())
    factors = [(point["factor"], point["value"]) for point in record["points"]]
    assert factors == [
        *[("regions", value) for value in (2, 4)],
        *[("width", value) for value in (16, 32)],
        *[("depth", value) for value in (1, 2)],
    ]
    assert [point["questions"] for point in record["startup"]] == [100, 200]
    assert (tmp_path / "machine" / "sweep.png").exists()


def test_an_arm_that_fails_says_why_in_one_sentence(spec):
    arm = Arm(spec("train", "model.heads=3"), threads=1)
    with pytest.raises(RunError, match=r"^the arm 'odd' ended early: .*heads"):
        measure({"odd": arm}, repeats=1)
