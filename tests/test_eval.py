"""eval.py: what it writes, recomputed one question at a time, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, Lab, at_call, contents, die, load, make_lab, program
from test_train import Evil, refused

from mcan.batch import ImageInput
from mcan.config import config_from_dict
from mcan.data.prepared import Prepared
from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store import open_store
from mcan.data.synthetic import make_synthetic
from mcan.engine.trainer import Trainer
from mcan.nn.mcan import ModelSizes, build_model
from mcan.ragged import Ragged
from mcan.text.vocabulary import Vocabulary

STEP = "val_step_00000018"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = make_lab(tmp_path_factory.mktemp("lab"), splits=("train", "val", "test"))
    assert lab.train("run").status == 0
    assert lab.train("softmax", "train.loss=cross_entropy").status == 0
    return lab


def written(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def recompute(lab: Lab, checkpoint: Path, split_name: str) -> list[dict[str, Any]]:
    """Probabilities and accuracy of each question, alone, from what the files hold."""
    content = load(checkpoint)
    config = config_from_dict(content["config"], "test")
    model = build_model(config.model, ModelSizes(**content["sizes"])).eval()
    model.load_state_dict(content["model"])
    answers = json.loads(content["vocabulary"])["answers"]
    prepared = Prepared.open(lab.folder / "prepared")
    split, store = prepared.split(split_name), open_store(lab.folder / "images.h5")
    found = []
    for row in range(len(split)):
        tokens = split.tokens.values[split.tokens.offsets[row] : split.tokens.offsets[row + 1]]
        image = store.image_ids.tolist().index(split.image_ids[split.image_index[row]])
        regions = torch.tensor(store.rows[store.offsets[image] : store.offsets[image + 1]])
        with torch.no_grad():
            question = Ragged.of([torch.tensor(tokens, dtype=torch.int64)])
            logits = model(question, ImageInput(regions=Ragged.of([regions])))[0]
        chance = logits.softmax(0) if config.train.loss == "cross_entropy" else logits.sigmoid()
        best = answers[int(chance.argmax())]
        given = split.human_answers.of(row)
        rounds = [given[:out] + given[out + 1 :] for out in range(len(given))]
        accuracy = sum(min(1, others.count(best) / 3) for others in rounds) / len(rounds)
        found.append(
            {
                "question_id": int(split.question_ids[row]),
                "answer": best,
                "probabilities": dict(zip(answers, chance.tolist(), strict=True)),
                "accuracy": 100 * accuracy,
                "answer_type": split.answer_types.names[split.answer_types.codes[row]],
                "question_type": split.question_types.names[split.question_types.codes[row]],
            }
        )
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("run", ["run", "softmax"])
def test_files_against_a_recomputation(lab, run):
    result = lab.eval(f"runs/{run}", "--top")
    assert result.status == 0, result.err
    found = written(lab.run(run) / "predictions" / STEP)
    checkpoint = lab.run(run) / "checkpoints" / "step_00000018.pt"
    expected = recompute(lab, checkpoint, "val")
    assert len(found["predictions"]) == len(expected) == 11
    for entry, question in zip(found["predictions"], expected, strict=True):
        assert entry.keys() == {"question_id", "answer", "top"}
        assert entry["question_id"] == question["question_id"]
        assert entry["answer"] == question["answer"] == entry["top"][0]["answer"]
        chances = {item["answer"]: item["probability"] for item in entry["top"]}
        assert chances == pytest.approx(question["probabilities"], rel=1e-4)
        assert list(chances.values()) == sorted(chances.values(), reverse=True)
        if run == "softmax":
            assert sum(chances.values()) == pytest.approx(1)
    metrics = found["metrics"]
    assert metrics["n"] == 11
    assert metrics["overall"] == pytest.approx(mean([q["accuracy"] for q in expected]))
    for kind in ("answer_type", "question_type"):
        groups: dict[str, list[float]] = {}
        for question in expected:
            groups.setdefault(question[kind], []).append(question["accuracy"])
        means = {name: mean(values) for name, values in groups.items()}
        assert metrics[f"per_{kind}"] == pytest.approx(means)
    assert metrics["metric"] == "vqa"
    assert metrics["split"] == "val"
    assert metrics["steps"] == [18]
    assert metrics["checkpoints"] == [f"runs/{run}/checkpoints/step_00000018.pt"]
    assert metrics["trained_on_questions"] == 0
    assert metrics["upper_bound"] == 100
    assert "WARNING" not in result.err
    assert f"{metrics['overall']:.2f}" in result.out
    assert "best possible with 5 answers: 100.00 %" in result.out


def test_same_numbers_as_during_training(lab):
    lines = (lab.run("run") / "metrics.jsonl").read_text().splitlines()
    during = [line for line in map(json.loads, lines) if line["kind"] == "evaluation"][-1]
    assert lab.eval("runs/run").status == 0
    after = written(lab.run("run") / "predictions" / STEP)["metrics"]
    for key in ("n", "overall", "per_answer_type", "per_question_type"):
        assert after[key] == during[key]


def test_without_top_and_again(lab):
    """The default folder is rewritten; what training needs is not touched."""
    before = contents(lab.run("run") / "checkpoints")
    for _ in range(2):
        assert lab.eval("runs/run").status == 0
    entries = written(lab.run("run") / "predictions" / STEP)["predictions"]
    assert all(entry.keys() == {"question_id", "answer"} for entry in entries)
    assert contents(lab.run("run") / "checkpoints") == before


def test_other_split_and_workers(lab):
    assert lab.eval("runs/run", "--split", "test", "data.workers=2").status == 0
    found = written(lab.run("run") / "predictions" / "test_step_00000018")
    checkpoint = lab.run("run") / "checkpoints" / "step_00000018.pt"
    expected = recompute(lab, checkpoint, "test")
    assert [e["answer"] for e in found["predictions"]] == [q["answer"] for q in expected]
    assert found["metrics"]["overall"] == pytest.approx(mean([q["accuracy"] for q in expected]))


@pytest.mark.parametrize("which", ["best", "last"])
def test_which_checkpoint(lab, which):
    result = lab.eval("runs/run", "--checkpoint", which, "--output", f"which_{which}")
    assert result.status == 0
    metrics = written(lab.folder / f"which_{which}")["metrics"]
    name = "best" if which == "best" else "step_00000018"
    content = load(lab.run("run") / "checkpoints" / f"{name}.pt")
    assert metrics["steps"] == [content["position"]["step"]]
    assert metrics["checkpoints"] == [f"runs/run/checkpoints/{name}.pt"]


def test_output_is_never_overwritten(lab):
    assert lab.eval("runs/run", "--output", "out/put").status == 0
    assert written(lab.folder / "out" / "put").keys() == {"predictions", "metrics"}
    again = ["runs/run", "--output", "out/put"]
    sentence = r"out/put/predictions.json: exists; choose another --output"
    refused(lab, lab.folder / "out", again, sentence, "eval")
    (lab.folder / "out" / "put" / "predictions.json").unlink()
    sentence = r"out/put/metrics.json: exists; choose another --output"
    refused(lab, lab.folder / "out", again, sentence, "eval")


def test_output_refused_before_the_work(lab):
    assert lab.eval("runs/run", "--output", "early").status == 0
    (lab.folder / "prepared").rename(lab.folder / "away")
    try:
        result = lab.eval("runs/run", "--output", "early")
    finally:
        (lab.folder / "away").rename(lab.folder / "prepared")
    assert "early/predictions.json: exists" in result.errors()[0]


def test_overlap_is_told_and_recorded(lab):
    result = lab.eval("runs/run", "--split", "train")
    assert result.status == 0
    (warning,) = [line for line in result.err.splitlines() if line.startswith("WARNING")]
    assert "step_00000018.pt: trained on 44 of these questions; the accuracy says" in warning
    metrics = written(lab.run("run") / "predictions" / "train_step_00000018")["metrics"]
    assert metrics["trained_on_questions"] == 44


def test_overlap_under_another_name(lab, tmp_path):
    """The same questions as another split of another folder."""
    shutil.copytree(lab.folder / "prepared", tmp_path / "prepared")
    (tmp_path / "prepared" / "train.h5").rename(tmp_path / "prepared" / "secret.h5")
    meta = json.loads((tmp_path / "prepared" / "meta.json").read_text())
    meta["splits"]["secret"] = meta["splits"].pop("train")
    meta["dataset"] = "other"
    (tmp_path / "prepared" / "meta.json").write_text(json.dumps(meta))
    args = ["runs/run", "--split", "secret", f"data.prepared={tmp_path}/prepared"]
    result = lab.eval(*args, "--output", str(tmp_path / "out"))
    assert result.status == 0, result.err
    metrics = written(tmp_path / "out")["metrics"]
    assert metrics["trained_on_questions"] == 44
    assert "WARNING" in result.err


def test_checkpoint_moved_elsewhere(lab, tmp_path):
    """A checkpoint needs nothing but the data, which overrides find."""
    shutil.copy(lab.run("run") / "checkpoints" / "best.pt", tmp_path / "model.pt")
    shutil.copytree(lab.folder / "prepared", tmp_path / "data" / "prepared")
    shutil.copy(lab.folder / "images.h5", tmp_path / "data" / "images.h5")
    where = ["data.prepared=data/prepared", "data.images=[data/images.h5]"]
    script = [sys.executable, str(ROOT / "eval.py"), "model.pt"]
    result = program(*script, *where, cwd=tmp_path)
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "predictions").iterdir()
    expected = recompute(lab, tmp_path / "model.pt", "val")
    found = written(folder)
    assert [e["answer"] for e in found["predictions"]] == [q["answer"] for q in expected]
    assert result.out.splitlines()[-1] == f"written: predictions/{folder.name}"


@pytest.fixture(scope="module")
def unanswered(lab) -> Path:
    """The lab's vocabulary with a split that nobody has answered."""
    folder = lab.folder / "unanswered"
    prepared = Prepared.open(lab.folder / "prepared")
    examples = [Example(1000 + n, n, f"word{n} plus{n}?") for n in range(3)]
    write_prepared(
        folder,
        {"test": examples},
        prepared.vocabulary,
        lambda _: [],
        dataset="synthetic",
        metric="vqa",
        sources={},
    )
    return folder


