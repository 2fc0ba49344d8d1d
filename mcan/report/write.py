"""A table's results as files in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mcan.files import saving, write_atomically
from mcan.report.aggregate import Filled, summarise_rows
from mcan.report.files import csv_text, json_text, markdown
from mcan.report.page import page
from mcan.report.plots import png
from mcan.tables.call import AS_STATED, Call
from mcan.tables.outcome import Outcome
from mcan.tables.plan import PlannedRun
from mcan.tables.spec import Table


def write_results(
    folder: Path,
    table: Table,
    runs: Sequence[PlannedRun],
    outcomes: Mapping[Path, Outcome],
    filled: Filled,
    call: Call = AS_STATED,
) -> None:
    """Write table.md, table.csv, table.json, table.png and index.html into `folder`.

    `outcomes` are those of finished runs, by `outcome_path`; `filled` are the evaluation server's
    figures; `call` is what the command changed. All files are made before the first is written.
    Raises `DataError` where one cannot be written and `RunError` where a run's log is damaged.
    """
    summary = replace(summarise_rows(table, runs, outcomes, filled), call=call)
    figure = png(summary)
    contents = {
        "table.md": markdown(summary).encode(),
        "table.csv": csv_text(summary).encode(),
        "table.json": json_text(summary).encode(),
        "table.png": figure,
        "index.html": page(summary, figure).encode(),
    }
    for name, content in contents.items():
        _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
