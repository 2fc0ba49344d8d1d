"""Results of a table: rows that sum up runs beside published values, and the files that show them.

The files are table.md, .tex, .csv and .json; table.png, a dot per row and column, or lines if the
table has a plot; curves.png, learning curves. Equal results give equal bytes (images: on one
version of matplotlib), and no times are in them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from mcan.config import flatten
from mcan.drawing import drawing, line_style
from mcan.errors import ConfigError, RunError
from mcan.evaluation.comparison import signed
from mcan.files import save_text, write_atomically
from mcan.tables.planning import OVERALL, CommandOptions, PlannedRun, Row, Table
from mcan.tables.running import Outcome, RunMetrics, learning_curve, read_outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION = "per_question_type."
_SCORES = TypeAdapter(dict[str, FiniteFloat])
"""Column -> percent, as an evaluation server gave it."""

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

LEAST_SPAN = 2.0
"""Points that a panel spans at least: a difference of 0.1 stays small."""
SPREAD = "mean ± sample standard deviation over seeds"


@dataclass(frozen=True)
class Cell:
    """One row in one column; percent for accuracies."""

    mean: float | None
    """Over the runs that have a value."""
    std: float | None
    """Sample standard deviation (n - 1) over seeds; None for fewer than two runs."""
    published: float | None
    difference: float | None
    """Mean minus published value, if the two are of one dataset and metric."""
    seeds: Mapping[int, float]
    """Seed -> value of its run; a mean without any is the evaluation server's score."""

    @property
    def decimals(self) -> int:
        """Two, or none for a count that is the same for all seeds."""
        return 2 if self.std or {type(value) for value in self.seeds.values()} != {int} else 0

    @property
    def from_server(self) -> bool:
        return self.mean is not None and not self.seeds


@dataclass(frozen=True)
class RowSummary:
    """A row of the table with the results of its runs."""

    row: Row
    runs: tuple[PlannedRun, ...]
    outcomes: Mapping[int, Outcome]
    """Seed -> outcome, of the finished runs."""
    cells: Mapping[str, Cell]
    """The table's columns, `overall`, and every answer type and question type measured."""
    curves: Mapping[int, Mapping[int, float]]
    """Seed -> epoch -> accuracy in percent during training, of finished runs that have some."""


@dataclass(frozen=True)
class TableSummary:
    """A table with the results of its runs."""

    table: Table
    columns: tuple[str, ...]
    """Columns shown: the table's, or `overall` and the answer types of another dataset."""
    rows: tuple[RowSummary, ...]
    comparable: bool
    """The published values are of the dataset and the metric of all finished runs."""
    options: CommandOptions

    @property
    def has_curves(self) -> bool:
        return any(row.curves for row in self.rows)


def summarise(
    table: Table,
    runs: Sequence[PlannedRun],
    outcomes: Mapping[Path, Outcome],
    options: CommandOptions,
) -> TableSummary:
    """The rows that were planned and those that are only cited, in the table's order.

    `outcomes` are those of finished runs, by `outcome_path`.
    """
    scored = [outcome.metrics for outcome in outcomes.values() if outcome.metrics is not None]
    same_dataset = all(outcome.dataset == table.dataset for outcome in outcomes.values())
    same_metric = all(table.metric in (None, each.metric) for each in scored)
    # Questions without an answer type have the type "", which is not a column.
    types = sorted({name for each in scored for name in each.per_answer_type} - {""})
    columns = table.columns
    if not same_dataset and not {*types} <= {*columns}:
        columns = (OVERALL, *types)
    comparable = same_dataset and same_metric
    rows = []
    for row in table.rows:
        planned = tuple(run for run in runs if run.row.name == row.name)
        if not planned and row.runs:
            continue
        done = {r.seed: outcomes[r.outcome_path] for r in planned if r.outcome_path in outcomes}
        found = {seed: numbers(o.metrics) for seed, o in done.items() if o.metrics is not None}
        questions = {name for each in found.values() for name in each if name.startswith(QUESTION)}
        server, cells = read_scores(planned), {}
        for name in dict.fromkeys([*table.columns, OVERALL, *types, *sorted(questions)]):
            values = {seed: each[name] for seed, each in found.items() if name in each}
            # The metric of a server is unknown here.
            same = comparable and (bool(values) or table.metric is None)
            mean = fmean(values.values()) if values else server.get(name)
            std = stdev(values.values()) if len(values) > 1 else None
            published, difference = row.published.get(name), None
            if same and mean is not None and published is not None:
                difference = mean - published
            cells[name] = Cell(mean, std, published, difference, values)
        curves = {r.seed: learning_curve(r) for r in planned if r.seed in done}
        curves = {seed: curve for seed, curve in curves.items() if curve}
        rows.append(RowSummary(row, planned, done, cells, curves))
    return TableSummary(table, columns, tuple(rows), comparable, options)


def numbers(metrics: RunMetrics) -> dict[str, float]:
    """Every number of metrics.json by its dotted key, those of answer types also by type."""
    flat = {**flatten(metrics.model_dump()), **metrics.per_answer_type}
    return {key: value for key, value in flat.items() if type(value) in (int, float)}


