"""scripts/import_checkpoint.py on the recorded state of the authors' code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT, Lab

from mcan.engine.checkpoint import load_checkpoint

RECORDED = ROOT / "tests" / "fixtures" / "mcan_forward.npz"
WORDS = [f"word{number}" for number in range(48)]
ANSWERS = [f"answer {number}" for number in range(40)]


def run(folder, *args):
    """Exit status and standard error of the script in `folder`."""
    result = Lab(folder).execute("scripts/import_checkpoint", [str(each) for each in args])
    return result.status, result.err


class _Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.fixture
def folder(tmp_path):
    """state.pkl as the authors write it, what defines the vocabulary, and files that do not fit."""
    recorded = dict(np.load(RECORDED))
    state = {f"module.{n[3:]}": torch.from_numpy(v) for n, v in recorded.items() if n[:3] == "sd/"}
    torch.save({"state_dict": state, "optimizer": {}, "lr_base": 1e-4}, tmp_path / "state.pkl")
    torch.save({"state_dict": state | {"extra": torch.ones(1)}}, tmp_path / "extra.pkl")
    torch.save({"state_dict": _Harm()}, tmp_path / "harm.pkl")
    np.savez(tmp_path / "differs.npz", **recorded | {"logits": recorded["logits"] + 2e-4})
    logits = recorded["logits"]
    for name, part in (("fewer", logits[:, :3]), ("column", logits[:, :1]), ("row", logits[:1])):
        np.savez(tmp_path / f"{name}.npz", **recorded | {"logits": part})
    questions = [
        {"question_id": 1, "image_id": 1, "question": " ".join(WORDS[:20])},
        {"question_id": 2, "image_id": 1, "question": f"{' '.join(WORDS[10:])}?"},
    ]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    table = {answer: number for number, answer in enumerate(ANSWERS)}
    inverse = {str(number): answer for answer, number in table.items()}
    (tmp_path / "answers.json").write_text(json.dumps([dict(reversed(table.items())), inverse]))
    return tmp_path


@pytest.mark.parametrize("state", ["state.pkl", RECORDED])
def test_imports_and_agrees_with_recorded_logits(folder, state):
    status, error = run(
        folder,
        *(state, "--output", "new/out.pt", "--heads", 4, "--check", RECORDED),
        *("--questions", "questions.json", "--answers", "answers.json"),
    )
    assert status == 0, error
    checkpoint = load_checkpoint(folder / "new/out.pt")
    assert json.loads(checkpoint.vocabulary)["answers"] == ANSWERS
    assert json.loads(checkpoint.vocabulary)["tokens"][2:] == WORDS
    assert [entry["split"] for entry in checkpoint.trained_on] == ["train", "val", "vg"]
    assert checkpoint.config["model"]["fusion_size"] == 96


def test_a_difference_above_the_bound_writes_nothing(folder):
    status, _ = run(
        folder, "state.pkl", "--output", "out.pt", "--heads", 4, "--check", "differs.npz"
    )
    assert status == 1
    assert not (folder / "out.pt").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.pkl"], "No such file or directory: 'missing.pkl'"),
        (["harm.pkl"], "harm.pkl: not loaded; expected tensors"),
        (["questions.json"], "questions.json: not loaded"),
        (["extra.pkl"], "extra.pkl: does not fit"),
        (["state.pkl", "--heads", "3"], "heads"),
        (["state.pkl", "--answers", "questions.json"], "questions.json: expected the authors'"),
        (["state.pkl", "--check", "questions.json"], "questions.json: expected an .npz"),
        (["state.pkl", "--check", "fewer.npz"], "fewer.npz: expected an .npz"),
        (["state.pkl", "--check", "column.npz"], "column.npz: expected an .npz"),
        (["state.pkl", "--check", "row.npz"], "row.npz: expected an .npz"),
    ],
)
def test_wrong_input_is_one_line(folder, args, message):
    heads = [] if "--heads" in args else ["--heads", "4"]
    status, error = run(folder, *args, "--output", "out.pt", *heads)
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (folder / "out.pt").exists()
    assert not (folder / "harm").exists()
