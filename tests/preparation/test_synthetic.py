"""Made-up datasets have the shape asked for and are the same for the same seed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from mcan.build import preflight
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.preparation.synthetic import SyntheticPaths, make_synthetic


def open_all(paths: SyntheticPaths, split: str = "train") -> VQADataset:
    return VQADataset(
        [Prepared.open(paths.prepared).split(split)],
        [open_store(paths.images)],
        [open_store(paths.grid)] if paths.grid else [],
    )


def test_shapes(tmp_path: Path) -> None:
    """Question lengths follow the weights: 3 words three times as often as 5, never 4."""
    paths = make_synthetic(
        tmp_path, questions=80, images=30, regions=(2, 9), words={3: 3, 5: 1}, boxes=True, grid=True
    )
    dataset = open_all(paths)
    assert (len(dataset), len(open_all(paths, "val"))) == (80, 20)
    batch = dataset[list(range(80))]
    regions = batch.image.rows.lengths
    counts = torch.bincount(batch.question.rows.lengths, minlength=6).tolist()
    assert counts[3] + counts[5] == 80
    assert 45 < counts[3] < 75
    assert 2 <= int(regions.min()) < int(regions.max()) <= 9
    assert batch.image.boxes is not None
    assert batch.image.grid_cells is not None
    counts, warnings = preflight(dataset)
    assert counts.startswith("80 questions on ")
    assert counts.endswith(" 0.0% unknown words")
    assert not warnings


def test_made_up_features_fit_a_prepared_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = make_synthetic(tmp_path, questions=20).prepared
    output = tmp_path / "features.h5"
    script = Path(__file__).parents[2] / "scripts/make_up_features.py"
    main = runpy.run_path(str(script))["main"]
    arguments = [str(prepared), "--output", str(output), "--feature-dim", "5"]
    monkeypatch.setattr("sys.argv", ["make_up_features.py", *arguments])
    assert main() == 0
    splits = [Prepared.open(prepared).split(name) for name in ("train", "val")]
    dataset = VQADataset(splits, [open_store(output)])
    assert dataset.images.row_shape == (5,)
    assert ((dataset.images.lengths >= 10) & (dataset.images.lengths <= 100)).all()
    assert f"{output}: random features of {len(dataset.images.lengths)} images" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("kind", ["regions", "pixels"])
def test_same_seed_same_data(tmp_path: Path, kind: Any) -> None:
    first, again, other = (
        make_synthetic(tmp_path / str(n), questions=20, kind=kind, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    )
    for name in ("prepared/train.h5", "images.h5"):
        content = [(paths.prepared.parent / name).read_bytes() for paths in (first, again, other)]
        assert content[0] == content[1] != content[2]
