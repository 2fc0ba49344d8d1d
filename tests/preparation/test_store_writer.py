"""Writers refuse bad images by name, copy no row twice, and leave all, a resumable part or nothing;
filling continues after a kill with equal bytes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from filelock import FileLock
from store_toys import make_images

from mcan.data.integrity import image_checksum
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.preparation import store_writer
from mcan.preparation.store_writer import (
    BrokenImage,
    FillOptions,
    ImageRows,
    StoreWriter,
    fill_store,
)

GOOD = np.ones((2, 3), np.float32)
BOXES = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("message", "image"),
    [
        (r"image id 1 was added before", {"image_id": 1}),
        (r"image id is 'x' while an earlier one is 1", {"image_id": "x"}),
        (r"image id is 1.5, expected an integer of 64 bits", {"image_id": 1.5}),
        (r"expected an integer of 64 bits", {"image_id": 2**63}),
        (r"image 2: features are \(0, 3\), expected \(n >= 1, D >= 1\)", {"rows": GOOD[:0]}),
        (r"row shape: \[2\], but \[3\] for earlier images", {"rows": GOOD[:, :2]}),
        (r"image 2: features are \(3,\)", {"rows": GOOD[0]}),
        (r"image 2: features are <U1, expected numbers", {"rows": [["a", "b", "c"]]}),
        (r"image 2: a feature value of nan does not fit", {"rows": GOOD * np.nan}),
        (r"image 2: a feature value of -inf does not fit", {"rows": GOOD * -np.inf}),
        (r"image 2: a feature value of 70000.0 does not fit float16", {"rows": GOOD * 7e4}),
        (r"image 2: boxes: missing, but given for earlier", {"boxes": None}),
        (r"image 2: boxes are \(1, 4\), expected \(2, 4\)", {"boxes": BOXES[:1]}),
        (r"image 2: box .* divide pixel coordinates", {"boxes": BOXES * 100}),
        (r"image 2: box .* x1 <= x2", {"boxes": BOXES[:, ::-1]}),
        (r"image 2: box \[nan", {"boxes": BOXES * np.nan}),
        (r"image 2: size: missing, but given for earlier", {"size": None}),
        (r"grid_shape \(2, 2\) does not make its 2 rows", {"grid_shape": (2, 2)}),
        (r"grid_shape \(-1, -2\)", {"grid_shape": (-1, -2)}),
    ],
)
def test_bad_images_are_named_and_change_nothing(
    tmp_path: Path, message: str, image: dict[str, Any]
) -> None:
    good = ImageRows(1, GOOD, BOXES, size=(4, 5), grid_shape=(1, 2))
    with StoreWriter(tmp_path / "a.h5") as writer:
        writer.add(good)
        with pytest.raises(DataError, match=rf"a\.h5: .*{message}"):
            writer.add(good._replace(**{"image_id": 2, **image}))
        slightly_outside = np.array([[-0.0005, 0, 1.0005, 1], [0, 0, 0, 0]])
        writer.add(good._replace(image_id=3, rows=GOOD * 2, boxes=slightly_outside))
    store = open_store(tmp_path / "a.h5")
    assert store.image_ids.tolist() == [1, 3]
    np.testing.assert_array_equal(store.rows, np.concatenate([GOOD, GOOD * 2]))
    assert store.boxes[2:].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


def test_pixels_of_another_shape_or_type(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2), np.uint8)
    with StoreWriter(tmp_path / "p.h5") as writer:
        writer.add(ImageRows(0, pixels.transpose(2, 0, 1).copy().transpose(1, 2, 0)))
        for message, bad in (
            ("pixels are float32, expected uint8", [pixels.astype(np.float32)]),
            (r"row shape: \[3, 2, 1\], but \[3, 2, 2\]", [pixels[:, :, :1]]),
            ("boxes: given, but missing for earlier images", [pixels, BOXES[:1]]),
        ):
            with pytest.raises(DataError, match=f"image 1: {message}"):
                writer.add(ImageRows(1, *bad))


def write(path: Path, first: Callable[[StoreWriter], object] = lambda _: None) -> None:
    """Write an image, after `first` has been called with the writer."""
    with StoreWriter(path) as writer:
        first(writer)
        writer.add(ImageRows(1, GOOD))


def test_existing_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(DataError, match=r"a\.h5: already exists"):
        write(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_interruption_or_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            write(path, Mock(side_effect=error))
    with pytest.raises(DataError, match="no image was added"), StoreWriter(path):
        pass
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DataError, match=r"a\.h5: could not be written: No space left"):
        write(path, lambda writer: writer._files.update(rows=Mock(write=full)))
    monkeypatch.setattr(store_writer, "_first_byte", lambda: 8192)
    monkeypatch.setattr(store_writer, "_write_around_rows", full)
    with pytest.raises(DataError, match=r"a\.h5: could not be written: No space left"):
        write(path)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_not_copied_on_the_disk_nor_held_in_memory(tmp_path: Path) -> None:
    rows = np.ones((50, 1000), np.float16)
    path = tmp_path / "a.h5"
    tracemalloc.start()
    with StoreWriter(path) as writer:
        for number in range(300):
            writer.add(ImageRows(number, rows))
        (written,) = tmp_path.glob("a.h5.partial/rows")
        inode = written.stat().st_ino
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_ino == inode
    assert path.stat().st_size > 30e6
    assert peak < 5e6


IMAGES = make_images(list(range(12)), dim=4)
PARTS = {f"part{n}": IMAGES[2 * n : 2 * n + 2] for n in range(6)}


def fill(
    output: Path,
    *,
    parts: dict[str, list[Any]] = PARTS,
    stop: Callable[[str], object] = lambda part: None,
    settings: Any = {"source": "a"},  # noqa: B006
    selected: Sequence[str] = (),
    **options: Any,
) -> None:
    """Fill a store with parts of two images; `stop` is called before each part is read."""

    def read(name: str) -> list[Any]:
        stop(name)
        return parts[name]

    fill_store(
        FillOptions(output, **options),
        list(parts),
        read,
        settings=settings,
        provenance={"by": "fill"},
        selected=selected,
    )


@pytest.mark.parametrize(("free", "warned"), [(0, True), (10**12, False)])
def test_a_disk_that_is_too_small(tmp_path, monkeypatch, capsys, free, warned):
    """Said after the first hundredth of the parts: 5 times what the first one took."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Mock(free=free))
    fill(tmp_path / "a.h5")
    said = "a.h5: about 0.0 GiB are still to be written, but 0.0 GiB are free; if the disk" in (
        capsys.readouterr().err
    )
    assert said == warned


