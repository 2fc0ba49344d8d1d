"""Runs that start from other weights, freeze some, and learn others at another rate."""

from __future__ import annotations

import json

import pytest
import torch
from runs import Lab, make_lab, metrics_of

from mcan.engine.checkpoint import last_checkpoint, load_checkpoint
from mcan.engine.optimizers import build_optimizer
from mcan.errors import ConfigError
from mcan.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("source"))
    assert lab.train("source", "train.max_steps=6").status == 0
    return lab


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Fewer words and more answers than those of `source`."""
    return make_lab(tmp_path_factory.mktemp("target"), vocabulary=9, answers=7, seed=1)


def trained(lab: Lab, name: str):
    path = last_checkpoint(lab.run(name) / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


def start_from(source: Lab, name: str = "source") -> str:
    return f"train.init_from={{checkpoint: {source.run(name)}}}"


# The learning rate of the first step is so small that the weights stay as they were loaded.
STILL = ("train.max_steps=1", "optimizer.lr=1e-30")


def test_rows_of_common_words_and_answers(source, target):
    result = target.train("a", start_from(source), *STILL)
    assert result.status == 0, result.err
    before, after = trained(source, "source"), trained(target, "a")
    old = Vocabulary.from_json(before.vocabulary, "old")
    new = Vocabulary.from_json(after.vocabulary, "new")
    assert len(set(new.tokens) & set(old.tokens)) < len(new.tokens)
    fresh = {"question_encoder.embedding.weight": new.tokens, "classifier.weight": new.answers}
    fresh["classifier.bias"] = new.answers
    for name, value in after.model.items():
        if name not in fresh:
            torch.testing.assert_close(value, before.model[name], msg=name)
            continue
        entries = old.tokens if "embedding" in name else old.answers
        for row, entry in enumerate(fresh[name]):
            if entry in entries:
                expected = before.model[name][entries.index(entry)]
                torch.testing.assert_close(value[row], expected)
            elif value.dim() == 2:
                assert not any(torch.equal(value[row], other) for other in before.model[name])
    answers = len(set(new.answers) & set(old.answers))
    words = len(set(new.tokens) & set(old.tokens))
    assert f"answers {answers} of {len(new.answers)} carried over" in result.err
    assert f"words {words} of {len(new.tokens)} carried over" in result.err


def test_another_size_needs_partial(source, target):
    deeper = "model.depth=2"
    result = target.train("b", start_from(source), deeper)
    assert result.status == 2
    (line,) = result.errors()
    assert "in the config: cascade.question.1.SA.attention.query.weight, " in line
    assert line.endswith("train.init_from.partial=true loads only what fits")
    assert not target.run("b").exists()
    partial = f"train.init_from={{checkpoint: {source.run('source')}, partial: true}}"
    result = target.train("b", partial, deeper, "model.fusion_size=14", *STILL)
    assert result.status == 0, result.err
    before, after = trained(source, "source").model, trained(target, "b").model
    name = "cascade.image.0.GA.attention.key.weight"
    torch.testing.assert_close(after[name], before[name])
    assert "new: cascade.question.1.SA.attention.query.weight, " in result.err
    assert after["classifier.weight"].shape == (7, 14)


def test_a_resumed_run_ends_with_the_same_bits(source, target, tmp_path):
    assert target.train("whole", start_from(source)).status == 0
    assert target.train("parts", start_from(source), "train.checkpoint_every=2").status == 0
    whole = trained(target, "whole")
    # Resuming does not need the checkpoint that the run started from.
    moved = source.run("source").rename(tmp_path / "moved")
    path = last_checkpoint(target.run("parts") / "checkpoints")
    assert path is not None
    path.unlink()
    result = target.resume("parts", start_from(source), "train.checkpoint_every=2")
    moved.rename(source.run("source"))
    assert result.status == 0, result.err
    for name, value in trained(target, "parts").model.items():
        assert torch.equal(value, whole.model[name])
    datasets = [(each["dataset"], each.get("before", False)) for each in whole.trained_on]
    assert datasets == [("synthetic", False), ("synthetic", True)]
    assert trained(target, "parts").trained_on == whole.trained_on


def test_what_it_was_trained_on_before_is_known(source, target):
    """Evaluating on what the first run was trained on is warned of."""
    assert target.train("c", start_from(source), "train.max_steps=1").status == 0
    prepared = source.folder / "prepared"
    images = source.folder / "images.h5"
    result = target.eval(
        "runs/c",
        "--split",
        "train",
        f"data.prepared={prepared}",
        f"data.images=[{images}]",
        "--output",
        "elsewhere",
    )
    assert result.status == 0, result.err
    assert "trained on 44 of these 44 questions" in result.err


def test_evaluations_know_what_the_start_was_trained_on(source):
    seen = source.train("seen", "data.train=[train, val]", "train.max_steps=1", *STILL[1:])
    assert "data.train holds 11 of the 11 questions of data.evaluate" in seen.err
    result = source.train("after", start_from(source, "seen"), "train.max_steps=1")
    assert result.status == 0, result.err
    hold = "data.train and train.init_from hold"
    assert f"warning: {hold} 11 of the 11 questions of data.evaluate (val); " in result.err
    assert metrics_of(source.run("after"))[-1]["trained_on_questions"] == 11


def test_frozen_parameters(source, target):
    frozen = "train.freeze=[question_encoder.*, '*.norm.*']"
    assert target.train("d", start_from(source), frozen, "train.max_steps=5").status == 0
    assert target.train("e", start_from(source), *STILL).status == 0
    start, end = trained(target, "e").model, trained(target, "d").model
    for name, value in end.items():
        is_frozen = name.startswith("question_encoder.") or ".norm." in name
        assert torch.equal(value, start[name]) == is_frozen, name


def test_rates_of_groups():
    model = torch.nn.ModuleDict(
        {"body": torch.nn.Linear(2, 2), "classifier": torch.nn.Linear(2, 3)}
    )
    groups = [{"match": "classifier.*", "lr": 0.5}, {"match": "*.bias", "lr": 0.25}]
    optimizer = build_optimizer(
        model, "adamw", weight_decay=0.1, groups=groups, lr=0.125, betas=(0.9, 0.99), eps=1e-8
    )
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert found == {
        "body.weight": (0.125, 0.1),
        "body.bias": (0.25, 0.0),
        "classifier.weight": (0.5, 0.1),
        "classifier.bias": (0.5, 0.0),
    }
    with pytest.raises(ConfigError, match=r"no parameter is left for 'head\*'"):
        build_optimizer(model, "adam", 0.0, [{"match": "head*", "lr": 1.0}], lr=0.1)


def test_groups_of_a_config_follow_the_schedule(target):
    result = target.train(
        "f", "optimizer.groups=[{match: classifier*, lr: 0.001}]", "train.max_steps=3"
    )
    assert result.status == 0, result.err
    rates = [group["lr"] for group in trained(target, "f").optimizer["param_groups"]]
    assert len(rates) == 4
    assert rates[2] / rates[0] == pytest.approx(3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.freeze=[nothing*]", "train.freeze: no parameter matches 'nothing*'; parameters: "),
        ("train.freeze=['*']", "train.freeze: no parameter is left to train"),
        ("optimizer.groups=[{match: nothing*, lr: 1}]", "is left for 'nothing*'"),
        ("optimizer.groups=[{match: classifier*}]", "optimizer.groups"),
        ("train.init_from={checkpoint: nowhere}", "nowhere: neither a checkpoint nor a run folder"),
        ("train.init_from={checkpoint: config.yaml}", "config.yaml: not a checkpoint of train.py"),
    ],
)
def test_mistakes(target, override, sentence):
    result = target.train("mistake", override)
    assert result.status == 2
    (line,) = result.errors()
    assert sentence in line
    assert not target.run("mistake").exists()


def test_old_runs_keep_their_identity(target):
    assert target.train("g", "train.max_steps=1").status == 0
    config = json.dumps(trained(target, "g").config)
    assert '"init_from": null' in config
