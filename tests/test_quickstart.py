"""The steps of `make quickstart` on a tiny wheel of easy-VQA's layout."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, entry_point, load, metrics_of, program

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}


def make_wheel(path: Path, counts: dict[str, int]) -> str:
    """Squares of three colours, each with three questions; returns the SHA-256."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as wheel:
        for split, count in counts.items():
            questions: list[list[Any]] = []
            for number in range(count):
                colour = str(random.choice(list(COLOURS)))
                pixels = np.full((64, 64, 3), 230, np.uint8)
                left, top = random.integers(0, 40, 2).tolist()
                pixels[top : top + 24, left : left + 24] = COLOURS[colour]
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "png")
                wheel.writestr(f"easy_vqa/data/{split}/images/{number}.png", buffer.getvalue())
                questions += [
                    ["what color is the rectangle?", colour, number],
                    ["is there a red shape?", "yes" if colour == "red" else "no", number],
                    ["what shape is in the image?", "rectangle", number],
                ]
            wheel.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(questions))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    digest = make_wheel(tmp_path / "w.whl", {"train": 150, "test": 40})
    prepared = tmp_path / "prepared"
    raw = ["--raw", str(tmp_path / "w.whl"), "--output", str(prepared)]
    assert entry_point("data/easy_vqa/prepare").main(raw, sha256=digest) == 0

    changes = [
        f"data.prepared={prepared}",
        f"data.images=[{prepared}/images.h5]",
        f"runs={tmp_path}/runs",
        "train.epochs=12",
        "train.batch_size=16",
        "optimizer.lr=1e-3",
    ]
    config = str(ROOT / "configs" / "easy_vqa" / "quickstart.yaml")
    train = [sys.executable, str(ROOT / "train.py"), config, *changes, "--resume"]
    result = program(*train, cwd=ROOT)
    assert result.status == 0, result.err
    run = tmp_path / "runs" / "easy_vqa_quickstart"
    again = program(*train, cwd=ROOT)
    assert again.status == 0
    assert "nothing to resume" in again.err

    result = program(sys.executable, str(ROOT / "eval.py"), str(run), cwd=ROOT)
    assert result.status == 0, result.err
    assert "metric exact" in result.out
    assert "overall" in result.out
    (folder,) = (run / "predictions").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 120
    assert metrics["metric"] == "exact"
    assert metrics["per_answer_type"].keys() == {"color", "shape", "yes/no"}
    # The image is needed: 100 / 3 % of the colours and 2 / 3 of the yes/no would be luck.
    assert metrics["overall"] > 90
    evaluations = [line for line in metrics_of(run) if line["kind"] == "evaluation"]
    assert evaluations[-1]["overall"] == metrics["overall"]
    assert load(run / "checkpoints" / "best.pt")["best"]["score"] >= metrics["overall"]
