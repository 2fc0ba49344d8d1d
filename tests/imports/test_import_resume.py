"""A killed import continues and ends with the same bytes; strangers' leftovers are left alone."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import foreign
import pytest

from mcan.data import spool
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.importing.convert import import_features
from mcan.importing.folders import NpzFolder
from mcan.importing.formats import open_source
from mcan.importing.source import Options

IMAGES = foreign.make_images(10)


def convert(path: Path, output: Path, **settings: Any) -> Any:
    return import_features([("npz", open_source(path, "npz", Options()))], output, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return foreign.write_npz(tmp_path / "npz", IMAGES)


def kill_after(folder: Path, output: Path, count: int, workers: int) -> None:
    """Import in a process of its own that is killed when it has stored `count` images."""

    def run() -> None:
        spool._SYNC_BYTES = 1  # every step is on the disk at once
        commit = spool.Spool.commit
        left = [count]

        def counting(self: Any, step: Any) -> None:
            commit(self, step)
            left[0] -= 1
            if not left[0]:
                # A row of the next image is there, but no line of the journal tells of it.
                next(iter(self._streams.values()))._file.write(b"half a row")
                next(iter(self._streams.values()))._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        spool.Spool.commit = counting  # type: ignore[method-assign]
        convert(folder, output, workers=workers)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("count", "workers"), [(1, 0), (7, 2), (10, 0)])
def test_killed_import_continues(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, workers: int
) -> None:
    output = tmp_path / "out.h5"
    convert(folder, tmp_path / "whole.h5")
    kill_after(folder, output, count, workers)
    assert not output.exists()
    with pytest.raises(DataError, match=r"out\.h5\.partial: holds a run that was cut short"):
        convert(folder, output)
    read: list[str] = []
    load = NpzFolder._load
    monkeypatch.setattr(
        NpzFolder, "_load", lambda self, *args: (read.append(args[0].name), load(self, *args))[1]
    )
    filled = convert(folder, output, resume=True)
    assert (filled.images, filled.earlier) == (10, count)
    assert len(read) == 10 - count + 1  # the first tells the layout
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["npz", "out.h5", "whole.h5"]


def interrupt(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after five images, as Ctrl-C does."""
    with monkeypatch.context() as patch:
        load = NpzFolder._load

        def until(self: Any, file: Path, image_id: Any) -> Any:
            if image_id == IMAGES[5].number:
                raise KeyboardInterrupt
            return load(self, file, image_id)

        patch.setattr(NpzFolder, "_load", until)
        with pytest.raises(KeyboardInterrupt):
            convert(folder, output)


def test_interrupted_import_continues(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder, tmp_path / "out.h5", monkeypatch)
    assert convert(folder, tmp_path / "out.h5", resume=True).earlier == 5
    assert open_store(tmp_path / "out.h5").image_ids.tolist() == [i.number for i in IMAGES]


def test_other_settings_are_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.h5"
    interrupt(folder, output, monkeypatch)
    with pytest.raises(DataError, match=r'begun with dtype = "float16", now it is "float32"'):
        convert(folder, output, resume=True, dtype="float32")
    with pytest.raises(DataError, match="begun with wanted = null"):
        convert(folder, output, resume=True, wanted=frozenset(["3"]))
    other = foreign.write_npz(tmp_path / "other", IMAGES)
    with pytest.raises(DataError, match="begun with sources = "):
        convert(other, output, resume=True)
    assert convert(folder, output, resume=True).earlier == 5


def test_journal_ahead_of_the_rows(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure: steps without rows are done again."""
    output = tmp_path / "out.h5"
    convert(folder, tmp_path / "whole.h5")
    interrupt(folder, output, monkeypatch)
    raw = tmp_path / "out.h5.partial" / "boxes.raw"
    os.truncate(raw, raw.stat().st_size - 1)
    assert convert(folder, output, resume=True).earlier == 4
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("tail", [b'[["0:x', b"\xff\xfe", b"[[1, 2"])
def test_half_a_line_of_the_journal_is_dropped(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    output = tmp_path / "out.h5"
    interrupt(folder, output, monkeypatch)
    journal = tmp_path / "out.h5.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + tail)
    assert convert(folder, output, resume=True).earlier == 5


@pytest.mark.parametrize("line", [0, 2])
@pytest.mark.parametrize("text", ["[", "3", '{"a": 1, "b": 2}', '[1, [["x"]]]'])
def test_damaged_journal(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, line: int, text: str
) -> None:
    output = tmp_path / "out.h5"
    interrupt(folder, output, monkeypatch)
    journal = tmp_path / "out.h5.partial" / "journal.jsonl"
    lines = journal.read_text().split("\n")
    lines[line] = text
    journal.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"is damaged; delete the folder|was begun with"):
        convert(folder, output, resume=True)


def test_two_at_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.h5"
    interrupt(folder, output, monkeypatch)
    context = multiprocessing.get_context("fork")
    held, free = context.Event(), context.Event()

    def hold() -> None:
        with (tmp_path / "out.h5.partial" / "journal.jsonl").open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            held.set()
            free.wait(30)

    process = context.Process(target=hold)
    process.start()
    held.wait(30)
    with pytest.raises(DataError, match="another process is writing there"):
        convert(folder, output, resume=True)
    free.set()
    process.join()
    assert convert(folder, output, resume=True).earlier == 5


def test_repaired_images_are_read_again(tmp_path: Path, folder: Path) -> None:
    output, bad = tmp_path / "out.h5", IMAGES[4]
    path = folder / f"{bad.coco_name}.jpg.npz"
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match=f"1 image cannot be stored .{bad.number}: "):
        convert(folder, output)
    foreign.write_one_npz(path, bad)
    filled = convert(folder, output, resume=True)
    assert (filled.images, filled.earlier, filled.broken) == (10, 9, 0)
    assert not (tmp_path / "out.h5.broken.tsv").exists()
    assert "skipped" not in open_store(output).provenance


def test_repaired_line_of_a_block(tmp_path: Path) -> None:
    """The other images of the block are in the spool already; a twin is still refused."""
    lines = [foreign.bottom_up_line(image) for image in IMAGES[:4]]
    path, output = tmp_path / "a.tsv", tmp_path / "out.h5"

    def run(content: list[str], **settings: Any) -> Any:
        path.write_text("\n".join(content))
        return import_features([("", open_source(path, None, Options()))], output, **settings)

    with pytest.raises(DataError, match="2 images cannot be stored"):
        run([lines[0], lines[1][:-1] + "?", lines[2], lines[2]])
    with pytest.raises(DataError, match=r"1 image cannot be stored \(17: image id 17 was added"):
        run([lines[0], lines[1], lines[2], lines[2]], resume=True)
    filled = run([*lines[:3], " " * len(lines[2])], resume=True)
    assert (filled.images, filled.earlier) == (3, 3)
    assert json.dumps(sorted(open_store(output).image_ids.tolist())) == "[3, 10, 17]"


def test_a_worker_that_dies(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Any, file: Path, image_id: Any) -> Any:
        if image_id != IMAGES[0].number:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, file, image_id)

    load = NpzFolder._load
    with monkeypatch.context() as patch:
        patch.setattr(NpzFolder, "_load", die)
        with pytest.raises(DataError, match="a worker process died"):
            convert(folder, tmp_path / "out.h5", workers=1)
    assert convert(folder, tmp_path / "out.h5", resume=True).images == 10
