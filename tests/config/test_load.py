"""What a valid config comes to: inheritance, overrides, kinds of sections, numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mcan.config import (
    Config,
    CosineSchedule,
    DataConfig,
    PlateauSchedule,
    StemConfig,
    config_from_dict,
    dump_config,
    load_config,
)

VALID = """\
name: run
data:
  prepared: prepared
  images: [regions.h5]
"""
ROOT = Path(__file__).resolve().parents[2]


def test_defaults_are_those_of_the_schema(write):
    write({"x.yaml": VALID})
    data = DataConfig(prepared="prepared", images=("regions.h5",))
    assert load_config("x.yaml") == Config(name="run", data=data)


def test_bases_lie_below_the_file_and_later_bases_over_earlier_ones(write):
    write(
        {
            "configs/run/x.yaml": f"_base_: [../a.yaml, ../b.yaml]\n{VALID}train: {{epochs: 30}}",
            "configs/a.yaml": "train: {epochs: 10, batch_size: 10, log_every: 10}\nseed: 1",
            "configs/b.yaml": "_base_: deep/c.yaml\ntrain: {epochs: 20, batch_size: 20}",
            "configs/deep/c.yaml": "model: {depth: 2}\noptimizer: {lr: 1e-3}\nseed: 2",
        }
    )
    config = load_config("configs/run/x.yaml", ["optimizer.lr=3E-4"])
    assert (config.train.epochs, config.train.batch_size, config.train.log_every) == (30, 20, 10)
    assert (config.model.depth, config.optimizer.lr, config.seed) == (2, 3e-4, 2)


def test_lists_are_replaced_and_null_takes_the_place_of_a_section(write):
    write(
        {
            "x.yaml": "_base_: b.yaml\ndata: {images: [c]}\nmodel: {question: {word_vectors: }}",
            "b.yaml": VALID + "  train: [a, b]\nmodel: {question: {word_vectors: {path: v.txt}}}",
        }
    )
    config = load_config("x.yaml")
    assert config.data.images == ("c",)
    assert config.data.train == ("a", "b")
    assert config.model.question.word_vectors is None
    below_null = ["model.question.word_vectors.path=w.txt"]
    vectors = load_config("x.yaml", below_null).model.question.word_vectors
    assert vectors is not None
    assert vectors.path == "w.txt"


PLATEAU = "schedule: {name: plateau, decay_after: [5], warmup_epochs: 2}\n"


@pytest.mark.parametrize(
    ("base", "over", "overrides", "expected"),
    [
        ("", "", [], PlateauSchedule()),
        ("", "", ["schedule.decay=0.5"], PlateauSchedule(decay=0.5)),
        ("", "schedule: {decay: 0.5}", [], PlateauSchedule(decay=0.5)),
        (PLATEAU, "schedule: {name: cosine}", [], CosineSchedule(name="cosine")),
        (PLATEAU, "", ["schedule.name=cosine"], CosineSchedule(name="cosine")),
        (
            PLATEAU,
            "schedule: {name: plateau, decay: 1}",
            [],
            PlateauSchedule(decay_after=(5,), warmup_epochs=2, decay=1.0),
        ),
        ("schedule: {decay: 0.5}", "schedule: {name: cosine}", [], CosineSchedule(name="cosine")),
        (
            "schedule: {name: cosine, final: 0.1}",
            "schedule: {warmup_epochs: 2}",
            [],
            CosineSchedule(name="cosine", warmup_epochs=2, final=0.1),
        ),
        # Overrides count together, in whatever order they are given.
        (
            PLATEAU,
            "",
            ["schedule.final=0.1", "schedule.name=cosine", "schedule.warmup_epochs=1"],
            CosineSchedule(name="cosine", final=0.1),
        ),
    ],
)
def test_a_section_of_another_kind_starts_afresh(write, base, over, overrides, expected):
    write({"b.yaml": VALID + base, "x.yaml": "_base_: b.yaml\n" + over})
    assert load_config("x.yaml", overrides).schedule == expected


def test_of_a_key_given_twice_on_the_command_line_the_last_counts(write):
    write({"x.yaml": VALID})
    assert load_config("x.yaml", ["seed=1", " seed = 2", "runs=a=b"]).seed == 2
    assert load_config("x.yaml", ["runs=a=b"]).runs == "a=b"
    assert load_config("x.yaml", ["runs=''"]).runs == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("5e-5", 5e-5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3", 3.0),
        ("010", 10.0),
        ("0x10", 16.0),
        ("0o10", 8.0),
        ("!!float 2", 2.0),
    ],
)
def test_numbers(write, text, value):
    write({"x.yaml": VALID})
    rate = load_config("x.yaml", [f"optimizer.lr={text}"]).optimizer.lr
    assert isinstance(rate, float)
    assert rate == value


@pytest.mark.parametrize(
    "text", ["no", "on", "2024-01-01", "1:30", "1_000", "e5", "0b1", "=", "yes", "."]
)
def test_what_yaml_1_2_calls_text_is_text(write, text):
    write({"x.yaml": VALID})
    assert load_config("x.yaml", [f"runs={text}"]).runs == text


def test_quoted_numbers_are_text(write):
    write({"x.yaml": VALID + "runs: '1e-4'"})
    assert load_config("x.yaml").runs == "1e-4"


def test_a_byte_order_mark_and_aliases_are_read(tmp_path):
    text = "\ufeffname: run\r\ndata: {prepared: p, images: &i [r.h5], grid: *i}\r\n"
    (tmp_path / "x.yaml").write_bytes(text.encode())
    config = load_config(tmp_path / "x.yaml")
    assert config.data.grid == config.data.images == ("r.h5",)


def test_sections_take_lists_for_tuples_and_are_frozen():
    stem = StemConfig.model_validate({"channels": [8], "strides": [1]})
    assert stem == StemConfig(channels=(8,), strides=(1,))
    with pytest.raises(ValidationError):
        stem.channels = (9,)  # type: ignore[misc]


def test_stored_configs(write):
    write({"x.yaml": VALID})
    config = load_config("x.yaml", ["schedule={name: cosine}"])
    assert config_from_dict(config.model_dump(), "last.pt") == config
    assert config_from_dict(config.model_dump(mode="json"), "last.pt") == config
    assert "_base_" not in dump_config(config)


def test_every_config_of_the_repository_loads():
    # A table states rows of several runs; it is no config.
    files = [
        file
        for file in (ROOT / "configs").rglob("*.yaml")
        if not {"_base_", "tables"} & set(file.relative_to(ROOT).parts)
    ]
    for file in files:
        load_config(file)


def test_importing_the_config_does_not_import_torch():
    code = "import sys, mcan.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_reference_is_up_to_date():
    script = ROOT / "scripts" / "document_config.py"
    ended = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert ended.returncode == 0
