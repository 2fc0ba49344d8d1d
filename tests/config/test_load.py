"""What a valid config comes to: inheritance, overrides, kinds of sections, numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mcan.config import config_from_dict, dump_config, free_keys, load_config
from mcan.engine.schedules import Cosine, Plateau

VALID = """\
name: run
data:
  prepared: prepared
  images: [regions.h5]
"""
ROOT = Path(__file__).resolve().parents[2]


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


PLATEAU = "schedule: {name: plateau, decay_after: [5]}\n"
COSINE = Cosine(name="cosine")


@pytest.mark.parametrize(
    ("base", "over", "overrides", "expected"),
    [
        ("", "", [], Plateau()),
        ("", "schedule: {decay: 0.5}", [], Plateau(decay=0.5)),
        (PLATEAU, "schedule: {decay: 1}", [], Plateau(decay_after=(5,), decay=1.0)),
        (PLATEAU, "schedule: {name: cosine}", [], COSINE),
        ("schedule: {decay: 0.5}", "schedule: {name: cosine}", [], COSINE),
        ("schedule: {name: cosine}", "schedule: {warmup_epochs: 1}", [], COSINE),
        # Overrides count together, in whatever order they are given.
        (PLATEAU, "", ["schedule.final=0.0", "schedule.name=cosine"], COSINE),
    ],
)
def test_a_section_of_another_kind_starts_again(write, base, over, overrides, expected):
    write({"b.yaml": VALID + base, "x.yaml": "_base_: b.yaml\n" + over})
    assert load_config("x.yaml", overrides).schedule == expected


def test_of_a_key_given_twice_on_the_command_line_the_last_counts(write):
    write({"x.yaml": VALID})
    config = load_config("x.yaml", ["seed=1", " seed = 2", "runs=a=b"])
    assert (config.seed, config.runs) == (2, "a=b")
    assert load_config("x.yaml", ["runs=''"]).runs == ""


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("optimizer.lr", text, 1e-4) for text in ("1e-4", "1E-4", ".0001", "1.e-4", "+1.0e-4")),
        *(("optimizer.lr", text, 10.0) for text in ("010", "0xA", "0o12", "!!float 10")),
        # What YAML 1.1 takes for a boolean, a date or a number is text in YAML 1.2.
        *(("runs", text, text) for text in ("no", "yes", "2024-01-01", "1:30", "1_000", "e5", "=")),
        ("runs", "'1e-4'", "1e-4"),
    ],
)
def test_numbers_and_text(write, key, text, value):
    write({"x.yaml": VALID})
    section, _, name = key.rpartition(".")
    config = load_config("x.yaml", [f"{key}={text}"])
    found = getattr(getattr(config, section) if section else config, name)
    assert found == value
    assert type(found) is type(value)


def test_a_byte_order_mark_and_aliases_are_read(tmp_path):
    text = "\ufeffname: run\r\ndata: {prepared: p, images: &i [r.h5], grid: *i}\r\n"
    (tmp_path / "x.yaml").write_bytes(text.encode())
    config = load_config(tmp_path / "x.yaml")
    assert config.data.grid == config.data.images == ("r.h5",)


def test_stored_configs(write):
    write({"x.yaml": VALID})
    config = load_config("x.yaml", ["schedule={name: cosine}"])
    assert config_from_dict(config.model_dump(), "last.pt") == config
    assert config_from_dict(config.model_dump(mode="json"), "last.pt") == config
    assert "_base_" not in dump_config(config)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_free_keys():
    """They say where and how often, but not what is learnt, predicted or reported."""
    assert free_keys() == {
        *("name", "runs", "data.prepared", "data.images", "data.grid", "data.residency"),
        *("data.workers", "model.question.word_vectors.path", "train.device", "train.rows"),
        *("train.evaluate_every", "train.log_every", "train.checkpoint_every", "train.keep_last"),
        "evaluation.batch_size",
    }


def test_every_config_of_the_repository_loads():
    # A table states rows of several runs; it is no config.
    files = [
        file
        for file in (ROOT / "configs").rglob("*.yaml")
        if not {"_base_", "tables"} & set(file.relative_to(ROOT).parts)
    ]
    for file in files:
        load_config(file)
