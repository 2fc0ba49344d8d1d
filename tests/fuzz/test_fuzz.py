"""The fuzz finds each kind of mistake in readers that make it, and covers every reader."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from runs import ROOT

sys.path += [str(ROOT / "tests" / part) for part in ("tables", "preparation", "datasets")]

pytest.importorskip("pyarrow")
pytest.importorskip("safetensors")
import readers
import run

from mcan.errors import DataError


class Wrong(NamedTuple):
    """A reader of `x.json`."""

    run: Any
    sealed: str = ""


def fail(text: str) -> None:
    raise DataError(text)


VERDICTS = {
    "traceback": Wrong(lambda: {}["key"]),
    "hangs": Wrong(lambda: time.sleep(60)),
    "dies of signal 9": Wrong(lambda: run.os.kill(run.os.getpid(), 9)),
    "no error message": Wrong(lambda: 1),
    "the error names no file": Wrong(lambda: fail("it is damaged")),
    "the error is not one line of text": Wrong(
        lambda: print("error: x.json: 1\n2", file=sys.stderr) or 2
    ),
    "accepted although a checksum covers it": Wrong(lambda: print("other values"), "values"),
    "accepted": Wrong(lambda: print("the same values"), "values"),
    "refused": Wrong(lambda: fail("x.json: it is damaged\nor \x1b[31m changed")),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_mistakes_are_found(verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SECONDS", 1.0)
    (tmp_path / "case").mkdir()
    found = run.judge(VERDICTS[verdict], tmp_path / "case", {"x.json"}, "the same values\n")
    assert found.verdict == verdict, found


def test_too_much_memory_is_found(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    for size, verdict in ((run.BYTES * 2, "traceback"), (run.BYTES // 2, "accepted")):
        reader = Wrong(lambda size=size: bytearray(size) and None)
        assert run.judge(reader, tmp_path / "case", {"x.json"}, "").verdict == verdict


READING = re.compile(
    r"\b(json\.loads?|parse_json|validate_json|read_bytes|read_text|open_packed|Unpickler|h5py\.File"
    r'|(np|torch|yaml)\.load|memmap|ZipFile|Image\.open|ParquetFile|safe_open|load_file)\(|open\("r'
)
OF_THE_PROJECT = {
    "mcan/explain/page.py",
    "mcan/limits.py",
    "scripts/demo.py",
    "scripts/write_docs.py",
}
"""They read their own files, or those of the operating system."""
READ_BY = {
    "data/easy_vqa/prepare.py": "raw files of easy_vqa",
    "mcan/benchmarking.py": "benchmark record",
    "mcan/config/yaml_files.py": "config",
    "mcan/data/integrity.py": "prepared folder",
    "mcan/data/records.py": "records, Parquet",
    "mcan/data/store.py": "store, opened",
    "mcan/engine/checkpoint.py": "checkpoint",
    "mcan/engine/exported.py": "exported folder",
    "mcan/engine/run_folder.py": "run, resumed",
    "mcan/evaluation/results.py": "results of a model card",
    "mcan/files.py": "records, .zip",
    "mcan/preparation/extraction.py": "store, opened",
    "mcan/preparation/extractors.py": "weights of an extractor",
    "mcan/preparation/feature_files.py": "features, HDF5",
    "mcan/preparation/images.py": "images in a folder",
    "mcan/preparation/recipe.py": "prepared folder",
    "mcan/preparation/store_writer.py": "features, interrupted",
    "mcan/tables/running.py": "table and outcomes",
    "mcan/tables/writing.py": "table and outcomes",
    "mcan/text/vocabulary.py": "exported vocabulary",
    "mcan/text/word_vectors.py": "word vectors, .zip",
    "scripts/analyse_attention.py": "regions of interest",
    "scripts/compare.py": "runs compared",
    "scripts/import_checkpoint.py": "authors' vocabulary",
    "scripts/reproduce.py": "table and outcomes",
    "scripts/runs.py": "runs, listed",
}
"""The reader of the fuzz that reaches each file which reads."""


def test_every_file_that_reads_is_reached() -> None:
    sources = [
        path for folder in ("mcan", "scripts", "data") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {str(p.relative_to(ROOT)) for p in sources if READING.search(p.read_text())}
    assert found - OF_THE_PROJECT == READ_BY.keys()
    assert set(READ_BY.values()) <= readers.read_table().keys()
