"""The command: what it prints, its exit status, and the comparison with the source."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import foreign
import h5py
import numpy as np
import pytest

from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.importing.formats import open_source
from mcan.importing.source import Options
from mcan.importing.verify import verify_store

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_features.py"
main = runpy.run_path(str(SCRIPT))["main"]

IMAGES = foreign.make_images(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return foreign.write_npz(tmp_path / "npz", IMAGES)


def test_import_then_verify(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.h5"
    arguments = [str(folder), "--output", str(output), "--workers", "0", "--verify"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "npz, 20 files" in shown
    assert "20 images" in shown
    assert "images/s" in shown
    assert "verified: 20 images equal the source; largest difference" in shown
    before = output.stat().st_mtime_ns
    assert main(arguments) == 0
    assert "verified: 20 images" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == before


def test_status_of_a_failed_import(tmp_path: Path, folder: Path) -> None:
    (folder / "x_1.npz").touch()
    arguments = [str(folder), "--output", str(tmp_path / "out.h5"), "--workers", "0"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "x_1.npz" in done.stderr
    assert not (tmp_path / "out.h5").exists()


def test_skip_broken_and_wanted(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x_1.npz").touch()
    (tmp_path / "ids.txt").write_text("1\n3\n10\n11\n")
    output = tmp_path / "out.h5"
    arguments = [str(folder), "--output", str(output), "--workers", "0", "--skip-broken"]
    assert main([*arguments, "--images", str(tmp_path / "ids.txt"), "--float32"]) == 0
    assert "left out: 1 broken and 1 missing images" in capsys.readouterr().out
    assert open_store(output).image_ids.tolist() == [3, 10]
    assert open_store(output).rows.dtype == np.float32
    listing = (tmp_path / "out.h5.broken.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == ["1", "11"]


def test_existing_output(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out.h5").write_text("precious")
    with pytest.raises(DataError, match=r"out\.h5: already exists"):
        main([str(folder), "--output", str(tmp_path / "out.h5"), "--workers", "0"])
    assert (tmp_path / "out.h5").read_text() == "precious"


def edit(path: Path, name: str, change: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][4] += np.asarray(change, file[name].dtype)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features", 0.01, r"differs from the source by up to 0\.01"),
        ("features", np.nan, "differs from the source"),
        ("boxes", -0.01, "has boxes that differ from the source by up to"),
        ("sizes", 1, "has size .* in the store and .* in the source"),
    ],
)
def test_verify_finds_what_differs(
    tmp_path: Path, folder: Path, name: str, change: float, message: str
) -> None:
    output = tmp_path / "out.h5"
    main([str(folder), "--output", str(output), "--workers", "0"])
    sources = [open_source(folder, None, Options())]
    assert verify_store(output, sources, 5).images == 5
    edit(output, name, change)
    with pytest.raises(DataError, match=rf"out\.h5: image \d+ {message}"):
        verify_store(output, sources, 1000)


def test_verify_finds_what_is_missing_or_broken(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "out.h5"
    main([str(folder), "--output", str(output), "--workers", "0"])
    new = folder / "x_1.npz"
    foreign.write_one_npz(new, IMAGES[0])
    with pytest.raises(DataError, match="image 1 of the source is not in the store"):
        verify_store(output, [open_source(folder, None, Options())], 1000)
    new.write_bytes(b"junk")
    with pytest.raises(DataError, match="image 1 is now broken in the source"):
        verify_store(output, [open_source(folder, None, Options())], 1000)


def test_verify_leaves_out_what_was_skipped(tmp_path: Path, folder: Path) -> None:
    (folder / "x_1.npz").touch()
    output = tmp_path / "out.h5"
    arguments = [str(folder), "--output", str(output), "--workers", "0", "--skip-broken"]
    assert main([*arguments, "--verify", "1000"]) == 0