def test_other_vocabulary(lab, tmp_path):
    """The same questions, prepared with the words in another order: encoded anew, the same."""
    shutil.copytree(lab.folder / "prepared", tmp_path / "prepared")
    prepared, store = Prepared.open(lab.folder / "prepared"), lab.folder / "images.h5"
    split = prepared.split("val")
    vocabulary = Vocabulary(
        (*prepared.vocabulary.tokens[:2], *reversed(prepared.vocabulary.tokens[2:])),
        tuple(reversed(prepared.vocabulary.answers)),
    )
    examples = [
        Example(
            int(split.question_ids[row]),
            int(split.image_ids[split.image_index[row]]),
            split.questions[row],
            split.human_answers.of(row),
        )
        for row in range(len(split))
    ]
    write_prepared(
        tmp_path / "other",
        {"val": examples},
        vocabulary,
        lambda _: [],
        dataset="other",
        metric="vqa",
        sources={},
    )
    assert vocabulary.digest != prepared.vocabulary.digest
    args = ["runs/run", f"data.prepared={tmp_path}/other", "--output", str(tmp_path / "out")]
    result = lab.eval(*args, f"data.images=[{store}]")
    assert result.status == 0, result.err
    assert "has another vocabulary; its questions are encoded anew" in result.err
    expected = recompute(lab, lab.run("run") / "checkpoints" / "step_00000018.pt", "val")
    found = written(tmp_path / "out")
    assert [e["answer"] for e in found["predictions"]] == [q["answer"] for q in expected]
    assert found["metrics"]["overall"] == pytest.approx(mean([q["accuracy"] for q in expected]))


