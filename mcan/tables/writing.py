"""table.md, .tex, .csv and .json: equal bytes for equal results, and no times in them."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mcan.config import flatten
from mcan.evaluation.comparison import signed
from mcan.files import save_text
from mcan.tables.figures import write_figures
from mcan.tables.spec import OVERALL
from mcan.tables.summary import Cell, RowSummary, TableSummary

ABSENT = "–"
DAGGER, DOUBLE_DAGGER = "†", "‡"

LIMITS = ("data.limit", "train.max_steps")
"""Keys that are set for trials."""
_MARKDOWN_SPECIAL = re.compile(r"[\\`*<|\[]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "−": "$-$", "Δ": r"$\Delta$", "–": "--", "†": r"\textsuperscript{\dag}"},
    **{"‡": r"\textsuperscript{\ddag}", "<": r"\textless{}", ">": r"\textgreater{}"},
    # A row that starts with one of these would be read as an option of the line break before it.
    **{"[": "{[}", "*": "{*}", "|": r"\textbar{}"},
}


def write_results(folder: Path, summary: TableSummary) -> None:
    """Write table.md, .tex, .csv, .json and .png, and curves.png, into `folder`."""
    write_figures(folder, summary)
    save_text(folder / "table.md", markdown(summary))
    save_text(folder / "table.tex", latex(summary))
    save_text(folder / "table.csv", csv_text(summary))
    save_text(folder / "table.json", json_text(summary))


def text_table(summary: TableSummary) -> list[list[str]]:
    """The head and a line per row: its name, and for each column the value, and beside it the
    published value and the difference from it.
    """
    lines = [["row"], *([row.row.name] for row in summary.rows)]
    for name in summary.columns:
        cells = [row.cells[name] for row in summary.rows]
        columns = [[name, *map(_value, cells)]]
        if any(cell.published is not None for cell in cells):
            columns.append(["published", *map(_published, summary.rows, cells)])
            if summary.comparable:
                columns.append(["Δ", *map(_difference, cells)])
        for line, *added in zip(lines, *columns, strict=True):
            line += added
    counts = [f"{len(row.outcomes)} of {len(row.runs)}" for row in summary.rows]
    for line, count in zip(lines, ["runs", *counts], strict=True):
        line.append(ABSENT if count == "0 of 0" else count)
    return lines


def _published(row: RowSummary, cell: Cell) -> str:
    if cell.published is None:
        return ABSENT
    # As many decimals as the source gives: 64.8 is not 64.80.
    return f"{cell.published:.10g}{'' if row.row.verified else DAGGER}"


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return ABSENT
    return signed(cell.difference).replace("-", "−")


def _value(cell: Cell) -> str:
    """`mean ± std`; the mean alone of one run; marked if it is the server's."""
    if cell.mean is None:
        return ABSENT
    spread = "" if cell.std is None else f" ± {cell.std:.2f}"
    return f"{cell.mean:,.2f}{spread}{DOUBLE_DAGGER if cell.from_server else ''}"


def footnotes(summary: TableSummary) -> Iterator[str]:
    """What a reader has to know, as sentences."""
    table, rows = summary.table, summary.rows
    cells = [row.cells[column] for row in rows for column in summary.columns]
    on = "Accuracy in percent on {0.split} of {0.dataset} ({1.n:,} questions), metric {1.metric}"
    rows_of: dict[str, dict[str, None]] = {}
    for row in rows:
        for run in row.runs:
            done = row.outcomes.get(run.seed)
            if done is None or done.metrics is None:
                continue
            stated = flatten(run.config.model_dump())
            limits = [f"Limited by {key}={stated[key]}" for key in LIMITS if stated[key]]
            for text in (on.format(done, done.metrics), *limits):
                rows_of.setdefault(text, {})[row.row.name] = None
    for text, names in rows_of.items():
        yield f"{text}." if len(rows_of) == 1 else f"{text}: {', '.join(names)}."
    if any(cell.std is not None for cell in cells):
        yield "± is the sample standard deviation (n − 1) over seeds; values without it: one run."
    if any(cell.from_server for cell in cells):
        yield f"{DOUBLE_DAGGER} the evaluation server's score for one submission, metric unknown."
    if any(cell.published is not None for cell in cells):
        metric = "" if table.metric is None else f", metric {table.metric}"
        yield f"Source of the published values: {table.source}; {table.dataset}{metric}."
        if not all(row.row.verified for row in rows if row.row.published):
            yield f"{DAGGER} from memory, not checked against the source."
        if not summary.comparable:
            yield "Runs of another dataset or metric: no difference is given."
    bases = {str(run.base) for row in rows for run in row.runs}
    if len(bases) == 1:
        yield f"Config of all rows: {bases.pop()}, with the overrides listed in table.json."
    codes = {code for row in rows for each in row.outcomes.values() for code in each.code}
    if len(codes) > 1:
        yield f"The runs were made by {len(codes)} versions of the code (`code` in table.json)."


