"""Learning curves as inline SVG: one small chart per row and quantity, one line per seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mcan.report.run_files import Point

MOST_POINTS = 200
"""Points kept of each curve."""
MARKED_POINTS = 30
"""Curves of at most so many points show each with a dot."""

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 8, 36

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Axis:
    """A range of values with the places of its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def fraction(self, value: float) -> float:
        """Where `value` is between the ends, 0 to 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return (value - low) / (high - low)


def linear_axis(values: Sequence[float], low: float | None = None) -> Axis:
    """From `low`, else the smallest value, to the largest, widened to ticks 1, 2, 5 × 10^k."""
    smallest = min(values, default=0.0) if low is None else low
    largest = max(values, default=1.0)
    if largest <= smallest:
        largest = smallest + 1
    rough = (largest - smallest) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(smallest / step), math.ceil(largest / step - 1e-9)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def logarithmic_axis(values: Sequence[float]) -> Axis:
    """Over the positive values; ticks at 1, 2, 5 × 10^k, or powers of ten where these are many."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.1, max(positive) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), True)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` of the points, evenly spread, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stride = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(number * stride)] for number in range(MOST_POINTS)]


def chart(curves: Mapping[int, Sequence[Point]], across: Axis, up: Axis, what: str, of: str) -> str:
    """An <svg> of a quantity `what` of the row `of` against steps, one line per seed."""

    def x(step: float) -> float:
        return LEFT + across.fraction(step) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - up.fraction(value) * (HEIGHT - TOP - BOTTOM)

    ends = [f"seed {seed} ends at {points[-1][1]:.4g}" for seed, points in curves.items() if points]
    told = f"{what} of {of} against steps: {'; '.join(ends) or 'nothing logged'}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" fill="none" font-size="10" role="img" '
        f'aria-label="{escape(told)}">',
        *(_tick_up(y(tick), _number(tick)) for tick in up.ticks),
        *(_tick_across(x(tick), _number(tick)) for tick in across.ticks),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle", "steps"),
    ]
    for number, points in enumerate(curves.values()):
        parts.append(_line(thinned(points), x, y, number))
    if not ends:
        parts.append(_text((LEFT + WIDTH) / 2, HEIGHT / 2, "middle", "nothing logged"))
    return "".join([*parts, "</svg>"])


def key(number: int) -> str:
    """A small <svg> of the line that the seed `number` of a row has, for legends."""
    return (
        f'<svg class="key" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path d="M0 4H24" {_stroke(number)}/></svg>'
    )


def _line(
    points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float], number: int
) -> str:
    places = [f"{x(step):.1f},{y(value):.1f}" for step, value in points]
    line = f'<polyline points="{" ".join(places)}" {_stroke(number)}/>'
    if len(places) > MARKED_POINTS:
        return line
    dots = "".join(f"M{place}h0" for place in places)
    return f'{line}<path d="{dots}" {_stroke(number, 4)} stroke-linecap="round"/>'


def _stroke(number: int, width: float = 1.3) -> str:
    return f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="{width}"'


def _tick_up(y: float, label: str) -> str:
    line = (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity="0.25"/>'
    )
    return line + _text(LEFT - 5, y + 3.5, "end", label)


def _tick_across(x: float, label: str) -> str:
    return _text(x, HEIGHT - BOTTOM + 14, "middle", label)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="currentColor">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