def test_ensemble_of_one_model_twice(lab):
    args = ["runs/run", "runs/run", "--split", "train", "--output", "ensemble", "--top"]
    assert lab.eval("runs/run", "--split", "train", "--output", "alone", "--top").status == 0
    for average in ("probabilities", "logits"):
        shutil.rmtree(lab.folder / "ensemble", ignore_errors=True)
        assert lab.eval(*args, "--average", average).status == 0
        both, alone = written(lab.folder / "ensemble"), written(lab.folder / "alone")
        assert both["predictions"] == alone["predictions"]
        assert both["metrics"]["overall"] == alone["metrics"]["overall"]
        assert both["metrics"]["trained_on_questions"] == 44


def test_split_without_answers(lab, unanswered):
    args = ["runs/run", "--split", "test", f"data.prepared={unanswered}", "--output", "blind"]
    result = lab.eval(*args)
    assert result.status == 0, result.err
    found = written(lab.folder / "blind")
    assert found.keys() == {"predictions"}
    assert [entry["question_id"] for entry in found["predictions"]] == [1000, 1001, 1002]
    assert "test has no human answers, so there is no accuracy" in result.out


def test_training_needs_answers_to_evaluate_on(lab, unanswered):
    shutil.copytree(lab.folder / "prepared", lab.folder / "mixed")
    shutil.copy(unanswered / "test.h5", lab.folder / "mixed" / "test.h5")
    meta = json.loads((lab.folder / "mixed" / "meta.json").read_text())
    meta["splits"]["test"]["questions"] = 3
    (lab.folder / "mixed" / "meta.json").write_text(json.dumps(meta))
    args = [lab.config, "name=mixed", "data.prepared=mixed", "data.evaluate=test"]
    sentence = r"mixed/test.h5: some questions have no human answers, so the split cannot be scored"
    refused(lab, lab.folder / "runs", args, sentence)


