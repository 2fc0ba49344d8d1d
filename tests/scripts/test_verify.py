"""One command checks stores, prepared folders and checkpoints."""

from __future__ import annotations

import runpy
from pathlib import Path

import h5py
import pytest

from mcan.errors import DataError, RunError
from mcan.preparation.synthetic import make_synthetic

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "verify.py"))["main"]


def test_intact_and_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_synthetic(tmp_path, questions=8, images=40)
    assert main([str(made.images), str(made.prepared)]) == 0
    shown = capsys.readouterr().out
    assert "images.h5: intact (image store, 40 images, digest " in shown
    assert "prepared: intact (prepared folder, splits train, val)" in shown
    with h5py.File(made.images, "r+") as file:
        file["features"][int(file["offsets"][3])] += 1
    with pytest.raises(DataError, match=r"images\.h5: the rows of 1 image are damaged \(3\)"):
        main([str(made.images)])
    with (made.prepared / "val.h5").open("ab") as split:
        split.write(b"more")
    with pytest.raises(DataError, match=r"val\.h5"):
        main([str(made.prepared)])
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        main([str(tmp_path / "nowhere")])
    (tmp_path / "step.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"step\.pt"):
        main([str(tmp_path / "step.pt")])