# Scores of an evaluation server are entered by hand and kept in the run's folder, in
# `server_<split>.json`: tables that share a run share them, and a changed config has none.


def read_scores(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """The scores of the first of a row's runs that has a finished submission and some scores."""
    for run in runs:
        if run.submission and (scores := _read(_path(run))) and read_outcome(run) is not None:
            return scores
    return {}


def enter_scores(table: Table, runs: Sequence[PlannedRun], texts: Sequence[str]) -> None:
    """Add `ROW=70.63` (the first column) and `ROW:COLUMN=86.82` to the scores of the rows' runs.

    If one of the `texts` is refused, nothing is written.
    """
    submitted = [run for run in runs if run.submission]
    names = list(dict.fromkeys(run.row.name for run in submitted))
    targets = {f"{name}:{column}": (name, column) for name in names for column in table.columns}
    targets |= {name: (name, table.columns[0]) for name in names}
    kept: dict[Path, dict[str, float]] = {}
    for text in texts:
        target, _, score = text.rpartition("=")
        try:
            name, column = targets[target]
            value = float(score)
            if not 0 <= value <= 100:
                raise ValueError
        except (KeyError, ValueError):
            raise ConfigError(
                f"--fill {text!r}: expected ROW[:COLUMN]=SCORE in percent; the rows of "
                f"{table.path} with a submission: {names or 'none'}, columns: "
                f"{', '.join(table.columns)}"
            ) from None
        run, *others = (run for run in submitted if run.row.name == name)
        if others:
            reason = f"the row {name!r} has several seeds; choose the submitted run with --seeds"
            raise ConfigError(f"--fill {text!r}: {reason}")
        if read_outcome(run) is None:
            raise RunError(
                f"--fill {text!r}: {run.folder} ({run.title}) is not finished; give --set, --seeds "
                "and --runs as for the run that was submitted, or run it first, without --fill"
            )
        kept.setdefault(_path(run), _read(_path(run)))[column] = value
    for path, scores in kept.items():
        save_text(path, _SCORES.dump_json(scores, indent=2).decode() + "\n")


def _path(run: PlannedRun) -> Path:
    return run.folder / f"server_{run.split}.json"


def _read(path: Path) -> dict[str, float]:
    try:
        return _SCORES.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise RunError(f"{path}: expected numbers by column, as --fill writes them") from error


# -------------------------------------------------------------------------------- the files


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
    columns = [["row", *(row.row.name for row in summary.rows)]]
    for name in summary.columns:
        cells = [row.cells[name] for row in summary.rows]
        columns.append([name, *map(_value, cells)])
        if any(cell.published is not None for cell in cells):
            columns.append(["published", *map(_published, summary.rows, cells)])
            if summary.comparable:
                differences = [cell.difference for cell in cells]
                signs = [ABSENT if d is None else signed(d).replace("-", "−") for d in differences]
                columns.append(["Δ", *signs])
    counts = [f"{len(row.outcomes)} of {len(row.runs)}" for row in summary.rows]
    columns.append(["runs", *(ABSENT if count == "0 of 0" else count for count in counts)])
    return [list(line) for line in zip(*columns, strict=True)]


def _published(row: RowSummary, cell: Cell) -> str:
    if cell.published is None:
        return ABSENT
    # As many decimals as the source gives: 64.8 is not 64.80.
    return f"{cell.published:.10g}{'' if row.row.verified else DAGGER}"


def _value(cell: Cell) -> str:
    """`mean ± std`; the mean alone of one run; marked if it is the server's."""
    if cell.mean is None:
        return ABSENT
    spread = "" if cell.std is None else f" ± {cell.std:.{cell.decimals}f}"
    mark = DOUBLE_DAGGER if cell.from_server else ""
    return f"{cell.mean:,.{cell.decimals}f}{spread}{mark}"


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

    Results are rounded as in table.md; table.json has all digits.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    results = ("mean", "std", "difference", "n", "planned")
    writer.writerow(("row", "column", *results, "published", "verified", "origin"))
    for row in summary.rows:
        for name, cell in row.cells.items():
            if name == OVERALL or cell.published is not None or cell.mean is not None:
                values = (cell.mean, cell.std, cell.difference)
                texts = [None if v is None else f"{v:z.{cell.decimals}f}" for v in values]
                counts = (len(cell.seeds), len(row.runs))
                verified = None if cell.published is None else str(row.row.verified).lower()
                origin = "runs" if cell.seeds else "server" if cell.from_server else None
                line = (row.row.name, name, *texts, *counts, cell.published, verified, origin)
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
            commands = {"train": run.training, "evaluate": run.evaluation}
            runs.append(made | {k: shlex.join(["python", *v]) for k, v in commands.items()})
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


def write_figures(folder: Path, summary: TableSummary) -> None:
    """Write table.png, and curves.png if there are learning curves."""
    options: Any = {"format": "png", "metadata": {"Software": None}}
    figures = {"table.png": draw_table} | (
        {"curves.png": draw_curves} if summary.has_curves else {}
    )
    with drawing():
        for name, draw in figures.items():
            write_atomically(folder / name, partial(draw(summary).savefig, **options))


def draw_table(summary: TableSummary) -> Figure:
    """Results per column: a line per series over x, or else dots, one row of the table each."""
    from matplotlib.figure import Figure

    plot = summary.table.plot
    series: dict[str, list[tuple[float, RowSummary]]] = {}
    for number, row in enumerate(summary.rows):
        if plot is None:
            series.setdefault("runs", []).append((number, row))
        elif row.row.x is not None:
            series.setdefault(row.row.series or "runs", []).append((row.row.x, row))
    names = [textwrap.fill(row.row.name, 30, break_on_hyphens=False) for row in summary.rows]
    lines = sum(1 + name.count("\n") for name in names)
    across, height = (4, 1 + 0.3 * lines) if plot is None else (2, 3 + 0.2 * len(series))
    down = math.ceil(len(summary.columns) / across)
    across = math.ceil(len(summary.columns) / down)
    # 880 pixels: what a README shows without scaling.
    figure = Figure(figsize=(8.8, down * height + 1), layout="constrained")
    figure.suptitle(textwrap.fill(summary.table.title, 90), fontweight="bold")
    panels = []
    for number, column in enumerate(summary.columns, 1):
        panels.append(figure.add_subplot(down, across, number, title=column))
    handles: dict[str, Any] = {}
    for number, (name, points) in enumerate(series.items()):
        places, rows = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        style = {**line_style(number), "linestyle": "-" if plot else "none"}
        hollow = {**style, "linestyle": "none", "fillstyle": "none", "markersize": 10}
        cited = f"{name}, published" if plot else "published"
        cited += "" if all(each.row.verified for each in rows) else " (from memory)"
        for panel, column in zip(panels, summary.columns, strict=True):
            cells = [row.cells[column] for row in rows]
            drawn = {name: ([cell.mean for cell in cells], style)}
            published = [cell.published for cell in cells]
            if summary.comparable and any(value is not None for value in published):
                drawn[cited] = (published, hollow)
            spread = [cell.std or 0 for cell in cells]
            for label, (values, look) in drawn.items():
                known = np.array(values, float)  # None becomes NaN, which is not drawn
                x, y = (places, known) if plot else (known, places)
                bars: dict[str, Any] = {
                    "yerr" if plot else "xerr": spread if label == name else None
                }
                handles[label] = panel.errorbar(x, y, capsize=3, **bars, **look)
    for panel in panels:
        if plot is None:
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            first = panel.get_subplotspec().is_first_col()  # type: ignore[union-attr]
            panel.tick_params(labelleft=first)
            panel.set_xlabel("accuracy (%)")
        else:
            panel.set_xticks(sorted({x for points in series.values() for x, _ in points}))
            panel.set(xlabel=plot.x, ylabel="accuracy (%)")
    span = _share_span(panels, "y" if plot else "x")
    _add_legend(figure, handles, f"{SPREAD}; every panel spans {span:.3g} points")
    return figure


def draw_curves(summary: TableSummary) -> Figure:
    """Accuracy over the epochs of training: per row, a line for the mean and a band of spread.

    A row has the epochs after which all its finished runs were evaluated.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 5 + 0.1 * len(summary.rows)), layout="constrained")
    figure.suptitle(textwrap.fill(summary.table.title, 90), fontweight="bold")
    panel, handles = figure.subplots(), {}
    panel.set(xlabel="epoch", ylabel="accuracy (%) on data.evaluate")
    for number, row in enumerate(summary.rows):
        if row.curves:
            epochs = sorted(set.intersection(*map(set, row.curves.values())))
            values = np.array([[curve[epoch] for epoch in epochs] for curve in row.curves.values()])
            mean, style = values.mean(0), line_style(number)
            spread = values.std(0, ddof=1) if len(values) > 1 else 0
            (handles[row.row.name],) = panel.plot(epochs, mean, markersize=4, **style)
            band: Any = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            panel.fill_between(epochs, mean - spread, mean + spread, **band)
    _add_legend(figure, handles, SPREAD)
    return figure


def _add_legend(figure: Figure, handles: Mapping[str, Any], note: str) -> None:
    if handles:
        legend: Any = {"loc": "outside lower center", "title": note}
        legend["ncols"] = max(1, min(3, 100 // (max(map(len, handles)) + 6)))
        figure.legend(handles.values(), handles, **legend)


def _share_span(panels: Sequence[Axes], along: str) -> float:
    """Let all panels span as many points `along` x or y, each around its own values: equal
    differences look equal, and columns at other levels hide nothing. Returns the span.
    """
    extents = [tuple(getattr(panel.dataLim, f"interval{along}")) for panel in panels]
    span: float = max([LEAST_SPAN, *(1.2 * (high - low) for low, high in extents if low <= high)])
    for panel, (low, high) in zip(panels, extents, strict=True):
        if low <= high:
            panel.set(**{f"{along}lim": ((low + high - span) / 2, (low + high + span) / 2)})
        else:
            panel.text(0.5, 0.5, "no results", transform=panel.transAxes, ha="center")
    return span
