"""eval.py: what it writes, recomputed one question at a time, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs import ROOT, Lab, at_call, contents, load, make_lab, metrics_of, program, save_sealed
from test_train import refused
from vqa_toys import examples_of

from mcan.batch import Image, Question
from mcan.build import build_model, unknown_stores
from mcan.config import config_from_dict
from mcan.data.integrity import meta_text
from mcan.data.prepared import Prepared
from mcan.data.store import ImageStore, open_store
from mcan.engine import checkpoint as checkpoints
from mcan.files import sha256_of
from mcan.nn.mcan import ModelSizes
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.preparation.synthetic import make_synthetic
from mcan.rows import Packed
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
            words = Question(
                torch.tensor(tokens, dtype=torch.int64), Packed(torch.tensor([len(tokens)]))
            )
            image = Image(Packed(torch.tensor([len(regions)])), regions.float())
            logits = model(words, image)[0]
        chance = logits.softmax(0) if config.train.loss == "cross_entropy" else logits.sigmoid()
        best = answers[int(chance.argmax())]
        given = split.human_answers[row]
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


def assert_recomputed(lab: Lab, folder: Path, split: str) -> None:
    """The files of `runs/run` in `folder` agree with `recompute`."""
    found = written(folder)
    expected = recompute(lab, lab.run("run") / "checkpoints" / "step_00000018.pt", split)
    assert [e["answer"] for e in found["predictions"]] == [q["answer"] for q in expected]
    assert found["metrics"]["overall"] == pytest.approx(mean([q["accuracy"] for q in expected]))


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
    assert "trained on" not in result.err
    assert f"{metrics['overall']:.2f}" in result.out
    assert "best possible with 5 answers: 100.00 %" in result.out


def test_again_without_top(lab):
    """The default folder is rewritten, with the numbers of training; no checkpoint changes."""
    during = [line for line in metrics_of(lab.run("run")) if line["kind"] == "evaluation"][-1]
    before = contents(lab.run("run") / "checkpoints")
    for _ in range(2):
        assert lab.eval("runs/run").status == 0
    after = written(lab.run("run") / "predictions" / STEP)
    for key in ("n", "overall", "per_answer_type", "per_question_type"):
        assert after["metrics"][key] == during[key]
    assert all(entry.keys() == {"question_id", "answer"} for entry in after["predictions"])
    assert contents(lab.run("run") / "checkpoints") == before


def test_other_split_workers_and_best_checkpoint(lab):
    assert lab.eval("runs/run", "--split", "test", "data.workers=2").status == 0
    assert_recomputed(lab, lab.run("run") / "predictions" / "test_step_00000018", "test")
    assert lab.eval("runs/run", "--checkpoint", "best", "--output", "best").status == 0
    metrics = written(lab.folder / "best")["metrics"]
    assert metrics["steps"] == [
        load(lab.run("run") / "checkpoints" / "best.pt")["position"]["step"]
    ]
    assert metrics["checkpoints"] == ["runs/run/checkpoints/best.pt"]


def test_output_that_cannot_be_written(lab):
    """Nothing is overwritten, nor is the work done first: the missing data is not noticed."""
    assert lab.eval("runs/run", "--output", "out/put").status == 0
    again = ["runs/run", "--output", "out/put", "data.prepared=gone"]
    for name in ("predictions", "metrics"):
        sentence = rf"out/put/{name}.json: exists; choose another --output"
        refused(lab, lab.folder / "out", again, sentence, "eval")
        (lab.folder / "out" / "put" / f"{name}.json").unlink()
    # Known only at the end: the table is not printed either.
    result = lab.eval("runs/run", "--output", "config.yaml/x")
    assert (result.status, result.out) == (2, "")
    (line,) = result.errors()
    assert "config.yaml/x/predictions.json: could not be written: Not a directory" in line


def test_submission(lab):
    """The answers to the questions of a file, each once and in its order."""
    ids = Prepared.open(lab.folder / "prepared").split("val").question_ids.tolist()
    questions = [{"question_id": i, "image_id": 0, "question": "x"} for i in (ids[3], ids[1])]
    (lab.folder / "questions.json").write_text(json.dumps({"questions": questions}))
    args = ["runs/run", "--submission", "sub.json"]
    asked = [*args, "--questions", "questions.json"]
    assert lab.eval(*asked).status == 0
    entries = written(lab.run("run") / "predictions" / STEP)["predictions"]
    assert json.loads((lab.folder / "sub.json").read_text()) == [entries[3], entries[1]]
    refused(lab, lab.folder / "runs", asked, r"sub.json: exists; choose another --sub", "eval")
    (lab.folder / "sub.json").unlink()
    refused(lab, lab.folder, [*asked, "--split", "test"], r"not predicted; choose its sp", "eval")
    assert lab.eval(*args).status == 0
    assert json.loads((lab.folder / "sub.json").read_text()) == entries


def rewrite_meta(folder: Path) -> None:
    """Give `meta.json` the checksums of the files that are there."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksum"]
    files = sorted(file for file in folder.iterdir() if file.name != "meta.json")
    meta["files"] = {file.name: sha256_of(file) for file in files}
    (folder / "meta.json").write_text(meta_text(meta))