def markdown(summary: TableSummary) -> str:
    """The table as GitHub's Markdown, aligned so that it is also readable as plain text."""
    lines = [[_markdown_text(cell) for cell in line] for line in text_table(summary)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    texts = []
    for first, *others in (lines[0], rule, *lines[1:]):
        padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        texts.append(f"| {' | '.join([first.ljust(widths[0]), *padded])} |")
    changed = summary.options.description
    parts = [
        f"# {_markdown_text(summary.table.title)}",
        *([f"Run with {_markdown_text(changed)}"] if changed else []),
        "\n".join(texts),
        "\n".join(f"- {_markdown_text(note)}" for note in footnotes(summary)),
        "![results](table.png)",
        *(["![learning curves](curves.png)"] if summary.has_curves else []),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_text(text: str) -> str:
    """One line that Markdown shows as it is."""
    return _MARKDOWN_SPECIAL.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def latex(summary: TableSummary) -> str:
    r"""The table for `\input` into a paper; it needs no package."""
    lines = text_table(summary)
    head, *rows = (" & ".join(map(_latex_text, line)) + r" \\" for line in lines)
    title = " ".join(f"{summary.table.title} {summary.options.description}".split())
    texts = [
        f"% {title}",
        rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
        *(r"\hline", head, r"\hline", *rows, r"\hline"),
        r"\end{tabular}\par",
        *(rf"{{\footnotesize {_latex_text(note)}\par}}" for note in footnotes(summary)),
    ]
    return "\n".join(texts) + "\n"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def csv_text(summary: TableSummary) -> str:
    """One line per row and column that has a value; `overall` always.

    Results have two decimals as in table.md; table.json has all digits.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    counted = ("row", "column", "mean", "std", "difference", "n", "planned")
    writer.writerow((*counted, "published", "verified", "origin"))
    for row in summary.rows:
        for name, cell in row.cells.items():
            if name == OVERALL or cell.published is not None or cell.mean is not None:
                results = (cell.mean, cell.std, cell.difference)
                numbers = [None if r is None else f"{round(r, 2) + 0.0:.2f}" for r in results]
                counts = (len(cell.seeds), len(row.runs))
                verified = None if cell.published is None else str(row.row.verified).lower()
                origin = "runs" if cell.seeds else "server" if cell.from_server else None
                line = (row.row.name, name, *numbers, *counts, cell.published, verified, origin)
                writer.writerow(line)
    return file.getvalue()


def json_text(summary: TableSummary) -> str:
    """Everything: also the command's options, and the folder, values and commands of each run."""
    table, rows = summary.table, []
    for row in summary.rows:
        runs = []
        for run in row.runs:
            outcome = row.outcomes.get(run.seed)
            made = {"seed": run.seed, "folder": run.folder, "finished": outcome is not None}
            if outcome is not None:
                metric = outcome.metrics and outcome.metrics.metric
                made |= {"dataset": outcome.dataset, "metric": metric, "code": outcome.code}
                made["curve"] = row.curves.get(run.seed)
            made["train"] = shlex.join(["python", *run.training])
            made["evaluate"] = shlex.join(["python", *run.evaluation])
            runs.append(made)
        cells = {name: asdict(cell) for name, cell in row.cells.items()}
        rows.append({**row.row.model_dump(mode="json"), "columns": cells, "runs": runs})
    content = {
        "title": table.title,
        "options": {"table": table.path, **asdict(summary.options)},
        "published": {"source": table.source, "dataset": table.dataset, "metric": table.metric},
        "columns": summary.columns,
        "rows": rows,
        "footnotes": list(footnotes(summary)),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
