"""The sections of a report, one per benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

import torch

from mcan.benchmarking.summary import (
    Record,
    Spread,
    achieved,
    peak,
    phase_shares,
    product_rate,
    rates,
    ratios,
    step_seconds,
)
from mcan.benchmarking.wording import (
    BASELINE,
    SPREAD,
    count,
    giga,
    megabytes,
    milliseconds,
    seconds,
    share,
    table,
    times,
    work,
)
from mcan.prediction import default_batch_size

PLOT = "sweep.png"
PHASES = ("data", "forward", "backward", "optimiser", "other")


def _train(record: Record, folder: str) -> list[str]:
    return [
        f"{work(record)} Batch {record['config']['train']['batch_size']}. {SPREAD} {BASELINE}",
        "",
        *_compared(record, "ms/step", lambda arm: step_seconds(arm).show(milliseconds)),
        "",
        _products(record),
        "",
        *_phases(record["arms"]),
        "",
        "Forward includes the loss and clearing gradients, other is what the loop adds.",
    ]


def _evaluate(record: Record, folder: str) -> list[str]:
    arms = record["arms"].values()
    on_device = any(peak(arm, "peak_device_memory") is not None for arm in arms)
    chosen = default_batch_size(torch.device("cuda" if on_device else "cpu"))
    batch = record["config"]["evaluation"]["batch_size"] or chosen
    return [
        f"{work(record)} Batch {batch}, that of the baseline 32. {SPREAD} {BASELINE}",
        "",
        *_compared(record, "s per pass", lambda arm: _pass_seconds(arm).show(seconds)),
        "",
        _products(record),
    ]


def _load(record: Record, folder: str) -> list[str]:
    return [
        f"{work(record)} Ready batches of {record['config']['train']['batch_size']} in one process "
        f"from a warm page cache. {SPREAD} The baseline reads one .npz file and tokenises one "
        "question per sample, as the authors' code does.",
        "",
        *_compared(record, "s per pass", lambda arm: _pass_seconds(arm).show(seconds)),
    ]


def _compared(record: Record, unit: str, time: Callable[[Record], str]) -> list[str]:
    """Time, speed and memory of each arm against the baseline's, and its share of the limit."""
    arms = record["arms"]
    baseline, limited = arms["baseline"], "products" in record
    head = ["arm", unit, "samples/s", "speed-up", "peak, MB", "of baseline's"]
    on_device = peak(baseline, "peak_device_memory") is not None
    head += ["GPU peak, MB"] if on_device else []
    head += ["GFLOP/s on valid rows", "of matrix products"] if limited else []
    rows = []
    for name, arm in arms.items():
        row = [
            name,
            time(arm),
            count(Spread.of(rates(arm)).median),
            ratios(arm, baseline).show(times),
            megabytes(peak(arm)),
            share((peak(arm) or 0) / (peak(baseline) or 1)),
        ]
        row += [megabytes(peak(arm, "peak_device_memory"))] if on_device else []
        if limited:
            rate = achieved(arm).median
            limit = product_rate(record["products"], arm["precision"])
            row += [giga(rate), share(rate / limit)]
        rows.append(row)
    return table(head, rows)


def _products(record: Record) -> str:
    limits = " and ".join(
        f"{giga(product_rate(record['products'], precision))} GFLOP/s in {precision}"
        for precision in ("float32", "bf16")
    )
    return f"Matrix products of this machine reach {limits} (the best of the same run)."


def _phases(arms: Mapping[str, Record]) -> list[str]:
    """The share of each phase, and the first steps' time."""
    steps = next(iter(arms.values()))["warm_up"]["steps"]
    rows = []
    for name, arm in arms.items():
        shares = phase_shares(arm)
        parts = [share(shares.get(phase, 0.0)) for phase in PHASES]
        rows.append([name, *parts, seconds(arm["warm_up"]["seconds"])])
    return [
        f"Where the time goes, and how long the first {steps} steps took (with compiling, if any):",
        "",
        *table(["arm", *PHASES, f"first {steps} steps, s"], rows),
    ]


def _pass_seconds(arm: Record) -> Spread:
    return Spread.of(result["seconds"] for result in arm["repetitions"])


def _startup(record: Record, folder: str) -> list[str]:
    return [
        f"From `python train.py` to the end of the first step of a small network. {SPREAD}",
        "",
        *_starts([record]),
    ]


def _starts(points: Sequence[Record]) -> list[str]:
    rows = [
        [
            f"{point['questions']:,}",
            f"{point['images']:,}",
            Spread.of(start["seconds"] for start in point["starts"]).show(seconds),
            megabytes(max(start["peak_memory"] for start in point["starts"])),
        ]
        for point in points
    ]
    return table(["questions", "images", "s", "peak, MB"], rows)


def _scaling(record: Record, folder: str) -> list[str]:
    arms, rows = record["arms"], []
    for name, arm in arms.items():
        alone = next(
            other
            for other in arms.values()
            if other["processes"] == 1 and other["precision"] == arm["precision"]
        )
        rows.append(
            [
                name,
                step_seconds(arm).show(milliseconds),
                count(Spread.of(rates(arm)).median),
                _efficiency(arm, alone).show(share),
                megabytes(peak(arm)),
            ]
        )
    batch = record["config"]["train"]["batch_size"]
    return [
        f"{work(record)} A batch of {batch} is shared by all processes. {SPREAD} Efficiency: the "
        "speed per process, one alone being 100 %.",
        "",
        *table(["arm", "ms/step", "samples/s", "efficiency", "peak per process, MB"], rows),
        "",
        *_phases(arms),
        "",
        "Of several processes it is the first one's time; backward includes waiting for the others "
        "and adding up the gradients.",
    ]


def _efficiency(arm: Record, alone: Record) -> Spread:
    speed_up, processes = ratios(arm, alone), arm["processes"]
    return Spread(*(value / processes for value in astuple(speed_up)))


def _sweep(record: Record, folder: str) -> list[str]:
    on_device = peak(record["points"][0], "peak_device_memory") is not None
    head = ["factor", "value", "ms/step", "samples/s", "GFLOP/s", "peak, MB"]
    head += ["GPU peak, MB"] if on_device else []
    rows = [
        [
            point["factor"],
            f"{point['value']:,}",
            step_seconds(point).show(milliseconds),
            count(Spread.of(rates(point)).median),
            giga(achieved(point).median),
            megabytes(peak(point)),
            *([megabytes(peak(point, "peak_device_memory"))] if on_device else []),
        ]
        for point in record["points"]
    ]
    return [
        f"{work(record)} One factor at a time, regions being the number in every image. Training "
        f"in bf16, batch {record['config']['train']['batch_size']}. {SPREAD}",
        "",
        *([f"![time and memory against the work]({folder}/{PLOT})", ""] if folder else []),
        *table(head, rows),
        "",
        "From `python train.py` to the end of the first step of a small network:",
        "",
        *_starts(record["startup"]),
    ]


Body = Callable[[Record, str], list[str]]
SECTIONS: Mapping[str, tuple[str, Body]] = {
    "train": ("Training step", _train),
    "eval": ("Evaluation", _evaluate),
    "loader": ("Loading", _load),
    "startup": ("Start-up", _startup),
    "scaling": ("Processes", _scaling),
    "sweep": ("How cost grows with the work", _sweep),
}
"""Title and body of the record of each benchmark, in the order of the report."""
