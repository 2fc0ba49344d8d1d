"""Every error is one line: place, key, what was found and what is allowed."""

# ruff: noqa: E501 (tables of one case a line)
from __future__ import annotations

from pathlib import Path

import pytest

from mcan.config import config_from_dict, load_config
from mcan.errors import ConfigError

VALID = """\
name: run
data:
  prepared: prepared
  images: [regions.h5]
"""
MODEL_KEYS = "its keys are hidden_size, heads, depth, question_depth, mca_layer, cascade"
NAME = "text that matches `^[A-Za-z0-9][A-Za-z0-9._-]*$`"
LIST_OF_TEXT = "it must be a list of at least 1 item, each text"

# Text that follows the four lines of VALID -> how the message begins.
IN_FILE = [
    ("model:\n  hiden_size: 3", "x.yaml:6: model.hiden_size is not a key of model; did you mean hidden_size?"),
    ("lr: 1e-3", "x.yaml:5: lr is not a key of the config; did you mean optimizer.lr?"),
    ("model:\n  _base_: b.yaml", f"x.yaml:6: model._base_ is not a key of model; {MODEL_KEYS}"),
    ("train:\n  epochs: '64'", 'x.yaml:6: train.epochs is "64"; it must be a whole number of at least 1'),
    ("train:\n  epochs: 1.0", "x.yaml:6: train.epochs is 1.0; it must be a whole number of at least 1"),
    ("train:\n  compile: yes", 'x.yaml:6: train.compile is "yes"; it must be true or false'),
    ("train:\n  clip_norm: -1", "x.yaml:6: train.clip_norm is -1; it must be a number above 0, or null"),
    ("train:\n  loss: bce", 'x.yaml:6: train.loss is "bce"; it must be bce_sum, bce_mean or cross_entropy'),
    ("model:\n  dropout: .nan", "x.yaml:6: model.dropout is NaN; it must be a number of at least 0 and below 1"),
    ("seed: 4294967296", "x.yaml:5: seed is 4294967296; it must be a whole number of at least 0 and below 4294967296"),
    ("runs: 2024", "x.yaml:5: runs is 2024; it must be text, so write it in quotes"),
    ("model:\n  question:\n    word_vectors: {}", "x.yaml:7: model.question.word_vectors.path is missing; it must be text"),
    ("optimizer:\n  betas: [0.9]", "x.yaml:6: optimizer.betas[1] is missing; it must be a number of at least 0 and below 1"),
    ("optimizer:\n  betas:\n    - 0.9\n    - 1", "x.yaml:6: optimizer.betas[1] is 1; it must be a number of at least 0 and below 1"),
    ("schedule: {name: cosin}", 'x.yaml:5: schedule.name is "cosin"; it must be cosine or plateau'),
    ("schedule: cosine", 'x.yaml:5: schedule is "cosine"; it must be a mapping with name: cosine or plateau'),
    ("schedule:\n  name: plateau\n  final: 0.1", "x.yaml:7: schedule.final is not a key of schedule with name: plateau; its keys are name, warmup_epochs, decay_after, decay"),
    ("schedule:\n  name: cosine\n  finale: 0.1", "x.yaml:7: schedule.finale is not a key of schedule with name: cosine; did you mean final?"),
    # contradictions
    ("model:\n  hidden_size: 510", "x.yaml:6: model: hidden_size=510 is not divisible by heads=8"),
    ("model: {cascade: stacking,\n  question_depth: 3}", 'x.yaml:6: model: question_depth=3 differs from depth=6, which cascade="stacking" does not allow'),
    ("model:\n  mca_layer: id_ga\n  question_depth: 6", 'x.yaml:7: model: question_depth=6 is set, but mca_layer="id_ga" has no question layers'),
    ("model:\n  hidden_size: 6\n  heads: 1\n  image:\n    position_encoding: true", "x.yaml:6: model: hidden_size=6 is not divisible by 4, which image.position_encoding=true needs"),
    ("model:\n  hidden_size: 7\n  heads: 1\n  question: {encoder: positional}", 'x.yaml:6: model: hidden_size=7 is odd, but question.encoder="positional" needs it even'),
    ("model:\n  image:\n    boxes: true\n    input: pixels", 'x.yaml:7: model.image: boxes=true cannot be combined with input="pixels"'),
    ("model: {image: {stem: {\n  strides: [1]}}}", "x.yaml:6: model.image.stem: channels=[32, 64, 128, 128] and strides=[1] must have equally many items"),
    ("train:\n  batch_size: 2\n  accumulation: 3", "x.yaml:7: train: accumulation=3 is more than batch_size=2"),
    ("  residency: device\n  workers: 2", 'x.yaml:5: data: residency="device" cannot be combined with workers=2; use 0 workers'),
    ("train: {compile: true, rows: packed}", 'x.yaml:5: train: compile=true cannot be combined with rows="packed"'),
    ("schedule:\n  decay_after: [12, 10]", "x.yaml:6: schedule: decay_after=[12, 10] must rise"),
    ("schedule:\n  warmup_epochs: 11", "x.yaml:6: schedule: decay_after=[10, 12] starts before warmup_epochs=11 have passed"),
    ("train:\n  epochs: 2", "x.yaml:6: schedule.warmup_epochs=3 is more than train.epochs=2"),
    # malformed YAML
    ("model: [1,", "x.yaml:6: not valid YAML: while parsing a flow node"),
    ("name: other", "x.yaml:5: not valid YAML: the key \"name\" is stated twice"),
    ("runs: *nobody", "x.yaml:5: not valid YAML: found undefined alias 'nobody'"),
    ("runs: !!python/object/apply:os.system [ls]", "x.yaml:5: not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ("model: !!map 3", 'x.yaml:5: not valid YAML: "3" is not a valid map'),
    ("train: {compile: !!bool maybe}", 'x.yaml:5: not valid YAML: "maybe" is not a valid bool'),
    (f"seed: {'1' * 5000}", 'x.yaml:5: not valid YAML: "1111'),
    ("runs: a\x07b", "x.yaml:5: not valid YAML: the character U+0007 is not allowed"),
    ('"a\\nb": 1', "x.yaml:5: a\\nb is not a key of the config"),
    ("model: &a {image: *a}", "x.yaml:5: not valid YAML: found unconstructable recursive node"),
    (f"a: &a 1\nmodel: [{', '.join(['*a'] * 21)}]", "x.yaml: not valid YAML: more than 20 aliases"),
    (f"model: {'[' * 5000}", "x.yaml: not valid YAML: nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begins"), IN_FILE)
def test_mistakes_in_a_file(write, text, begins):
    write({"x.yaml": VALID + text + "\n"})
    assert _message("x.yaml").startswith(begins)


# Whole files, of which x.yaml is loaded -> how the message begins.
FILES = [
    ({"x.yaml": ""}, f"x.yaml: name is missing; it must be {NAME} (and 1 more)"),
    ({"x.yaml": "- 1\n"}, "x.yaml: the file is [1]; it must be a mapping"),
    ({"x.yaml": "name: a/b\ndata: {prepared: p, images: [i]}"}, f'x.yaml:1: name is "a/b"; it must be {NAME}'),
    ({"x.yaml": "name: 2024\ndata: {prepared: p, images: [i]}"}, f"x.yaml:1: name is 2024; it must be {NAME}, so write it in quotes"),
    ({"x.yaml": "name: a\ndata: {prepared: p, images: []}"}, f"x.yaml:2: data.images is []; {LIST_OF_TEXT}"),
    ({"x.yaml": "name: a\ndata:\n  images: [i]\n  prepard: p"}, "x.yaml:4: data.prepard is not a key of data; did you mean prepared? (and 1 more)"),
    ({"a/x.yaml": "_base_: b.yaml", "x.yaml": "_base_:\n  - a/x.yaml"}, f"a/x.yaml:1: _base_ names {Path('a/b.yaml')}, which cannot be read (No such file or directory)"),
    ({"x.yaml": "_base_: 3"}, "x.yaml:1: _base_ is 3; it must be a path or a list of paths, relative to this file"),
    ({"x.yaml": '_base_: "a\\0b"'}, "x.yaml:1: _base_ names a\\x00b, which cannot be read"),
    (
        {"x.yaml": "_base_: a/b.yaml", "a/b.yaml": "\n_base_: c.yaml", "a/c.yaml": "_base_: b.yaml"},
        "a/c.yaml:1: _base_ goes in a circle: a/b.yaml -> a/c.yaml -> a/b.yaml",
    ),
    ({"x.yaml": f"{VALID}_base_: b.yaml", "b.yaml": "\nseed: -1"}, "b.yaml:2: seed is -1; it must be"),
    ({"x.yaml": f"{VALID}_base_: b.yaml\nmodel: {{heads: 7}}", "b.yaml": "model: {hidden_size: 512}"}, "x.yaml:6: model: hidden_size=512 is not divisible by heads=7"),
    ({"x.yaml": f"{VALID}_base_: b.yaml\nmodel:\n  question:", "b.yaml": "model: {question: {encoder: lstm}}"}, "x.yaml:7: model.question is empty, which would drop"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "begins"), FILES)
def test_mistakes_over_files(write, files, begins):
    write(files)
    assert _message("x.yaml").startswith(begins)


OVERRIDES = [
    (["train.epochs"], '"train.epochs" is not an override; write key=value, such as train.epochs=5'),
    (["data.train.0=x"], f'data.train is {{"0": "x"}}; {LIST_OF_TEXT}'),
    (["train.epochs=five"], 'train.epochs is "five"; it must be a whole number of at least 1'),
    (["data="], "data is empty, which would drop what it inherits"),
    (["runs=\udcff"], "runs is not valid YAML: the character U+DCFF is not allowed"),
    (["model.heads=7"], "model: hidden_size=512 is not divisible by heads=7"),
    (["data.grid=[a]", "model.image.input=pixels"], 'data.grid=["a"] adds to regions, not to model.image.input="pixels"'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "begins"), OVERRIDES)
def test_mistakes_on_the_command_line(write, overrides, begins):
    write({"x.yaml": VALID})
    assert _message("x.yaml", overrides).startswith(f"command line: {begins}")


def test_files_that_cannot_be_read(write, tmp_path):
    assert _message("no.yaml") == "no.yaml: the file cannot be read (No such file or directory)"
    (tmp_path / "x.yaml").write_bytes(VALID.encode() + b"runs: \xff\n")
    assert _message("x.yaml").startswith("x.yaml: the file cannot be read ('utf-8' codec")


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (3, "last.pt: the config is 3; it must be a mapping"),
        ({"name": "a", "data": {"prepared": "p"}}, "last.pt: data.images is missing"),
        (
            {"name": "a", "data": {"prepared": "p", "images": ("i",), "workers": 2.5}},
            "last.pt: data.workers is 2.5; it must be a whole number of at least 0",
        ),
        ({"name": Path("a"), "data": {"prepared": "p", "images": ["i"]}}, 'last.pt: name is "a"'),
    ],
)
def test_mistakes_in_stored_configs(data, begins):
    with pytest.raises(ConfigError) as error:
        config_from_dict(data, "last.pt")
    assert str(error.value).startswith(begins)


def _message(path, overrides=()):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message
