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


def share_interval(shares: Sequence[float], confidence: float = 0.95) -> Interval:
    """`clustered_interval` of values from 0 to 1, such as problems' accuracies.

    Where all are 0 (or all 1) their scatter says nothing, yet the mean need not be 0: with mean m a share is above 0
    with a chance of at least m, so n zeros have a chance of at most (1 - m)^n, which falls below (1 - confidence) / 2
    at m = 1 - ((1 - confidence) / 2)^(1 / n). That is Clopper and Pearson's bound, whatever the samples of a problem
    have in common.
    """
    interval = clustered_interval(shares, confidence)
    room = 1.0 - ((1.0 - confidence) / 2) ** (1.0 / max(1, len(shares)))
    if interval.low == interval.high == 0.0:
        return Interval(0.0, 0.0, room)
    if interval.low == interval.high == 1.0:
        return Interval(1.0, 1.0 - room, 1.0)
    return interval
