"""table.md, table.csv and table.json: equal bytes for equal results, and no times in them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mcan.report.aggregate import Cell, RowSummary, Summary
from mcan.report.commands import evaluation_command, training_command
from mcan.report.wording import Grid, called, footnotes, grids
from mcan.tables.spec import OVERALL

CSV_HEAD = (
    "row",
    "kind",
    "column",
    "mean",
    "std",
    "n",
    "planned",
    "published",
    "verified",
    "difference",
    "origin",
)

_SPECIAL = re.compile(r"[\\`*<|\[]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")


def markdown(summary: Summary) -> str:
    """The table as GitHub's Markdown, aligned so that it is also readable as plain text."""
    parts = [f"# {_escaped(summary.table.title)}"]
    if changed := called(summary):
        parts.append(_escaped(changed))
    for grid in grids(summary):
        parts += [_escaped(grid.caption)] if grid.caption else []
        parts.append("\n".join(_lines(grid)))
    if notes := footnotes(summary):
        parts.append("\n".join(f"- {_escaped(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _lines(grid: Grid) -> Iterator[str]:
    """The lines of a Markdown table: names to the left, figures to the right."""
    texts = [[_escaped(cell) for cell in line] for line in (grid.head, *grid.rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(text.rjust(w) for text, w in others)])

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for cells in (texts[0], rule, *texts[1:]):
        yield f"| {line(cells)} |"


def _escaped(text: str) -> str:
    """One line that Markdown shows as it is."""
    return _SPECIAL.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def csv_text(summary: Summary) -> str:
    """One line per row and column that has a figure, then per question type; `overall` always.

    Our figures have two decimals as in table.md; table.json has all digits.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for row in summary.rows:
        for name, cell in row.cells.items():
            shown = name in summary.columns and cell.published is not None
            if name == OVERALL or shown or cell.mean is not None:
                kind = OVERALL if name == OVERALL else "answer type"
                writer.writerow([row.row.name, kind, name, *_figures(row, cell)])
        for name, cell in row.question_types.items():
            writer.writerow([row.row.name, "question type", name, *_figures(row, cell)])
    return file.getvalue()


def _figures(row: RowSummary, cell: Cell) -> list[object]:
    """Fields after the column's name; None is an empty field."""
    verified = None if cell.published is None else str(row.row.verified).lower()
    return [
        _rounded(cell.mean),
        _rounded(cell.std),
        len(cell.values),
        len(row.runs),
        cell.published,
        verified,
        _rounded(cell.difference),
        _origin(cell),
    ]


def _rounded(figure: float | None) -> str | None:
    # Adding zero turns -0.0 into 0.0.
    return None if figure is None else f"{round(figure, 2) + 0.0:.2f}"


def _origin(cell: Cell) -> str | None:
    if cell.values:
        return "runs"
    return "server" if cell.from_server else None


def json_text(summary: Summary) -> str:
    """Everything: also the call, and each seed's figures, overrides and commands."""
    table, call = summary.table, summary.call
    content = {
        "title": table.title,
        "call": {
            "table": str(table.path),
            "base": None if call.base is None else str(call.base),
            "set": list(call.overrides),
            "seeds": None if call.seeds is None else list(call.seeds),
        },
        "source": table.source,
        "dataset_of_published_figures": table.dataset,
        "datasets_of_runs": list(summary.datasets),
        "columns": list(summary.columns),
        "rows": [_row(row) for row in summary.rows],
        "footnotes": footnotes(summary),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _row(summary: RowSummary) -> dict[str, Any]:
    row = summary.row
    return {
        "name": row.name,
        "series": row.series,
        "x": row.x,
        "overrides": list(row.overrides),
        "verified": row.verified,
        "evaluations": [each._asdict() for each in summary.evaluations],
        "missing_seeds": summary.missing,
        "columns": _cells(summary.cells),
        "question_types": _cells(summary.question_types),
        "runs": [
            {
                "seed": run.seed,
                "run": run.folder.name,
                "finished": run.seed in summary.outcomes,
                "overrides": list(run.overrides),
                "train": training_command(run),
                "evaluate": evaluation_command(run),
            }
            for run in summary.runs
        ],
    }


def _cells(cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {
        name: {
            "mean": cell.mean,
            "std": cell.std,
            "n": len(cell.values),
            "seeds": {str(seed): value for seed, value in cell.values.items()},
            "published": cell.published,
            "difference": cell.difference,
            "origin": _origin(cell),
        }
        for name, cell in cells.items()
    }
