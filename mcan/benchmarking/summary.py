"""Repetitions as medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
"""What a benchmark or one of its arms measured, as JSON holds it."""


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def show(self, write: Callable[[float], str]) -> str:
        return f"{write(self.median)} ({write(self.least)} to {write(self.most)})"


def rates(arm: Record) -> list[float]:
    """Questions per second of each repetition."""
    return [result["questions"] / result["seconds"] for result in arm["repetitions"]]


def ratios(arm: Record, baseline: Record) -> Spread:
    """How much faster than the baseline, turn by turn: the arms saw the machine in one state."""
    pairs = zip(rates(arm), rates(baseline), strict=True)
    return Spread.of(ours / theirs for ours, theirs in pairs)


def step_seconds(arm: Record) -> Spread:
    return Spread.of(result["seconds"] / result["steps"] for result in arm["repetitions"])


def achieved(arm: Record) -> Spread:
    """FLOP/s on valid rows; a multiply-add is two."""
    return Spread.of(2 * result["macs"] / result["seconds"] for result in arm["repetitions"])


def product_rate(products: Record, precision: str) -> float:
    """FLOP/s of the best matrix product of the run, in `precision`."""
    return 2 * max(float(result["rates"][precision]) for result in products["repetitions"])


def peak(arm: Record, key: str = "peak_memory") -> int | None:
    """Most bytes over all repetitions; None where `key` was not measured."""
    values = [result[key] for result in arm["repetitions"] if result[key] is not None]
    return max(values, default=None)


def phase_shares(arm: Record) -> dict[str, float]:
    """The share of each phase in the time of all repetitions."""
    results = arm["repetitions"]
    total = sum(result["seconds"] for result in results)
    names = results[0]["phases"]
    return {name: sum(result["phases"][name] for result in results) / total for name in names}
