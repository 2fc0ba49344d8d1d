"""Bootstrap intervals against closed forms and a loop that resamples one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mcan.evaluation.bootstrap import Bootstrap, Interval

ACCURACIES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
Z = 1.959964


def draw(count, seed=0, same=0.6):
    """Differences of two models' accuracies, equal for a share of the questions."""
    random = np.random.default_rng(seed)
    a, b = ACCURACIES[random.integers(5, size=(2, count))]
    return np.where(random.random(count) < same, 0.0, b - a)


def by_loop(values, clusters, resamples, seed=1):
    """Means of drawn units, each drawn as what it is: a list of questions."""
    random = np.random.default_rng(seed)
    units = [values[clusters == cluster] for cluster in np.unique(clusters)]
    means = []
    for _ in range(resamples):
        drawn = [units[i] for i in random.integers(len(units), size=len(units))]
        means.append(np.concatenate(drawn).mean())
    return np.quantile(means, [0.025, 0.975])


def test_many_questions_against_the_normal_approximation():
    values = 0.02 + draw(50_000)
    error = values.std() / math.sqrt(len(values))
    found = Bootstrap().interval(values)
    # A quantile of 10,000 resamples is itself known to 0.027 standard errors.
    assert found.low == pytest.approx(values.mean() - Z * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + Z * error, abs=0.1 * error)


def test_confidence_widens_the_interval_as_the_normal_does():
    values = draw(20_000)
    error = values.std() / math.sqrt(len(values))
    for confidence, z in ((68.27, 1.0), (90, 1.644854), (99, 2.575829)):
        low, high = Bootstrap(confidence=confidence).interval(values)
        assert (high - low) / 2 == pytest.approx(z * error, rel=0.06)


@pytest.mark.parametrize("per_image", [1, 3])
def test_few_questions_against_a_loop(per_image):
    random = np.random.default_rng(5)
    values = draw(60, same=0.4)
    clusters = random.integers(60 // per_image, size=60) if per_image > 1 else np.arange(60)
    found = Bootstrap(resamples=20_000).interval(values, clusters)
    expected = by_loop(values, clusters, 5_000)
    error = (expected[1] - expected[0]) / (2 * Z)
    assert list(found) == pytest.approx(list(expected), abs=0.15 * error)


def test_skewed_counts_against_the_binomial():
    """Three of 40 questions changed: a resample's mean is Binomial(40, 3 / 40) / 40."""
    values = np.zeros(40)
    values[:3] = 1
    chance = [math.comb(40, k) * 0.075**k * 0.925 ** (40 - k) for k in range(41)]
    below = np.cumsum(chance)
    low, high = (float(np.searchsorted(below, q)) / 40 for q in (0.025, 0.975))
    assert Bootstrap(resamples=50_000).interval(values) == pytest.approx((low, high))


def test_clusters_of_dependent_questions_are_wider():
    """All questions of an image change together: as many independent values as images."""
    per_image = draw(2_000)
    values, images = np.repeat(per_image, 5), np.repeat(np.arange(2_000), 5)
    error = per_image.std() / math.sqrt(2_000)
    plain, clustered = Bootstrap().interval(values), Bootstrap().interval(values, images)
    assert (clustered.high - clustered.low) / (2 * Z) == pytest.approx(error, rel=0.06)
    assert (plain.high - plain.low) / (2 * Z) == pytest.approx(error / math.sqrt(5), rel=0.06)


def test_one_question_per_image_is_the_plain_bootstrap():
    values = draw(500)
    images = np.random.default_rng(2).permutation(500) + 7
    assert Bootstrap().interval(values, images) == Bootstrap().interval(values)


def test_order_does_not_matter_and_the_seed_does():
    values = draw(300)
    again = np.random.default_rng(3).permutation(values)
    assert Bootstrap(seed=4).interval(values) == Bootstrap(seed=4).interval(again)
    assert Bootstrap(seed=4).interval(values) != Bootstrap(seed=5).interval(values)


def test_values_that_differ_by_rounding_are_one():
    exact = np.array([0.3] * 50 + [0.0] * 50)
    rounded = np.array([0.9 - 0.6] * 25 + [0.3] * 25 + [0.0] * 50)
    assert rounded[0] != rounded[25]
    assert Bootstrap().interval(rounded) == Bootstrap().interval(exact)


def test_distinct_values_in_several_passes(monkeypatch):
    values = np.random.default_rng(6).normal(size=400)
    whole = Bootstrap(resamples=1_000).interval(values)
    monkeypatch.setattr("mcan.evaluation.bootstrap._DRAWN_AT_ONCE", 400 * 7)
    assert Bootstrap(resamples=1_000).interval(values) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("values", "clusters", "expected"),
    [
        ([0.0] * 9, None, (0, 0)),
        ([0.25] * 8, None, (0.25, 0.25)),
        ([1.0], None, None),
        ([0.0], None, None),
        ([1.0, -1.0], [4, 4], None),
        ([1.0, -1.0], [4, 5], (-1, 1)),
        ([], None, None),
    ],
)
def test_degenerate(values, clusters, expected):
    chosen = None if clusters is None else np.array(clusters)
    assert Bootstrap(resamples=200).interval(np.array(values), chosen) == expected


def test_what_excludes_zero():
    excluding = [Interval(0.1, 1), Interval(-1, -0.1)]
    including = [Interval(-1, 1), Interval(0, 0), Interval(0, 1), Interval(-1, 0)]
    assert all(interval.excludes_zero for interval in excluding)
    assert not any(interval.excludes_zero for interval in including)


@pytest.mark.slow
@pytest.mark.parametrize("per_image", [1, 4])
def test_coverage(per_image):
    """Of 600 samples' 90 % intervals, 90 % hold the true mean: within 3.5 standard errors."""
    random = np.random.default_rng(7)
    held = 0
    for seed in range(600):
        effects = random.choice([-1.0, 0.0, 0.0, 1.0], size=250)
        values = np.repeat(effects, per_image) + draw(250 * per_image, seed)
        images = np.repeat(np.arange(250), per_image)
        low, high = Bootstrap(1_000, 90, seed).interval(values, images)
        held += low <= 0 <= high
    assert held / 600 == pytest.approx(0.9, abs=3.5 * math.sqrt(0.09 / 600))


@pytest.mark.slow
def test_few_normal_values_are_covered_as_documented():
    """The interval is about mean ± 1.96 s (ddof 0) / sqrt(20): a t value of 1.91, 92.9 %."""
    random = np.random.default_rng(8)
    intervals = [Bootstrap(1_000).interval(random.normal(size=20)) for _ in range(2_000)]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert held == pytest.approx(0.925, abs=0.02)
