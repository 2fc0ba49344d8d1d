import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcan.text.vocabulary import Vocabulary

SCRIPT = Path(__file__).parents[2] / "scripts" / "extract_word_vectors.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = Vocabulary(("PAD", "UNK", "is", "it", "red"), ("yes",))
    (tmp_path / "vocabulary.json").write_text(vocabulary.to_json(), encoding="utf-8")
    (tmp_path / "glove.txt").write_text("red 1 2\nblue 3 4\nis 5 6\n", encoding="utf-8")
    return tmp_path


def run(folder: Path, vectors: str, output: str) -> subprocess.CompletedProcess[str]:
    options = ["--vocabulary", "vocabulary.json", "--output", output]
    command = [sys.executable, str(SCRIPT), vectors, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_extracts_and_never_overwrites(folder: Path) -> None:
    done = run(folder, "glove.txt", "subset.npy")
    assert done.returncode == 0, done.stderr
    assert "2 of 3 words (66.7 %) have a vector; without: it" in done.stdout
    assert np.load(folder / "subset.npy").tolist() == [[1, 2], [5, 6]]
    assert (folder / "subset.txt").read_text() == "red\nis\n"

    again = run(folder, "glove.txt", "subset.npy")
    assert again.returncode == 2
    assert again.stderr == "error: subset.npy: exists already and is not overwritten\n"


def test_no_word_found(folder: Path) -> None:
    (folder / "other.txt").write_text("green 1 2\n", encoding="utf-8")
    done = run(folder, "other.txt", "subset.npy")
    assert done.returncode == 2
    assert done.stderr == "error: other.txt: no vector for any word of vocabulary.json\n"
    assert not (folder / "subset.npy").exists()
