"""Confidence intervals of means over problems. Samples of one problem are not independent: the problem is the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its two-sided interval; NaN bounds where there are fewer than two clusters."""

    estimate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def clustered_interval(cluster_means: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student-t interval of the mean over clusters, one value per cluster (a problem's accuracy, or its difference).

    With the same number of samples in every cluster this is the cluster-robust interval of the overall mean: its
    standard error is the standard deviation of the cluster means over the root of their number.
    """
    n = len(cluster_means)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(cluster_means) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in cluster_means) / (n - 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)
