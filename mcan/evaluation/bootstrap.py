"""Confidence intervals of a mean: bootstrap percentiles (Efron & Tibshirani 1993, chapter 13).

Drawing M units with replacement is drawing, from a multinomial distribution, how often each
distinct unit occurs. Differences of accuracies take few distinct values, so that a resample costs
as many draws as there are such values, and no array has M x resamples entries.

N questions, M units that are resampled, K distinct units, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Sums that differ by rounding errors only are one value.
_DECIMALS = 9
_DRAWN_AT_ONCE = 1 << 20


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are found: how many `resamples`, the `confidence` in percent, the `seed`.

    Percentile intervals of few units are too narrow: of 20 normal values, 93 % instead of 95 % hold
    the true mean.
    """

    resamples: int = 10_000
    confidence: float = 95.0
    seed: int = 0

    def interval(
        self, values: NDArray[np.float64], clusters: NDArray[np.integer] | None = None
    ) -> Interval | None:
        """The interval of the mean of `values` (N,), paired differences say.

        Questions are resampled or, given the number of each one's cluster in `clusters` (N,), whole
        clusters (Field & Welsh 2007), whose questions need not be independent. The same seed gives
        the same resamples. None where there is one unit, which says nothing about the spread.
        """
        if clusters is None:
            clusters = np.arange(len(values))
        _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            return None
        sums = np.bincount(cluster, weights=values).round(_DECIMALS)
        units, counts = np.unique(np.column_stack([sums, sizes]), axis=0, return_counts=True)
        tail = (100 - self.confidence) / 200
        ends = np.quantile(self._resampled_means(units, counts), [tail, 1 - tail])
        return Interval(*ends.tolist())

    def _resampled_means(
        self, units: NDArray[np.float64], counts: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """(R,) means over questions; `units` (K, 2): sum and size, `counts` (K,) of each."""
        random = np.random.default_rng(self.seed)
        drawn = int(counts.sum())
        means = np.empty(self.resamples)
        step = max(1, _DRAWN_AT_ONCE // len(units))
        for first in range(0, self.resamples, step):
            part = means[first : first + step]
            totals = random.multinomial(drawn, counts / drawn, size=len(part)) @ units
            part[:] = totals[:, 0] / totals[:, 1]
        return means
