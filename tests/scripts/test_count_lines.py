"""The README's lines per package."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import entry_point

count_lines = entry_point("scripts/count_lines")


def test_rows_that_name_a_path_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "one.py").write_text("x\n" * 1200)
    (tmp_path / "code" / "inner" / "two.py").write_text("x\n" * 149)
    (tmp_path / "code" / "notes.md").write_text("x\n" * 1000)
    (tmp_path / "small.py").write_text("x\n")
    monkeypatch.setattr(count_lines, "ROOT", tmp_path)
    text = "Text.\n| `code` | 0 | all |\n| `small.py` | 5,000 | little |\n| other | 3 |\n"
    expected = "Text.\n| `code` | 1,300 | all |\n| `small.py` | 100 | little |\n| other | 3 |\n"
    assert count_lines.updated(text) == expected


def test_the_readme_names_files_that_exist() -> None:
    rows = count_lines.ROW.findall((count_lines.ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) > 10
    assert all((count_lines.ROOT / path).exists() for path, _ in rows)
