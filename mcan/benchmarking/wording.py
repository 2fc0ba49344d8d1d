"""Sentences, tables and numbers of the reports."""

from __future__ import annotations

from collections.abc import Sequence

from mcan.benchmarking.summary import Record

SPREAD = "Medians; in brackets the least and the most of the repetitions."
BASELINE = (
    "The baseline computes the same network as the authors' code does, padded and in float32; the "
    "arms take turns, each in a process of its own. Speed-up: the median over turns."
)


def machine(record: Record) -> str:
    """What it ran on."""
    found, threads = record["machine"], record["threads"]
    return (
        f"{found['processor']}, {found['cores']} cores "
        f"({', '.join(found['instructions']) or 'instructions unknown'}), "
        f"{found['memory'] / 2**30:.0f} GiB; GPU: {', '.join(found['gpus']) or 'none'}. "
        f"torch {found['torch']}, numpy {found['numpy']}, Python {found['python']}, "
        f"{found['platform']}; {threads} thread{'s' if threads > 1 else ''} per process. "
        f"{found['time']}, revision {found['revision']}."
    )


def work(record: Record) -> str:
    """What was computed."""
    data, model = record["workload"], record["config"]["model"]
    fewest, most = data["regions"]
    return (
        f"MCAN of width {model['hidden_size']} and depth {model['depth']} ({model['cascade']}, "
        f"{model['mca_layer']}); {data['questions']:,} made-up questions as long as real "
        f"ones, {fewest} to {most} regions x {data['features']}, {data['answers']:,} answers, "
        f"{data['words']:,} words."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}" if seconds >= 0.1 else f"{seconds * 1000:.2f}"


def count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def seconds(value: float) -> str:
    return f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def share(value: float) -> str:
    return f"{value:.0%}"


def megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def giga(value: float) -> str:
    return f"{value / 1e9:,.0f}" if value >= 1e11 else f"{value / 1e9:.1f}"