def test_trained_questions_are_counted_wherever_they_are(lab, tmp_path):
    """In the run's split, in another folder, and cut into a new split with some of val."""
    prepared = Prepared.open(lab.folder / "prepared")
    train, val = (examples_of(prepared.split(name)) for name in ("train", "val"))
    cut = [e._replace(question_id=n) for n, e in enumerate([*val, *train[::-1][:15]])]
    splits = {"secret": train, "cut": cut}
    write_prepared(tmp_path / "other", splits, prepared.vocabulary, **OTHER)
    for split, where, limit, count, total in (
        ("train", "prepared", "null", 44, 44),
        ("secret", f"{tmp_path}/other", "null", 44, 44),
        ("cut", f"{tmp_path}/other", "null", 15, 26),
        ("cut", f"{tmp_path}/other", "12", 1, 12),
    ):
        output = tmp_path / f"{split}_{limit}"
        args = ["--split", split, f"data.prepared={where}", f"data.limit={limit}"]
        result = lab.eval("runs/run", *args, "--output", str(output))
        assert result.status == 0, result.err
        (warning,) = [line for line in result.err.splitlines() if line.startswith("warning")]
        assert f"step_00000018.pt: trained on {count} of these {total} questions (same" in warning
        assert written(output)["metrics"]["trained_on_questions"] == count


def test_other_data_than_the_runs_has_a_folder_of_its_own(lab, tmp_path):
    """The same data elsewhere is the run's; metrics.json says what was evaluated."""
    shutil.copytree(lab.run("run"), lab.run("kept"))
    shutil.rmtree(lab.run("kept") / "predictions", ignore_errors=True)
    shutil.copytree(lab.folder / "prepared", tmp_path / "moved")
    make_synthetic(tmp_path / "other", images=10, feature_dim=6, seed=1, splits=("val",))
    folder, found = lab.run("kept") / "predictions", {}
    for overrides in (
        [],
        [f"data.prepared={tmp_path}/moved"],
        ["data.limit=5"],
        [f"data.images=[{tmp_path}/other/images.h5]"],
        [f"data.prepared={tmp_path}/other/prepared"],
    ):
        before = contents(folder)
        result = lab.eval("runs/kept", *overrides)
        assert result.status == 0, result.err
        name = Path(result.out.splitlines()[-1].removeprefix("written: ")).name
        own = not overrides or "moved" in overrides[0]
        assert re.fullmatch(STEP if own else rf"data_[0-9a-f]{{8}}_{STEP}", name)
        if not own:
            assert contents(folder).items() > before.items()
        found[name] = written(folder / name)["metrics"]
    own, limited, images, other = found.values()
    assert own["prepared"] == f"{tmp_path}/moved"
    assert own["digest"] == Prepared.open(lab.folder / "prepared").digest("val")
    assert own["stores"] == {"images.h5": open_store(lab.folder / "images.h5").digest}
    assert (limited["n"], limited["limit"], limited["digest"]) == (5, 5, own["digest"])
    assert images["stores"] != own["stores"]
    assert (other["dataset"], other["digest"] != own["digest"]) == ("synthetic", True)


def test_checkpoint_moved_elsewhere(lab, tmp_path):
    """A checkpoint needs nothing but the data, which overrides find."""
    last = lab.run("run") / "checkpoints" / "step_00000018.pt"
    shutil.copy(last, tmp_path / "model.pt")
    shutil.copytree(lab.folder / "prepared", tmp_path / "data" / "prepared")
    shutil.copy(lab.folder / "images.h5", tmp_path / "data" / "images.h5")
    where = ["data.prepared=data/prepared", "data.images=[data/images.h5]"]
    script = [sys.executable, str(ROOT / "eval.py"), "model.pt"]
    result = program(*script, *where, cwd=tmp_path)
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "predictions").iterdir()
    assert_recomputed(lab, folder, "val")
    assert result.out.splitlines()[-1] == f"written: predictions/{folder.name}"


