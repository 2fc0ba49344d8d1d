"""Bootstrap intervals against closed forms and against every resample there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mcan.evaluation.comparison import bootstrap_interval

ACCURACIES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
Z = 1.959964


def draw(count, seed=0, same=0.6):
    """Differences of two models' accuracies, equal for a share of the questions."""
    random = np.random.default_rng(seed)
    a, b = ACCURACIES[random.integers(5, size=(2, count))]
    return np.where(random.random(count) < same, 0.0, b - a)


@pytest.mark.parametrize(("confidence", "z"), [(68.27, 1.0), (95, Z), (99, 2.575829)])
def test_many_questions_against_the_normal_approximation(confidence, z):
    values = 0.02 + draw(50_000)
    error = values.std() / math.sqrt(len(values))
    low, high = bootstrap_interval(values, confidence=confidence)
    # A quantile of 10,000 resamples is itself known to 0.03 to 0.04 standard errors.
    assert low == pytest.approx(values.mean() - z * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + z * error, abs=0.15 * error)


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 2]], ids=["questions", "images"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_seeds_and_questions_by_enumeration(seeds, clusters):
    """Every resample of the seeds, each with every resample of the questions or images."""
    values = np.random.default_rng(7).normal(size=(seeds, 4)).round(1)
    units = [[0], [1], [2], [3]] if clusters is None else [[0, 1], [2], [3]]
    means = [
        np.mean([values[seed, row] for seed in of_seeds for unit in drawn for row in unit])
        for of_seeds in itertools.product(range(seeds), repeat=seeds)
        for drawn in itertools.product(units, repeat=len(units))
    ]
    chosen = None if clusters is None else np.array(clusters)
    found = bootstrap_interval(values, chosen, resamples=200_000)
    exact = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert found == pytest.approx(list(exact), abs=0.02 * np.ptp(means))


def test_skewed_counts_against_the_binomial():
    """Three of 40 questions changed: a resample's mean is Binomial(40, 3 / 40) / 40."""
    values = np.zeros(40)
    values[:3] = 1
    chance = [math.comb(40, k) * 0.075**k * 0.925 ** (40 - k) for k in range(41)]
    below = np.cumsum(chance)
    low, high = (float(np.searchsorted(below, q)) / 40 for q in (0.025, 0.975))
    assert bootstrap_interval(values, resamples=50_000) == pytest.approx((low, high))


def test_clusters_of_dependent_questions_are_wider():
    """All questions of an image change together: as many independent values as images."""
    per_image = draw(2_000)
    values, images = np.repeat(per_image, 5), np.repeat(np.arange(2_000), 5)
    error = per_image.std() / math.sqrt(2_000)
    clustered, plain = (np.ptp(bootstrap_interval(values, ids)) for ids in (images, None))
    assert clustered / (2 * Z) == pytest.approx(error, rel=0.06)
    assert plain / (2 * Z) == pytest.approx(error / math.sqrt(5), rel=0.06)


def test_values_that_differ_by_rounding_are_one():
    exact = np.array([0.3] * 50 + [0.0] * 50)
    rounded = np.array([0.9 - 0.6] * 25 + [0.3] * 25 + [0.0] * 50)
    assert rounded[0] != rounded[25]
    assert bootstrap_interval(rounded) == bootstrap_interval(exact)


@pytest.mark.parametrize(
    ("values", "clusters", "expected"),
    [
        ([0.25] * 8, None, [0.25, 0.25]),
        ([1.0], None, None),
        ([1.0, -1.0], [4, 4], None),
        ([1.0, -1.0], [4, 5], [-1, 1]),
        ([], None, None),
    ],
)
def test_degenerate(values, clusters, expected):
    chosen = None if clusters is None else np.array(clusters)
    assert bootstrap_interval(np.array(values), chosen) == expected
