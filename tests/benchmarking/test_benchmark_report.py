"""Reports against figures worked out by hand."""

import json

import pytest
from PIL import Image

from mcan.benchmarking.hardware import describe_machine
from mcan.benchmarking.report import read, rewrite, save, section
from mcan.benchmarking.suites import doubling
from mcan.benchmarking.summary import Spread, ratios
from mcan.config.schema import EvaluationConfig, ModelConfig, TrainConfig
from mcan.errors import DataError

CONFIG = {
    "model": ModelConfig().model_dump(mode="json"),
    "train": TrainConfig().model_dump(mode="json"),
    "evaluation": EvaluationConfig().model_dump(mode="json"),
}
WORKLOAD = {"questions": 640, "regions": [10, 100], "features": 2048, "answers": 9, "words": 18000}


def repetition(seconds, peak=2e9, **more):
    phases = {"data": 0.0, "forward": seconds / 4, "backward": seconds * 3 / 4}
    return {
        "seconds": seconds,
        "questions": 64,
        "macs": 1e12,
        "steps": 2,
        "phases": phases,
        "peak_memory": peak,
        "peak_device_memory": None,
        **more,
    }


def arm(*seconds, precision="float32", processes=1, **more):
    return {
        "precision": precision,
        "processes": processes,
        "warm_up": repetition(9.0),
        "repetitions": [repetition(value, **more) for value in seconds],
    }


def record(what, **more):
    plain = {"what": what, "machine": describe_machine(), "threads": 2, "config": CONFIG}
    return plain | {"workload": WORKLOAD} | more


PRODUCTS = {"repetitions": [{"rates": {"float32": 1e12, "bf16": 2e12}}] * 2}
ARMS = {
    "baseline": arm(8.0, 10.0, 12.0, peak=6e9),
    "float32": arm(4.0, 4.0, 3.0),
    "bf16": arm(2.0, 2.0, 2.0, precision="bf16"),
}
SWEEP = record(
    "sweep",
    arms={},
    points=[
        {"factor": factor, "value": value, **arm(value / 100, value / 90, peak=value * 1e7)}
        for factor, values in {"regions": (36, 608), "width": (512, 1024), "depth": (2, 8)}.items()
        for value in values
    ],
    startup=[
        {
            "questions": count,
            "images": count // 5,
            "starts": [{"seconds": 2.0, "peak_memory": 1e9}],
        }
        for count in (10_000, 440_000)
    ],
)


def row(text, name):
    """The cells of the first table row that begins with `name`."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_speed_up_is_the_median_of_neighbours():
    assert ratios(ARMS["float32"], ARMS["baseline"]) == Spread(2.5, 2.0, 4.0)


def test_training():
    text = section(record("train", arms=ARMS, products=PRODUCTS))
    assert row(text, "float32") == [
        "float32",
        "2,000 (1,500 to 2,000)",
        "16.0",
        "2.50x (2.00x to 4.00x)",
        "2,000",
        "33%",
        "500",
        "25%",  # of 2e12: two per multiply-add
    ]
    assert row(text, "bf16")[-2:] == ["1,000", "25%"]
    shares = text[text.index("Where the time goes") :]
    assert row(shares, "bf16") == ["bf16", "0%", "25%", "75%", "0%", "0%", "9.00"]
    assert "2,000 GFLOP/s in float32 and 4,000 GFLOP/s in bf16" in text


def test_gpu_memory_is_shown_where_it_was_measured():
    arms = {
        "baseline": arm(8.0, peak_device_memory=3e9),
        "bf16": arm(2.0, peak_device_memory=1e9),
    }
    text = section(record("eval", arms=arms, products=PRODUCTS))
    assert "GPU peak, MB" in text
    assert "1,000" in row(text, "bf16")
    assert "Batch 256," in text
    text = section(record("eval", arms=ARMS, products=PRODUCTS))
    assert "GPU peak" not in text
    assert "Batch 64," in text


def test_loading_start_up_and_processes():
    assert row(section(record("loader", arms=ARMS)), "bf16")[2] == "32.0"
    starts = [{"seconds": value, "peak_memory": 5e8} for value in (3.0, 1.0, 2.0)]
    text = section(record("startup", questions=440_000, images=120_000, starts=starts))
    assert row(text, "440,000")[1:] == ["120,000", "2.00 (1.00 to 3.00)", "500"]
    arms = {"one": arm(8.0, 8.0, 9.0), "two": arm(5.0, 8.0, 5.0, processes=2)}
    text = section(record("scaling", arms=arms))
    assert row(text, "one")[3] == "100% (100% to 100%)"
    assert row(text, "two")[3] == "80% (50% to 90%)"
    assert row(text[text.index("Where the time goes") :], "two")[2:4] == ["25%", "75%"]
    assert "; 2 threads per process." in text
    assert "; 1 thread per process." in section(record("scaling", arms=arms) | {"threads": 1})


def test_records_become_one_report(tmp_path):
    path = tmp_path / "docs" / "machine"
    save(record("loader", arms=ARMS), path)
    save(record("train", arms=ARMS, products=PRODUCTS), path)
    text = (tmp_path / "docs" / "machine.md").read_text()
    assert text.startswith("# Benchmark machine\n")
    assert text.index("## Training step") < text.index("## Loading")
    assert read(path / "train.json") == record("train", arms=ARMS, products=PRODUCTS) | {
        "machine": json.loads((path / "train.json").read_text())["machine"]
    }
    (tmp_path / "docs" / "machine.md").unlink()
    rewrite(path)
    assert (tmp_path / "docs" / "machine.md").read_text() == text


def test_a_sweep_has_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    save(SWEEP, tmp_path / "machine")
    text = (tmp_path / "machine.md").read_text()
    assert "(machine/sweep.png)" in text
    assert row(text, "regions")[1] == "36"
    assert row(text, "440,000")[2].startswith("2.00")
    with Image.open(tmp_path / "machine" / "sweep.png") as image:
        assert min(image.size) > 500
    first = (tmp_path / "machine" / "sweep.png").read_bytes()
    rewrite(tmp_path / "machine")
    assert (tmp_path / "machine" / "sweep.png").read_bytes() == first


def test_a_sweep_without_a_folder_names_no_plot():
    assert "sweep.png" not in section(SWEEP)


def test_a_sweep_on_a_gpu_shows_its_memory():
    points = [
        {"factor": "depth", "value": 2, **arm(1.0, peak_device_memory=3e9)},
        {"factor": "depth", "value": 8, **arm(2.0, peak_device_memory=4e9)},
    ]
    text = section(SWEEP | {"points": points})
    assert "| GPU peak, MB |" in text
    assert row(text, "depth")[-2:] == ["2,000", "3,000"]
    assert "GPU peak" not in section(SWEEP)


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_numbers_of_processes(most, counts):
    assert doubling(most) == counts


def test_a_record_is_not_overwritten(tmp_path):
    save(record("loader", arms=ARMS), tmp_path / "machine")
    before = (tmp_path / "machine" / "loader.json").read_bytes()
    with pytest.raises(DataError, match=r"loader\.json: already exists"):
        save(record("loader", arms={"baseline": arm(1.0)}), tmp_path / "machine")
    assert (tmp_path / "machine" / "loader.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"what": "speed"}', '{"what": []}'])
def test_a_file_that_is_no_record(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json: is not a record"):
        rewrite(tmp_path)


def test_a_folder_without_records(tmp_path):
    with pytest.raises(DataError, match="holds no record of a benchmark"):
        rewrite(tmp_path)
