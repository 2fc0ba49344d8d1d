"""index.html: the table, its figure, every run's learning curves and commands, on one page.

The page loads nothing from elsewhere and has no script. All text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mcan.report.aggregate import RowSummary, Summary
from mcan.report.commands import evaluation_command, training_command
from mcan.report.curves import chart, key, linear_axis, logarithmic_axis
from mcan.report.page_style import STYLE
from mcan.report.run_files import Curves, read_curves, read_environment
from mcan.report.wording import ABSENT, Grid, called, footnotes, grids

RowCurves = dict[int, Curves]
"""Seed -> curves of its run."""

_VERSIONS = {
    "mcan": "mcan",
    "revision": "revision",
    "python": "Python",
    "torch": "torch",
    "platform": "platform",
    "gpus": "GPUs",
    "cpus": "CPU cores",
    "threads": "threads",
    "processes": "processes",
}
"""Keys of environment.json -> headings."""


def page(summary: Summary, figure: bytes) -> str:
    """The results page; `figure` is table.png. Raises `RunError` where a run's log is damaged."""
    title, changed = escape(summary.table.title), called(summary)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{f'<p>{escape(changed)}</p>' if changed else ''}\n"
        f"{_results(summary)}{_figure(summary, figure)}{_runs(summary)}{_versions(summary)}"
        "</main>\n</body>\n</html>\n"
    )


def _results(summary: Summary) -> str:
    parts = []
    for grid in grids(summary):
        parts += [f"<p>{escape(grid.caption)}</p>\n"] if grid.caption else []
        parts.append(_table(grid))
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in footnotes(summary))
    return "".join(parts) + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")


def _table(grid: Grid, figures: bool = True) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in grid.head)
    body = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in line[1:])
        + "</tr>\n"
        for line in grid.rows
    )
    kind = ' class="figures"' if figures else ""
    return (
        f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _figure(summary: Summary, figure: bytes) -> str:
    columns = ", ".join(summary.columns)
    told = f"Plot of the figures of the table above, one panel each for {columns}"
    source = f"data:image/png;base64,{base64.b64encode(figure).decode()}"
    return f'<figure class="plot"><img alt="{escape(told)}" src="{source}"></figure>\n'


def _runs(summary: Summary) -> str:
    """A section of learning curves and commands; all charts have the same axes."""
    rows = [row for row in summary.rows if row.runs]
    curves = [{run.seed: read_curves(run.folder) for run in row.runs} for row in rows]
    every = [each for of_row in curves for each in of_row.values()]
    losses = [value for each in every for _, value in each.loss]
    scores = [value for each in every for _, value in each.accuracy]
    steps = [step for each in every for step, _ in (*each.loss, *each.accuracy)]
    across = linear_axis(steps, low=0.0)
    loss, accuracy = logarithmic_axis(losses), linear_axis(scores)

    def section(row: RowSummary, of_row: RowCurves) -> str:
        name = row.row.name
        of_loss = {seed: each.loss for seed, each in of_row.items()}
        of_accuracy = {seed: each.accuracy for seed, each in of_row.items()}
        return (
            f"<section>\n<h3>{escape(name)}</h3>\n{_legend(row)}"
            '<div class="charts">\n<figure><figcaption>training loss</figcaption>'
            f"{chart(of_loss, across, loss, 'training loss', name)}</figure>\n"
            f"<figure><figcaption>accuracy on {escape(_held_out(row))} in %</figcaption>"
            f"{chart(of_accuracy, across, accuracy, 'accuracy', name)}</figure>\n</div>\n"
            f"{_commands(row)}</section>\n"
        )

    intro = (
        "<p>Training loss per question (logarithmic) and accuracy while training. All charts have "
        "the same axes.</p>\n"
    )
    sections = "".join(section(row, of_row) for row, of_row in zip(rows, curves, strict=True))
    return f"<h2>Runs</h2>\n{intro}{sections}" if rows else ""


def _held_out(row: RowSummary) -> str:
    """The splits evaluated while training."""
    return ", ".join(dict.fromkeys(run.config.data.evaluate or "no split" for run in row.runs))


def _legend(row: RowSummary) -> str:
    done = {run.seed: run.seed in row.outcomes for run in row.runs}
    items = (
        f"<li>{key(number)} seed {seed}{'' if finished else ' (not finished)'}</li>"
        for number, (seed, finished) in enumerate(done.items())
    )
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _commands(row: RowSummary) -> str:
    commands = (
        command(run) for run in row.runs for command in (training_command, evaluation_command)
    )
    lines = "\n".join(f"<code>{escape(each)}</code>" for each in commands)
    return f"<details><summary>Commands</summary>\n<pre>{lines}</pre></details>\n"


def _versions(summary: Summary) -> str:
    """What the runs were made with, each combination once."""
    runs_of: dict[tuple[str, ...], list[Path]] = {}
    for folder in dict.fromkeys(run.folder for row in summary.rows for run in row.runs):
        if environment := read_environment(folder):
            values = tuple(_value(environment.get(name)) for name in _VERSIONS)
            runs_of.setdefault(values, []).append(folder)
    if not runs_of:
        return ""
    rows = [[_counted(folders), *values] for values, folders in runs_of.items()]
    grid = Grid("", ["made with", *_VERSIONS.values()], rows)
    return f"<h2>Versions and hardware</h2>\n{_table(grid, figures=False)}"


def _counted(folders: Sequence[Path]) -> str:
    return f"{len(folders)} run{'s' if len(folders) > 1 else ''}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return _joined(map(str, value)) or "none"
    return ABSENT if value is None else str(value)


def _joined(names: Iterable[str]) -> str:
    """Equal names once, with their number."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())
