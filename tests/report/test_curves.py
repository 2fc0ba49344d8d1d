"""Axes and thinning of the learning curves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcan.report.curves import MOST_POINTS, linear_axis, logarithmic_axis, thinned

FINITE = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@pytest.mark.parametrize(
    ("values", "low", "ticks"),
    [
        ([0.0, 100.0], None, (0, 50, 100)),
        ([62.0, 98.5], None, (60, 70, 80, 90, 100)),
        ([99.61, 99.93], None, (99.6, 99.7, 99.8, 99.9, 100.0)),
        ([8600.0], 0.0, (0, 5000, 10000)),
        ([], None, (0, 0.5, 1)),
        ([50.0, 50.0], None, (50, 50.5, 51)),
    ],
)
def test_linear_ticks_are_round(values, low, ticks):
    assert linear_axis(values, low).ticks == pytest.approx(ticks)


@given(st.lists(FINITE, min_size=1))
def test_linear_axes_hold_their_values(values):
    axis = linear_axis(values)
    assert len(axis.ticks) <= 7
    assert all(-1e-6 <= axis.fraction(value) <= 1 + 1e-6 for value in values)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1))
def test_logarithmic_axes_hold_their_values(values):
    axis = logarithmic_axis(values)
    assert all(0 <= axis.fraction(value) <= 1 for value in values)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    # Equal ratios are equal lengths.
    middle = math.sqrt(axis.low * axis.high)
    assert axis.fraction(middle) == pytest.approx(0.5)


def test_logarithmic_ticks():
    assert logarithmic_axis([0.15, 3.0]).ticks == pytest.approx((0.2, 0.5, 1, 2))
    assert logarithmic_axis([1e-4, 5.0]).ticks == pytest.approx((1e-4, 1e-3, 1e-2, 0.1, 1))
    assert logarithmic_axis([]).fraction(0.0) == 0  # not positive: at the lower end


@pytest.mark.parametrize("number", [0, 1, 2, 199, 200, 201, 399, 5000])
def test_thinning_keeps_the_ends_and_the_order(number):
    points = [(step, -float(step)) for step in range(number)]
    kept = thinned(points)
    assert len(kept) == min(number, MOST_POINTS)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert kept[:1] + kept[-1:] == points[:1] + points[-1:]