@pytest.mark.parametrize(
    ("digest", "extractor", "warned"),
    [
        ("1", {"extractor": "b"}, False),  # the same features elsewhere
        ("2", {"extractor": "a"}, False),  # another part of what the same extractor made
        ("2", {"extractor": "b"}, True),
        ("2", {}, True),
    ],
)
def test_features_of_another_extractor(digest, extractor, warned):
    trained = {"stores": {"a.h5": "1"}, "made_by": {"a.h5": "a"}}
    store = ImageStore(Path("b.h5"), digest, extractor, *(np.zeros(0) for _ in range(4)))
    checkpoint = SimpleNamespace(trained_on=[trained], source="x.pt")
    assert bool(unknown_stores(checkpoint, [store])) == warned


def test_features_of_another_extractor_are_reported(lab, tmp_path):
    make_synthetic(tmp_path / "other", images=10, feature_dim=6, seed=1)
    images = f"data.images=[{tmp_path}/other/images.h5]"
    result = lab.eval("runs/run", images, "--output", str(tmp_path / "out"))
    assert result.status == 0, result.err
    assert re.search(r"warning: .*other/images.h5 \(made by made_up: true\) is not", result.err)
    assert "step_00000018.pt was trained on: images.h5 (made by" in result.err


def test_full_predictions_and_the_worst(lab):
    """Against a recomputation of each question."""
    assert lab.eval("runs/run", "--output", "plain").status == 0
    result = lab.eval("runs/run", "--full", "--worst", "2", "--output", "full")
    assert result.status == 0
    expected = recompute(lab, lab.run("run") / "checkpoints" / "step_00000018.pt", "val")
    split = Prepared.open(lab.folder / "prepared").split("val")
    entries = json.loads((lab.folder / "full" / "predictions.json").read_text())
    for row, (entry, found) in enumerate(zip(entries, expected, strict=True)):
        assert entry == {
            "question_id": found["question_id"],
            "answer": found["answer"],
            "question": split.questions[row],
            "image_id": int(split.image_ids[split.image_index[row]]),
            "human_answers": split.human_answers[row],
            "score": pytest.approx(found["accuracy"] / 100),
        }
    wrong = [found for found in expected if not found["accuracy"]]
    wrong.sort(key=lambda found: -found["probabilities"][found["answer"]])
    assert f"2 of {len(wrong)} mistakes, the most probable first" in result.out
    shown = re.findall(r"^(\d+)  .* \(image \d+\)\n    (.*) \((.*)%\) \|", result.out, re.MULTILINE)
    assert [(int(i), answer) for i, answer, _ in shown] == [
        (found["question_id"], found["answer"]) for found in wrong[:2]
    ]
    chance = 100 * wrong[0]["probabilities"][wrong[0]["answer"]]
    assert float(shown[0][2]) == pytest.approx(chance, abs=0.06)
    plain, full = written(lab.folder / "plain"), written(lab.folder / "full")
    assert plain["metrics"] == full["metrics"]