def killed(function: Callable[[], object]) -> None:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def interrupt(output: Path, before: str = "part3") -> None:
    def stop(part: str) -> None:
        if part == before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(output, stop=stop)


@pytest.mark.parametrize("at", ["part1", "part5", "header", "rename"])
def test_killed_anywhere_it_continues_with_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    output = tmp_path / "out.h5"
    fill(tmp_path / "whole.h5")
    monkeypatch.setattr(store_writer, "_SAVE_SECONDS", 0)  # after each part

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        around = store_writer._write_around_rows
        calls: list[int] = []

        def header(*arguments: Any) -> int:
            calls.append(1)
            result = around(*arguments)
            if len(calls) == 2:  # The first call finds where rows begin.
                die()
            return result

        if at == "header":
            store_writer._write_around_rows = header  # type: ignore[assignment]
        elif at == "rename":
            Path.rename = die  # type: ignore[method-assign, assignment]
        fill(output, stop=lambda part: die() if part == at else None)

    killed(run)
    assert not output.exists()
    rows = tmp_path / "out.h5.partial" / "rows"
    with rows.open("ab") as file:
        file.write(b"half a row")
    with pytest.raises(DataError, match=r"out\.h5\.partial: contains an interrupted run"):
        fill(output)
    seen: list[str] = []
    fill(output, resume=True, stop=seen.append)
    done = {"part1": 1, "part5": 5}.get(at, 6)
    assert seen == list(PARTS)[done:]
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5", "whole.h5"]


def test_interrupted_within_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "whole.h5")
    with monkeypatch.context() as patch:
        sums = [image_checksum(image.rows, image.boxes) for image in IMAGES[:5]]
        patch.setattr(store_writer, "image_checksum", Mock(side_effect=[*sums, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "out.h5")
    fill(tmp_path / "out.h5", resume=True)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_other_settings_and_a_second_process_are_refused(tmp_path: Path) -> None:
    output, seen = tmp_path / "out.h5", list[str]()
    interrupt(output)
    with pytest.raises(DataError, match=r'begun with dtype = "float16", now it is "float32"'):
        fill(output, resume=True, dtype="float32")
    with pytest.raises(DataError, match=r'begun with source = "a", now it is "b"'):
        fill(output, resume=True, settings={"source": "b"})
    with (
        FileLock(tmp_path / "out.h5.partial" / "lock"),
        pytest.raises(DataError, match="another process is writing there"),
    ):
        fill(output, resume=True)
    fill(output, resume=True, stop=seen.append)
    assert seen == ["part3", "part4", "part5"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("state.json", text) for text in ("", "[", "3", "{}", '{"settings": 3}')),
        *((name, "too short") for name in ("rows", "boxes")),
    ],
)
def test_damaged_folder_of_an_interrupted_run(tmp_path: Path, file: str, content: str) -> None:
    interrupt(tmp_path / "out.h5")
    (tmp_path / "out.h5.partial" / file).write_text(content)
    with pytest.raises(DataError, match=r"out\.h5\.partial: is damaged; delete it"):
        fill(tmp_path / "out.h5", resume=True)


def test_broken_and_missing_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named, listed, nothing published; repaired ones are taken on a resume; or all left out."""
    output, listing = tmp_path / "out.h5", tmp_path / "out.h5.broken.tsv"
    wrong = [IMAGES[2], BrokenImage("3", "cannot\nbe read")]
    broken = {**PARTS, "part1": wrong, "part4": [IMAGES[8], IMAGES[0]]}
    reasons = r"\(3: cannot be read; 0: image id 0 was added before\)"
    with pytest.raises(DataError, match=rf"out\.h5: not written: 2 broken and 0 .* {reasons};"):
        fill(output, parts=broken)
    with pytest.raises(DataError, match=r"2 broken and 1 missing .*; 99: is not in the source"):
        fill(output, parts=broken, resume=True, selected=["99", "5"])
    assert [line.split("\t")[0] for line in listing.read_text().splitlines()] == ["3", "0", "99"]
    assert not output.exists()
    seen: list[str] = []
    options: Any = {"resume": True, "selected": ["99"], "skip_broken": True}
    fill(output, parts={**broken, "part1": PARTS["part1"]}, stop=seen.append, **options)
    assert seen == ["part1", "part4"]
    assert "left out: 1 broken and 1 missing images" in capsys.readouterr().out
    store = open_store(output)
    assert len(store) == 11
    skipped = {"0": "image id 0 was added before", "99": "is not in the source"}
    assert store.provenance["skipped"] == skipped
    output.unlink()
    fill(output)
    assert not listing.exists()
