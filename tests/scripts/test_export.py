"""Exported models: equal logits, a card that hubs can read, a program that runs on tensors."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from runs import FORK, Lab, make_lab

import mcan
from mcan.errors import DataError, RunError

PIXELS = {"model": {"image": {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}}}
BOXES = {"model": {"image": {"boxes": True, "box_embedding_size": 3}}}


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lab]:
    """A trained and evaluated run `a` on regions with boxes, on pixels, and with a grid."""
    made = {}
    for kind, changes in (("regions", BOXES), ("pixels", PIXELS), ("grid", None)):
        options = {"kind": "pixels"} if kind == "pixels" else {"boxes": True, "grid": True}
        lab = make_lab(tmp_path_factory.mktemp(kind), changes, **options)
        grid = ["data.grid=[grid.h5]"] if kind == "grid" else []
        assert lab.train("a", "train.max_steps=3", *grid).status == 0
        made[kind] = lab
    assert made["regions"].eval("runs/a").status == 0
    assert made["regions"].execute("scripts/export", ["runs/a", "out"]).status == 0
    return made


@pytest.fixture
def lab(labs, monkeypatch) -> Lab:
    monkeypatch.chdir(labs["regions"].folder)
    return labs["regions"]


def test_a_loaded_export_is_equal_to_the_bit(lab):
    run, exported = mcan.load("runs/a"), mcan.load("out")
    dataset = run.split()
    rows = list(range(len(dataset)))
    assert torch.equal(run.observe(dataset, rows).logits, exported.observe(dataset, rows).logits)
    assert exported.vocabulary == run.vocabulary
    assert exported.config == run.config
    assert exported.checkpoint.trained_on == run.checkpoint.trained_on


def test_eval_takes_the_folder(lab):
    by_run, by_folder = lab.eval("runs/a"), lab.eval("out", "--output", "evaluated")
    assert by_folder.status == 0, by_folder.err
    assert by_run.out.splitlines()[2:6] == by_folder.out.splitlines()[2:6]


def test_model_card(lab):
    text = (lab.folder / "out/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "other"
    assert card["pipeline_tag"] == "visual-question-answering"
    (index,) = card["model-index"]
    assert index["name"] == "a"
    (result,) = index["results"]
    accuracy = yaml.safe_load(
        (lab.folder / "runs/a/predictions").glob("*/metrics.json").__next__().read_text()
    )
    assert result["metrics"][0]["value"] == round(accuracy["overall"], 2)
    assert result["dataset"] == {"name": "synthetic", "type": "synthetic", "split": "val"}
    assert f"| val | {accuracy['n']} | {accuracy['overall']:.2f} |" in body


def test_the_card_shows_results_of_this_checkpoint(lab):
    assert lab.train("more", "train.max_steps=2").status == 0
    for arguments in ([], ["data.limit=5"]):  # a part of the questions is not for the card
        assert lab.eval("runs/more", *arguments).status == 0
    assert lab.eval("runs/more", "--split", "train").status == 0
    for path in (lab.run("more") / "predictions").glob("train_*/metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": [1]}))
    assert lab.execute("scripts/export", ["runs/more", "card"]).status == 0
    text = (lab.folder / "card/README.md").read_text()
    (index,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"]
    assert [result["dataset"]["split"] for result in index["results"]] == ["val"]
    assert "Trained on synthetic: train (44 questions); 2 steps." in text


def test_the_card_says_what_the_start_was_trained_on(lab):
    start = f"train.init_from={{checkpoint: {lab.run('a')}}}"
    assert lab.train("started", start, "train.max_steps=1").status == 0
    assert lab.execute("scripts/export", ["runs/started", "started"]).status == 0
    text = (lab.folder / "started/README.md").read_text()
    train = "synthetic: train (44 questions)"
    assert f"Trained on {train}, before that {train}; 1 steps." in text


def compare_program(lab, kind):
    program = torch.export.load(lab.folder / "net.pt2").module()
    model = mcan.load("runs/a")
    dataset = model.split()
    for rows in ([0, 1, 2, 3, 4], [5]):
        batch = dataset[rows].enter("cpu", "padded")
        words, count = batch.question.tokens.shape[1], len(rows)
        tokens, word_mask = torch.zeros(count, 7, dtype=torch.int64), torch.zeros(count, 7).bool()
        tokens[:, :words], word_mask[:, :words] = batch.question.tokens, batch.question.rows.mask
        if kind == "pixels":
            inputs = [batch.image.pixels]
        else:
            regions = batch.image.regions.shape[1]
            inputs = [
                torch.zeros(count, 9, 6),
                torch.zeros(count, 9).bool(),
                torch.zeros(count, 9, 4),
            ]
            for whole, part in zip(
                inputs, (batch.image.regions, batch.image.rows.mask, batch.image.boxes), strict=True
            ):
                whole[:, :regions] = part
        found = program(tokens, word_mask, *inputs)
        expected = model.observe(dataset, rows).logits
        torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["regions", "pixels"])
def test_program(labs, monkeypatch, kind):
    lab = labs[kind]
    monkeypatch.chdir(lab.folder)
    arguments = ["runs/a", "--program", "net.pt2", "--max-words", "7", "--max-regions", "9"]
    result = lab.execute("scripts/export", arguments)
    assert result.status == 0, result.err
    # A process that has loaded a program cannot fork trainings any more.
    process = FORK.Process(target=compare_program, args=(lab, kind))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("regions", ["runs/a"], r"name a FOLDER, or a file with --program"),
        ("regions", ["runs/a", "out"], r"out: exists; choose another name"),
        ("regions", ["runs/a", "config.yaml"], r"config.yaml: exists; choose another name"),
        ("regions", ["runs/b", "new"], r"runs/b: neither a checkpoint nor a run folder"),
        ("grid", ["runs/a", "--program", "x.pt2"], r"--program: a network that needs grid cells"),
    ],
)
def test_mistakes(labs, kind, arguments, sentence):
    result = labs[kind].execute("scripts/export", arguments)
    assert result.status == 2
    (line,) = result.errors()
    assert line.startswith("error: ")
    assert sentence in line
    assert not (labs[kind].folder / "new").exists()


def damage(path, mode):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if mode == "half" else b"{}" * 40)


@pytest.mark.parametrize("mode", ["half", "other", "no vocabulary", "other vocabulary"])
def test_damaged_exports(lab, tmp_path, mode):
    assert lab.execute("scripts/export", ["runs/a", str(tmp_path / "x")]).status == 0
    if mode == "no vocabulary":
        (tmp_path / "x/vocabulary.json").unlink()
    elif mode == "other vocabulary":
        path = tmp_path / "x/vocabulary.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"answers": content["answers"][::-1]}))
    else:
        damage(tmp_path / "x/model.safetensors", mode)
    with pytest.raises(
        RunError, match=r"damaged|(no such file|not the vocabulary of .*); export the run again"
    ):
        mcan.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 99}, "checkpoint format 99; this version reads 2"),
        ({"position": {}}, "the checkpoint is not complete: position.epoch: Field required"),
        ({"sizes": {"answers": 5}}, "the checkpoint is not complete: sizes.tokens: Field required"),
    ],
)
def test_headers_that_are_not_ours(lab, tmp_path, change, sentence):
    from safetensors.torch import load_file, save_file

    assert lab.execute("scripts/export", ["runs/a", str(tmp_path / "x")]).status == 0
    path = tmp_path / "x/model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    header["mcan"] = json.dumps(json.loads(header["mcan"]) | change)
    save_file(load_file(path), path, header)
    with pytest.raises(RunError, match=re.escape(sentence)):
        mcan.load(tmp_path / "x")


def test_without_safetensors(lab, monkeypatch):
    monkeypatch.setattr("mcan.errors.find_spec", lambda name: None)
    sentence = r"^out/model\.safetensors: needs safetensors: pip install -e '\.\[safetensors\]'$"
    with pytest.raises(DataError, match=sentence):
        mcan.load("out")