def test_a_checkpoint_that_training_replaces_meanwhile_is_looked_up_again(lab, tmp_path):
    shutil.copytree(lab.run("run"), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000018.pt"
    replace = at_call(
        checkpoints, "load_checkpoint", 1, lambda: newest.rename(newest.with_stem("step_00000019"))
    )
    output = tmp_path / "out"
    result = lab.eval(str(tmp_path / "run"), "--output", str(output), patch=replace)
    assert result.status == 0, result.err
    assert "step_00000019.pt" in (output / "metrics.json").read_text()
    newest = newest.with_stem("step_00000019")
    newest.rename(tmp_path / "moved.pt")
    gone = at_call(checkpoints, "load_checkpoint", 1, (tmp_path / "moved.pt").unlink)
    (line,) = lab.eval(str(tmp_path / "moved.pt"), patch=gone).errors()
    assert line == f"error: {tmp_path}/moved.pt: no such checkpoint"


OTHER: dict[str, Any] = {"dataset": "other", "metric": "vqa", "sources": {}}


@pytest.fixture(scope="module")
def unanswered(lab) -> Path:
    """The lab's vocabulary with a split that nobody has answered."""
    prepared = Prepared.open(lab.folder / "prepared")
    examples = [Example(1000 + n, n, f"word{n} plus{n}?") for n in range(3)]
    write_prepared(lab.folder / "unanswered", {"test": examples}, prepared.vocabulary, **OTHER)
    return lab.folder / "unanswered"


def test_other_vocabulary(lab, tmp_path):
    """The same questions, prepared with the words in another order, give the same answers."""
    prepared = Prepared.open(lab.folder / "prepared")
    split, first = prepared.split("val"), prepared.vocabulary
    tokens = (*first.tokens[:2], *reversed(first.tokens[2:]))
    vocabulary = Vocabulary(tokens, tuple(reversed(first.answers)))
    images = split.image_ids[split.image_index].tolist()
    examples = [
        Example(question_id, images[row], split.questions[row], split.human_answers[row])
        for row, question_id in enumerate(split.question_ids.tolist())
    ]
    write_prepared(tmp_path / "other", {"val": examples}, vocabulary, **OTHER)
    assert vocabulary.digest != first.digest
    args = ["runs/run", f"data.prepared={tmp_path}/other", "--output", str(tmp_path / "out")]
    result = lab.eval(*args)
    assert result.status == 0, result.err
    assert "has another vocabulary; its questions are re-encoded" in result.err
    assert_recomputed(lab, tmp_path / "out", "val")


def test_ensemble_of_one_model_twice(lab):
    args = ["runs/run", "runs/run", "--split", "train", "--output", "ensemble", "--top"]
    assert lab.eval("runs/run", "--split", "train", "--output", "alone", "--top").status == 0
    assert lab.eval(*args).status == 0
    both, alone = written(lab.folder / "ensemble"), written(lab.folder / "alone")
    assert both["predictions"] == alone["predictions"]
    assert both["metrics"]["overall"] == alone["metrics"]["overall"]
    assert both["metrics"]["trained_on_questions"] == 44


def test_split_without_answers(lab, unanswered):
    args = ["runs/run", "--split", "test", f"data.prepared={unanswered}", "--output", "blind"]
    args += ["--worst", "2"]
    result = lab.eval(*args)
    assert result.status == 0, result.err
    found = written(lab.folder / "blind")
    assert found.keys() == {"predictions"}
    assert [entry["question_id"] for entry in found["predictions"]] == [1000, 1001, 1002]
    assert "test has no human answers, so there is no accuracy" in result.out


def test_training_needs_answers_to_evaluate_on(lab, unanswered):
    shutil.copytree(lab.folder / "prepared", lab.folder / "mixed")
    shutil.copy(unanswered / "test.h5", lab.folder / "mixed" / "test.h5")
    rewrite_meta(lab.folder / "mixed")
    args = [lab.config, "name=mixed", "data.prepared=mixed", "data.evaluate=test"]
    sentence = r"mixed/test.h5: some questions have no human answers, so the split cannot be scored"
    refused(lab, lab.folder / "runs", args, sentence)


def test_no_evaluated_split_in_the_config(lab):
    assert lab.train("blind", "data.evaluate=null").status == 0
    sentence = r"the config has no data.evaluate; use --split"
    refused(lab, lab.folder / "runs", ["runs/blind"], sentence, "eval")
    assert lab.eval("runs/blind", "--split", "val").status == 0


@pytest.fixture(scope="module")
def broken(lab) -> Path:
    """Files that are not the checkpoints that their names promise, and other data."""
    folder = lab.folder / "broken"
    (folder / "folder" / "checkpoints").mkdir(parents=True)
    path = lab.run("run") / "checkpoints" / "step_00000018.pt"
    content = load(path)
    (folder / "text.pt").write_text("hello")
    save_sealed(content | {"sizes": {**content["sizes"], "answers": 9}}, folder / "sizes.pt")
    save_sealed(content | {"config": {"name": "x"}}, folder / "config.pt")
    make_synthetic(folder / "data", questions=10, images=10, vocabulary=13)
    return folder


CASES = [
    # (arguments, message)
    ("nowhere", r"nowhere: neither a checkpoint nor a run folder with a last ch"),
    ("broken/folder", r"broken/folder: neither a checkpoint nor a run folder"),
    ("broken/text.pt", r"broken/text.pt: not a checkpoint of train.py, or damaged"),
    ("broken/sizes.pt", r"config: of another shape: classifier.bias \(5,\) instead of \(9,\)"),
    ("broken/config.pt", r"broken/config.pt: data is missing"),
    ("runs/run model.depth=2", r"does not fit the config: missing: cascade.image.1.FFN"),
    ("runs/run model.dept=2", r"command line: model.dept is not a key"),
    ("runs/run --split tset", r"no split 'tset'; there is train, val, test"),
    ("runs/run data.images=[broken/data/images.h5]", r"takes features of width 6 .* of width 16"),
    ("runs/run --questions q.json", r"--questions says what --submission holds; give both"),
    ("train.device=cpu", r"name at least one run folder or checkpoint"),
    ("runs/run runs/softmax", r"an ensemble belongs to no run; name a folder with --output"),
    ("runs/run runs/softmax --output x", r"softmax.* has train.loss = .cross_entropy., runs/run"),
]


@pytest.mark.parametrize(("args", "sentence"), CASES)
def test_refused(lab, broken, args, sentence):
    refused(lab, lab.folder, args.split(), sentence, "eval")
