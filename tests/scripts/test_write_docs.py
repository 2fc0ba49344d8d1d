"""The generated parts of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import entry_point

write_docs = entry_point("scripts/write_docs")


def test_rows_that_name_a_path_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "one.py").write_text("x\n" * 1200)
    (tmp_path / "code" / "inner" / "two.py").write_text("x\n" * 149)
    (tmp_path / "code" / "notes.md").write_text("x\n" * 1000)
    (tmp_path / "small.py").write_text("x\n")
    monkeypatch.setattr(write_docs, "ROOT", tmp_path)
    text = "Text.\n| `code` | 0 | all |\n| `small.py` | 5,000 | little |\n| other | 3 |\n"
    expected = "Text.\n| `code` | 1,300 | all |\n| `small.py` | 100 | little |\n| other | 3 |\n"
    assert write_docs.with_counts(text) == expected


def test_the_configuration_page_is_up_to_date() -> None:
    page = (write_docs.ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert write_docs.with_tables(page) == page
