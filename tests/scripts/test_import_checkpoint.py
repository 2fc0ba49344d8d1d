"""scripts/import_checkpoint.py on a random official state."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcan.engine.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "nn"))
from official_naive import logits, random_state  # noqa: E402


def run(folder, *args):
    command = [sys.executable, str(ROOT / "scripts/import_checkpoint.py"), *map(str, args)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """state.pkl as the authors write it, recorded.npz, and what defines the vocabulary."""
    state = random_state(tokens=6, answers=3, glimpses=2)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": prefixed, "optimizer": {}, "lr_base": 1e-4}, tmp_path / "state.pkl")
    image, question = torch.randn(2, 4, 6), torch.tensor([[2, 3, 0], [4, 5, 1]])
    image[0, 2:] = 0
    recorded = {"img_feat": image, "ques_ix": question, "logits": logits(state, image, question, 4)}
    np.savez(tmp_path / "recorded.npz", **{name: value.numpy() for name, value in recorded.items()})
    np.savez(tmp_path / "state.npz", **{f"sd/{name}": value for name, value in state.items()})
    questions = [
        {"question_id": 1, "image_id": 1, "question": "What colour?"},
        {"question_id": 2, "image_id": 1, "question": "what is it"},
    ]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    table = {"yes": 1, "no": 0, "red": 2}
    inverse = {str(number): answer for answer, number in table.items()}
    (tmp_path / "answers.json").write_text(json.dumps([table, inverse]))
    return tmp_path


@pytest.mark.parametrize("state", ["state.pkl", "state.npz"])
def test_imports_and_agrees_with_recorded_logits(folder, state):
    done = run(
        folder,
        *(state, "--output", "out.pt", "--heads", 4, "--check", "recorded.npz"),
        *("--questions", "questions.json", "--answers", "answers.json"),
    )
    assert done.returncode == 0, done.stderr
    checkpoint = load_checkpoint(folder / "out.pt")
    vocabulary = json.loads(checkpoint.vocabulary)
    assert vocabulary["answers"] == ["no", "yes", "red"]
    assert vocabulary["tokens"][2:] == ["what", "colour", "is", "it"]
    assert [entry["split"] for entry in checkpoint.trained_on] == ["train", "val", "vg"]
    assert checkpoint.config["model"]["glimpses"] == 2


def test_a_difference_above_the_bound_writes_nothing(folder):
    recorded = dict(np.load(folder / "recorded.npz"))
    recorded["logits"] = recorded["logits"] + 2e-4
    np.savez(folder / "other.npz", **recorded)
    done = run(folder, "state.pkl", "--output", "out.pt", "--heads", 4, "--check", "other.npz")
    assert done.returncode == 1
    assert not (folder / "out.pt").exists()


class _Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.pkl"], "missing.pkl: no such file"),
        (["harm.pkl"], "harm.pkl: not loaded; expected tensors"),
        (["recorded.npz"], "recorded.npz: the state lacks"),
        (["questions.json"], "questions.json: not loaded"),
        (["state.pkl", "--heads", "3"], "heads"),
        (["state.pkl", "--answers", "questions.json"], "questions.json: expected the authors'"),
        (["state.pkl", "--check", "state.npz"], "state.npz: not an .npz with img_feat"),
    ],
)
def test_wrong_input_is_one_sentence(folder, args, message):
    torch.save({"state_dict": _Harm()}, folder / "harm.pkl")
    heads = [] if "--heads" in args else ["--heads", "4"]
    done = run(folder, *args, "--output", "out.pt", *heads)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (folder / "out.pt").exists()
    assert not (folder / "harm").exists()