def test_no_evaluated_split_in_the_config(lab):
    assert lab.train("blind", "data.evaluate=null").status == 0
    sentence = r"the config has no data.evaluate; name one with --split"
    refused(lab, lab.folder / "runs", ["runs/blind"], sentence, "eval")
    assert lab.eval("runs/blind", "--split", "val").status == 0
    sentence = r"runs/blind: holds no best checkpoint in checkpoints/"
    refused(lab, lab.folder / "runs", ["runs/blind", "--checkpoint", "best"], sentence, "eval")


def test_unfinished_run(lab):
    assert lab.train("unfinished", patch=at_call(Trainer, "_update", 9, die)).status == -9
    assert lab.eval("runs/unfinished").status == 0
    metrics = written(lab.run("unfinished") / "predictions" / "val_step_00000006")["metrics"]
    assert metrics["steps"] == [6]


@pytest.fixture(scope="module")
def broken(lab) -> Path:
    """Checkpoints that are none, by name, and other data."""
    folder = lab.folder / "broken"
    folder.mkdir()
    path = lab.run("run") / "checkpoints" / "step_00000018.pt"
    data, content = path.read_bytes(), load(path)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.pt").write_bytes(data[:-200])
    (folder / "random.pt").write_bytes(bytes(range(256)) * 40)
    (folder / "folder").mkdir()
    (folder / "folder" / "checkpoints").mkdir()
    torch.save({"format": 1, "evil": Evil()}, folder / "evil.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(content | {"format": 2}, folder / "newer.pt")
    torch.save({"format": 1}, folder / "lacks.pt")
    torch.save(content | {"sizes": {**content["sizes"], "answers": 9}}, folder / "sizes.pt")
    torch.save(content | {"config": {"name": "x"}}, folder / "config.pt")
    make_synthetic(folder / "data", questions=10, images=10, vocabulary=13)
    make_synthetic(folder / "pixels", questions=10, images=10, kind="pixels")
    return folder


CASES: dict[str, tuple[list[str], str]] = {
    "data_gone": (["runs/run", "data.prepared=gone"], r"gone: there is no such prepared dataset"),
    "no_target": (["nowhere"], r"nowhere: no such run folder or checkpoint"),
    "no_checkpoints": (["broken/folder"], r"broken/folder: holds no last checkpoint in checkpoin"),
    "empty": (["broken/empty.pt"], r"broken/empty.pt: not a checkpoint, or truncated"),
    "cut": (["broken/cut.pt"], r"broken/cut.pt: not a checkpoint, or truncated"),
    "random": (["broken/random.pt"], r"broken/random.pt: not a checkpoint, or truncated"),
    "code": (["broken/evil.pt"], r"broken/evil.pt: not loaded, because it holds more than tensors"),
    "list": (["broken/list.pt"], r"broken/list.pt: a torch file, but not a checkpoint"),
    "newer": (["broken/newer.pt"], r"broken/newer.pt: checkpoint format 2; this version reads 1"),
    "lacks": (["broken/lacks.pt"], r"broken/lacks.pt: the checkpoint lacks config, vocabulary, "),
    "sizes": (
        ["broken/sizes.pt"],
        r"broken/sizes.pt: does not fit the network that the config describes: classifier.weight "
        r"is \(5, 12\) in the checkpoint and \(9, 12\) in the network",
    ),
    "config": (["broken/config.pt"], r"broken/config.pt: data is missing"),
    "override": (["runs/run", "model.depth=2"], r"is absent in the checkpoint and \(8, 8\) in the"),
    "override_key": (["runs/run", "model.dept=2"], r"command line: model.dept is not a key"),
    "split": (["runs/run", "--split", "tset"], r"no split 'tset'; there is train, val, test"),
    "feature_width": (
        ["runs/run", "data.images=[broken/data/images.h5]"],
        r"step_00000018.pt: takes image features of width 6 .* but those of data.images .* are 16",
    ),
    "kind_of_images": (
        ["runs/run", "data.images=[broken/pixels/images.h5]"],
        r"model.image.input is regions, but data.images \(broken/pixels/images.h5\) holds pixels",
    ),
    "store": (["runs/run", "data.images=[no.h5]"], r"no.h5: there is no such image store"),
    "output_in_a_file": (
        ["runs/run", "--output", "config.yaml/x"],
        r"config.yaml/x: cannot be written \(Not a directory\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(lab, broken, case):
    args, sentence = CASES[case]
    if case == "output_in_a_file":  # known only at the end: the table is not printed either
        result = lab.eval(*args)
        assert result.status == 2
        assert result.out == ""
        assert re.search(sentence, result.errors()[0])
    else:
        refused(lab, lab.folder, args, sentence, "eval")
